"""The table of mutants: what counts as killed, and when there are too few of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import mutants


def left(folder: Path, module: str, *codes: int | None) -> None:
    """Write the file that mutmut leaves of a module whose mutants' tests ended with these exit codes."""
    path = folder / f"{module}.meta"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = {f"{path.stem}.x_f__mutmut_{number}": code for number, code in enumerate(codes)}
    path.write_text(json.dumps({"exit_code_by_key": names}))


def test_killed_is_what_failed_or_never_ended_of_what_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left(tmp_path, "calibration/ranges.py", 1, 3, -24, 36, 0, None, None)
    left(tmp_path, "runtime/images/decode.py", 1, 33)  # no test reaches the second
    assert mutants.main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["calibration/ranges.py", "7", "5", "4", "1", "80.0", "%"],
        ["runtime/images/decode.py", "2", "2", "1", "1", "50.0", "%"],
        ["all", "9", "7", "5", "2", "71.4", "%"],
    ]
    survivors = [line.split()[1] for line in lines if line.startswith("survived:")]
    assert survivors == ["ranges.py.x_f__mutmut_4", "decode.py.x_f__mutmut_1"]


def test_enough_are_killed(tmp_path: Path) -> None:
    left(tmp_path, "calibration/ranges.py", *[1] * 17, -6, 0, 0)  # a crash is noticed, too
    assert mutants.main(tmp_path) == 0
    left(tmp_path, "calibration/ranges.py", *[1] * 17, 0, 0, 0)
    assert mutants.main(tmp_path) == 1


@pytest.mark.parametrize("codes", [(), (None, None)])
def test_without_a_run_there_is_nothing_to_tell(codes: tuple[None, ...], tmp_path: Path) -> None:
    left(tmp_path, "calibration/ranges.py", *codes)
    if codes:
        assert mutants.main(tmp_path) == 1  # 0 of 0 is not enough
    else:
        with pytest.raises(FileNotFoundError, match="run make mutants"):
            mutants.main(tmp_path)
