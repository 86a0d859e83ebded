"""Each family that import reads gives the logits of its own library, which runs beside it."""

import pytest

from benchmarks.families import FAMILIES, parity

EXACT = 1e-5  # of the logits' scale


@pytest.mark.parametrize("family", FAMILIES, ids=lambda each: f"{each.library} {each.name}")
def test_logits_are_the_librarys(family, tmp_path):
    pytest.importorskip(family.library if family.library == "transformers" else "torch")
    try:
        found = parity(family, tmp_path)
    except ImportError as error:
        pytest.skip(f"{error}")
    assert found <= EXACT


def test_there_are_at_least_fourteen():
    assert len({(family.library, family.name) for family in FAMILIES}) == len(FAMILIES) >= 14
