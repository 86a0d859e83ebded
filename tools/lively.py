"""Random weights of which none is zero or one, so that a tensor that is forgotten shows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def lively(make: Callable[[], nn.Module], *, seed: int = 0, strength: float = 0.3) -> nn.Module:
    """Make a model in which every parameter and statistic matters.

    Args:
        make: makes the model, its first weights from torch's random numbers.
        seed: of all random numbers; those of the program go on as before.
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
