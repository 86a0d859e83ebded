"""Label each new image of a folder with the current model of another one, and change models without a stop.

python examples/update/app.py MODELS IMAGES PUBLIC_KEY
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from runtime import ArtifactError, Classifier, DeviceError, find_images


def watch(models: Path, images: Path, key: Path, *, is_over: Callable[[], bool] = lambda: False) -> None:
    """Print the label of each image in a folder, and of each that comes, until `is_over` returns true."""
    classify, seen = Classifier(models, key=key, min_score=0.5), set[Path]()
    while not is_over():
        try:
            if classify.newer() and classify.reload():
                print(f"now model {classify.info.sha256[:12]}", flush=True)
        except (ArtifactError, DeviceError) as error:  # the model that is open goes on
            print(error, file=sys.stderr)
        new = [path for path in find_images(images) if path not in seen]
        for result in classify.stream(new):
            label = result.prediction.label if result.prediction else None
            print(f"{result.image}: {label or result.error}", flush=True)
        seen |= set(new)
        time.sleep(0.5)


if __name__ == "__main__":
    watch(*(Path(word) for word in sys.argv[1:4]))
