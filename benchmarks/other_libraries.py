"""Small models of other libraries: import torchvision and timm, and make models with random weights.

torchvision's compiled operators may have been built for another torch. Only its Python is needed: model
definitions and transforms. Importing it registers shape functions for operators such as `nms`, which fails
where the compiled library does not load. Each operator that is named there is declared first, without an
implementation.

`make .venv` installs both into a folder of their own in the environment. In site-packages, transformers
would find torchvision and import it before its operators are declared.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

BESIDE = Path(sys.prefix) / "beside"
_KEPT: list[object] = []  # the declared operators, which are gone when their library is collected
_DECLARED = re.compile(r'(?:register_fake|register_meta)\("(?:torchvision::)?(\w+)"')


def import_torchvision() -> ModuleType:
    """Import torchvision, its operators declared where its own library does not load.

    Raises:
        ImportError: when torchvision is not installed.
    """
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
    _KEPT.append(library)
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


def randomize_weights(make: Callable[[], nn.Module], *, seed: int = 0, strength: float = 0.3) -> nn.Module:
    """Make a model in which every parameter and statistic matters: none is zero or one.

    Args:
        make: makes the model, its first weights from torch's random numbers.
        seed: of all random numbers; the generator of the program stays as it is.
        strength: deviation of what is added to a matrix, times the root of what goes into it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                scale = 0.1 if parameter.ndim < 2 else strength / max(parameter[0].numel(), 1) ** 0.5
                parameter.add_(scale * torch.randn_like(parameter))
                if parameter.ndim < 2 and float(parameter.abs().max()) < 1e-3:  # a LayerScale of 1e-6
                    parameter.add_(0.5)
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.add_(0.1 * torch.randn_like(buffer))
                elif name.endswith("running_var"):
                    buffer.add_(0.2 * torch.rand_like(buffer))
    return model
