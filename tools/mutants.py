"""Tell how many mutants the tests killed, by module, from what `mutmut run` left in `mutants/`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

# Exit codes of pytest, of a crash (SIGABRT, SIGSEGV), and of mutmut.
KILLED, SURVIVED, NO_TESTS = (1, 3, -6, -11), 0, (5, 33)
TIMED_OUT = (-24, 24, 36, 152, 255)
LEAST = 90.0  # % killed


def status(code: int | None) -> str:
    """Return the fate of a mutant, from the exit code of its tests."""
    if code is None:
        return "not run"
    if code in KILLED or code in TIMED_OUT:  # a mutant that never ends is noticed as well
        return "killed"
    return "survived" if code == SURVIVED or code in NO_TESTS else "other"


def read(folder: Path) -> dict[str, dict[str, str]]:
    """By module, each mutant's name and status.

    Raises:
        FileNotFoundError: when no run left anything in `folder`.
    """
    found = {}
    for path in sorted(folder.rglob("*.py.meta")):
        codes = json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"]
        found[str(path.relative_to(folder)).removesuffix(".meta")] = {
            name: status(code) for name, code in codes.items()
        }
    if not any(found.values()):
        raise FileNotFoundError(f"expected results of a run in {folder}, found none; run make mutants")
    return found


def table(found: dict[str, dict[str, str]]) -> tuple[list[str], float]:
    """The lines to print, and the share of killed mutants of those that ran, in percent."""
    lines = [f"{'module':26}{'mutants':>9}{'run':>7}{'killed':>8}{'survived':>10}{'killed':>10}"]
    total: Counter[str] = Counter()
    for name, mutants in [*found.items(), ("all", {})]:
        counts = Counter(mutants.values()) if mutants else total
        if name != "all":
            total += counts
        ran = counts.total() - counts["not run"]
        share = f"{100 * counts['killed'] / ran:.1f} %" if ran else "–"
        killed = counts["killed"]
        lines.append(f"{name:26}{counts.total():>9}{ran:>7}{killed:>8}{ran - killed:>10}{share:>10}")
    ran = total.total() - total["not run"]
    return lines, 100 * total["killed"] / ran if ran else 0.0


def main(folder: Path = Path("mutants")) -> int:
    """Print the table and the survivors; 1 when too few mutants were killed."""
    found = read(folder)
    lines, share = table(found)
    print("\n".join(lines))
    left = ("survived", "other")
    survivors = [name for mutants in found.values() for name, each in mutants.items() if each in left]
    print("".join(f"\nsurvived: {name}" for name in survivors))
    print("python -m mutmut show NAME prints the change; docs/reference/mutants.md says why some are left")
    return int(share < LEAST)


if __name__ == "__main__":
    sys.exit(main())
