"""Tensors that are missing or have other dimensions are refused in words, and never end in another error."""

import contextlib

import pytest
import torch
from safetensors.torch import save_file

from tests.vit.pretrained.test_state_dict import GOOD
from vit.pretrained import SourceError, import_model

DAMAGES = {
    "a single number": lambda value: torch.zeros(()),
    "one dimension more": lambda value: value[None],
    "one dimension fewer": lambda value: value[0],
    "one row more": lambda value: torch.cat([value, value[:1]]),
    "one column fewer": lambda value: value[..., :-1],
    "empty": lambda value: value[:0],
}
OPTIONAL = {name for name in GOOD if name.endswith("bias") and "norm" not in name} | {
    "cls_token",
    "head.weight",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_dimensions_are_read_or_refused(damage, tmp_path):
    for name, value in GOOD.items():
        save_file(GOOD | {name: DAMAGES[damage](value).contiguous()}, tmp_path / "w.safetensors")
        with contextlib.suppress(SourceError):
            import_model(tmp_path / "w.safetensors", heads=2)


@pytest.mark.parametrize("name", sorted(set(GOOD) - OPTIONAL))
def test_missing_tensors_are_refused(name, tmp_path):
    save_file({key: value for key, value in GOOD.items() if key != name}, tmp_path / "w.safetensors")
    with pytest.raises(SourceError, match=r"it lacks|\d missing|expected the tensors|position"):
        import_model(tmp_path / "w.safetensors", heads=2)
