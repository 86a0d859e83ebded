"""Tensors that a source stores together, taken apart, and kernels turned the way that torch has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from vit.config import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Tensors: TypeAlias = "dict[str, Tensor]"


def renamed(names: Iterable[tuple[str, str, Tensor]]) -> Tensors:
    """Return tensors by their new names; each name is given once.

    Args:
        names: old name, new name and tensor.

    Raises:
        ConfigError: for two tensors that would have one name; the same one twice (tied weights) is one.
    """
    found: Tensors = {}
    old_names: dict[str, str] = {}
    for old, new, value in names:
        if new in found and not (found[new].shape == value.shape and found[new].equal(value)):
            raise ConfigError(f"it has two tensors for {new!r}: {old_names[new]} and {old}")
        found.setdefault(new, value)
        old_names.setdefault(new, old)
    return found


def split_qkv(tensors: Tensors) -> Tensors:
    """Query, key and value apart, which timm and torchvision stack in this order.

    BEiT has biases of the query and the value alone, beside the stacked weight.
    """
    apart: Tensors = {}
    for name, value in tensors.items():
        if match := re.fullmatch(r"(.*)(?:qkv\.|in_proj_)(weight|bias)", name):
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                apart[f"{match[1]}{part}.{match[2]}"] = piece.contiguous()
        elif match := re.fullmatch(r"(.*attn\.)([qv])_bias", name):
            apart[f"{match[1]}{'query' if match[2] == 'q' else 'value'}.bias"] = value
        elif match := re.fullmatch(r"(attn_pool\.)kv\.(weight|bias)", name):
            for part, piece in zip(("key", "value"), value.chunk(2), strict=True):
                apart[f"{match[1]}{part}.{match[2]}"] = piece.contiguous()
        else:
            apart[name] = value
    return apart


def split_gates(tensors: Tensors) -> Tensors:
    """A gated MLP's two first layers apart: stacked, the gate first, they are twice as wide as the last."""
    apart: Tensors = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(.*mlp\.)(?:fc1|weights_in)\.(weight|bias)", name)
        last = match and (tensors.get(f"{match[1]}fc2.weight"), tensors.get(f"{match[1]}weights_out.weight"))
        width = next((each.shape[1] for each in last or () if each is not None), None)
        if match and width and value.shape[0] == 2 * width:
            gate, first = value.chunk(2)
            apart[f"{match[1]}gate.{match[2]}"] = gate.contiguous()
            apart[f"{match[1]}fc1.{match[2]}"] = first.contiguous()
        else:
            apart[name.replace("mlp.weights_out.", "mlp.fc2.")] = value
    return apart


def from_timm(tensors: Tensors) -> Tensors:
    return split_gates(split_qkv(tensors))


def from_flax(tensors: Tensors) -> Tensors:
    """Flax's kernels are `[in, out]`, in attention `[in, heads, features]` and `[heads, features, out]`."""
    turned: Tensors = {}
    bare = renamed(
        (name, name.removeprefix("opt/target/").removeprefix("params/"), value)
        for name, value in tensors.items()
    )
    for name, value in bare.items():
        if name == "embedding/kernel":
            value = value.permute(3, 2, 0, 1)  # (P, P, 3, D) to (D, 3, P, P)
        elif re.search(r"/(query|key|value)/kernel$", name):
            value = value.flatten(1).T
        elif re.search(r"/(query|key|value)/bias$", name):
            value = value.flatten()
        elif name.endswith("/out/kernel"):
            value = value.flatten(0, 1).T
        elif name.endswith("/kernel"):
            value = value.T
        name = name.replace("/scale", "/weight").replace("/kernel", "/weight")
        turned[name] = value.contiguous()
    return turned
