"""A reader of one export with INT8 meets no more modules than this: a new module has to earn its place."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import CodeType, FrameType

import numpy as np
from PIL import Image

from tools.expected_drift import random_checkpoint

PACKAGES = ("vit", "export", "calibration", "runtime")
MOST_OF_EXPORT = 41
MOST = 103
FUNCTION = 0x1 | 0x2  # CO_OPTIMIZED | CO_NEWLOCALS: the code of a function, not of a module or a class body


class Visits:
    """Count the modules of the packages whose functions run while it is entered.

    A function counts that is defined at the level of a module or of a class. Top-level code that an import
    runs does not, and neither do the methods that dataclasses generate.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, set[str]()

    def __enter__(self) -> Visits:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, _: object) -> None:
        code: CodeType = frame.f_code
        if (
            event == "call"
            and code.co_flags & FUNCTION == FUNCTION
            and not code.co_name.startswith("<")
            and "<locals>" not in code.co_qualname
        ):
            self.files.add(code.co_filename)

    @property
    def modules(self) -> list[str]:
        """The visited modules, by their dotted names."""
        inside = [Path(file).relative_to(self.root) for file in self.files if file.startswith(str(self.root))]
        return sorted(
            ".".join(path.with_suffix("").parts).removesuffix(".__init__")
            for path in inside
            if path.parts[0] in PACKAGES
        )


def test_one_export_visits_only_so_many_modules(tmp_path: Path, root: Path) -> None:
    from export.__main__ import main

    random_checkpoint(tmp_path / "run")
    random = np.random.default_rng(0)
    for index in range(20):
        folder = tmp_path / "photos" / str(index % 4)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(folder / f"{index}.png")
    words = [str(tmp_path / "run"), "--quantize", "--calibration", str(tmp_path / "photos")]
    with Visits(root) as visits:
        assert main([*words, "--threads", "1", "--out", str(tmp_path / "out")]) == 0
    of_export = [name for name in visits.modules if name.startswith("export.")]
    listed = "\n".join(visits.modules)
    counts = f"{len(of_export)} modules of export, {len(visits.modules)} of all four packages:\n{listed}"
    assert len(of_export) <= MOST_OF_EXPORT, counts
    assert len(visits.modules) <= MOST, counts
