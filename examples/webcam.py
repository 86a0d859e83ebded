"""Label what a camera sees, frame by frame.

    python -m examples.webcam MODEL [--frames 100] [--camera 0]

Without --camera the frames are drawn, 30 per second. With it OpenCV reads them:

    pip install opencv-python-headless

One thread keeps only the newest frame of the camera, and the loop labels that frame, so that no label is
older than one prediction. It is the label with the highest mean score over the last few frames.
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


def open_camera(number: int) -> Iterator[Frame]:
    """Return the frames of a camera; without one, print a line to standard error and end the process."""
    try:
        import cv2
    except ImportError:
        sys.exit("--camera needs OpenCV: pip install opencv-python-headless")
    device = cv2.VideoCapture(number)
    if not device.isOpened():
        sys.exit(f"expected a camera with number {number}, found none that opens; the first is --camera 0")
    return read_frames(device)


def read_frames(device: Any) -> Iterator[Frame]:
    """Yield the frames of an opened camera until it ends."""
    while True:
        found, frame = device.read()
        if not found:
            return
        yield frame[:, :, ::-1]  # OpenCV gives BGR


def draw_frames() -> Iterator[Frame]:
    """Yield frames of a bright square that moves over a dark background."""
    step = 0
    while True:
        frame = np.full((240, 320, 3), 40, np.uint8)
        left = step * 3 % 280
        frame[100:140, left : left + 40] = (250, 200, 40)
        yield frame
        step += 1
        time.sleep(1 / 30)


class NewestFrame:
    """Iterator of the newest frame of a camera, without a queue."""

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
    """Print one line per frame."""
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
    frames = draw_frames() if options.camera is None else open_camera(options.camera)
    with classify:
        classify.warm_up()
        for number, frame in enumerate(NewestFrame(frames), start=1):
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
