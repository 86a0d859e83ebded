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
            # Of a model with several labels per image; of the others the one label.
            labels = (prediction,) if prediction.labels is None else prediction.labels
            shown = [f"{each.label} ({each.score:.0%})" for each in labels]
            print(f"{image}: {', '.join(shown) or 'no label'}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
