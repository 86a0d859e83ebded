"""Label images in a script.

python -m examples.classify MODEL IMAGE...
"""

from __future__ import annotations

import sys

from runtime import ArtifactError, Classifier, DeviceError, ImageError


def main(model: str, *images: str) -> int:
    """Print one line per image and return the exit code."""
    try:
        classify = Classifier(model)
    except (ArtifactError, DeviceError) as error:
        print(error, file=sys.stderr)
        return 2
    with classify:
        info = classify.info
        print(f"{info.variant} model of {len(info.labels)} classes on {info.device}, {info.threads} threads")
        for image in images:
            try:
                prediction = classify(image)
            except ImageError as error:
                print(error)
                continue
            print(f"{image}: {prediction.label} ({prediction.score:.0%})")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
