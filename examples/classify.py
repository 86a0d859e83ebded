"""Embed the classifier in a script.

python examples/classify.py MODEL PICTURE...
"""

from __future__ import annotations

import sys

from runtime import Classifier, PictureError


def main(model: str, *pictures: str) -> int:
    with Classifier(model) as classify:
        info = classify.info
        print(f"{info.variant} model of {len(info.labels)} classes on {info.device}, {info.threads} threads")
        for picture in pictures:
            try:
                prediction = classify(picture)
            except PictureError as error:
                print(f"{picture}: {error}")
                continue
            print(f"{picture}: {prediction.label} ({prediction.score:.0%})")
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
