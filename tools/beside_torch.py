"""torchvision and timm beside a torch that torchvision's compiled operators were not built for.

The tests need only their Python: model definitions and transforms. Importing torchvision registers
shape functions for operators such as `nms`, which fails where the compiled library does not load.
Each operator that is named there is declared first, without an implementation.

`make .venv` installs both into a folder of their own in the environment. In site-packages, transformers
would find torchvision and import it before its operators are declared.
"""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

BESIDE = Path(sys.prefix) / "beside"
_DECLARED = re.compile(r'(?:register_fake|register_meta)\("(?:torchvision::)?(\w+)"')


def import_torchvision() -> ModuleType:
    """Import torchvision, its operators declared where its own library does not load.

    Raises:
        ImportError: when torchvision is not installed.
    """
    import torch

    if find_spec("torchvision") is None and BESIDE.is_dir():
        sys.path.append(str(BESIDE))
    found = find_spec("torchvision")
    if found is None or found.submodule_search_locations is None:
        raise ImportError("torchvision is not installed; make .venv does it")
    (folder,) = found.submodule_search_locations
    source = (Path(folder) / "_meta_registrations.py").read_text(encoding="utf-8")
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(set(_DECLARED.findall(source))):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor input) -> Tensor")
    _KEPT.append(library)  # its operators are gone when it is collected
    import torchvision

    return torchvision  # type: ignore[no-any-return]


def import_timm() -> ModuleType:
    """Import timm, which imports torchvision.

    Raises:
        ImportError: when timm or torchvision is not installed.
    """
    import_torchvision()
    import timm

    return timm  # type: ignore[no-any-return]


_KEPT: list[object] = []
