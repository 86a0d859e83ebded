"""Label what a camera sees, frame by frame.

    python -m examples.webcam MODEL [--frames 100] [--camera 0]

Without --camera the frames are drawn, 30 a second. With it OpenCV reads them:

    pip install opencv-python-headless

A camera does not wait: one thread keeps only the newest frame, and the loop labels that one, so that what is
shown is never more than one prediction old. The label is that of the mean score of the last few frames.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import ArtifactError, Classifier, DeviceError

Frame = npt.NDArray[np.uint8]  # [height, width, 3], RGB
SMOOTHED = 5  # frames


def camera(number: int) -> Iterator[Frame]:
    """The frames of a camera; a line on standard error, and the end, where there is none."""
    try:
        import cv2
    except ImportError:
        sys.exit("--camera needs OpenCV: pip install opencv-python-headless")
    device = cv2.VideoCapture(number)
    if not device.isOpened():
        sys.exit(f"expected a camera with number {number}, found none that opens; the first is --camera 0")
    return frames_of(device)


def frames_of(device: Any) -> Iterator[Frame]:
    while True:
        there, frame = device.read()
        if not there:
            return
        yield frame[:, :, ::-1]  # OpenCV gives BGR


def drawn() -> Iterator[Frame]:
    """A bright square that wanders over a dark ground."""
    step = 0
    while True:
        frame = np.full((240, 320, 3), 40, np.uint8)
        left = step * 3 % 280
        frame[100:140, left : left + 40] = (250, 200, 40)
        yield frame
        step += 1
        time.sleep(1 / 30)


class Newest:
    """The last frame of a camera, and no queue."""

    def __init__(self, frames: Iterator[Frame]) -> None:
        self._frames = frames
        self._frame: Frame | None = None
        self._changed = threading.Condition()
        self._ended = False
        threading.Thread(target=self._read, daemon=True).start()

    def __iter__(self) -> Iterator[Frame]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._frame is not None or self._ended)
                frame, self._frame = self._frame, None
            if frame is None:
                return
            yield frame

    def _read(self) -> None:
        for frame in self._frames:
            self._put(frame)
        self._put(None)

    def _put(self, frame: Frame | None) -> None:
        with self._changed:
            self._frame, self._ended = frame, frame is None
            self._changed.notify()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="model file, or folder of an export")
    parser.add_argument("--frames", type=int, default=100, help="frames to label (default: %(default)s)")
    parser.add_argument("--camera", type=int, help="index of the camera (default: drawn frames)")
    options = parser.parse_args()
    try:
        classify = Classifier(options.model)
    except (ArtifactError, DeviceError) as error:
        parser.error(str(error))
    recent: deque[dict[str, float]] = deque(maxlen=SMOOTHED)
    frames = drawn() if options.camera is None else camera(options.camera)
    with classify:
        classify.warm_up()
        for number, frame in enumerate(Newest(frames), start=1):
            began = time.perf_counter()
            recent.append({candidate.label: candidate.score for candidate in classify(frame).top})
            total = sum((Counter(scores) for scores in recent), Counter[str]())
            label, score = total.most_common(1)[0]
            milliseconds = 1000 * (time.perf_counter() - began)
            print(f"{number:5}  {label}  {score / len(recent):.0%}  {milliseconds:.1f} ms", flush=True)
            if number == options.frames:
                return


if __name__ == "__main__":
    main()
