"""The digits example, exported once per target, and its 360 held-out images as files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.devices.root import SetUpError

CHECKPOINT = Path("runs/digits")
HELD_OUT = 360


def make_models(folder: Path, targets: tuple[str, ...], say: Callable[[str], None]) -> Mapping[str, Path]:
    """Export the digits model for each target; train it first where there is no checkpoint yet.

    Args:
        folder: gets one artifact folder per target, and `images`.
        targets: the INT8 targets.
        say: called with a line for each step.

    Returns:
        The artifact folder of each target.

    Raises:
        SetUpError: when an export fails.
    """
    artifacts = {target: folder / target for target in targets}
    # The first one knows the example, and trains it or finishes its training where that is needed.
    example, *others = targets
    say(f"digits for {example}")
    _python("-m", "export", "--quantize", "--target", example, "--out", str(artifacts[example]))
    for target in others:
        say(f"digits for {target}")
        options = ["--quantize", "--calibration", "digits", "--target", target]
        _python("-m", "export", str(CHECKPOINT), *options, "--out", str(artifacts[target]))
    images = ["--out", str(folder / "images"), "--count", str(HELD_OUT)]
    _python("-m", "tools.digit_images", *images)
    return artifacts


def _python(*arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SetUpError(f"python {' '.join(arguments)} failed: {done.stderr.strip()}")
