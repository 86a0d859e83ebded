"""Which model of a folder is the current one: the file `current`, which `vit-edge install` writes.

Such a folder has one folder per model, named by its number, and the file `current` with the number of the
model to use.
"""

from __future__ import annotations

from pathlib import Path

from .metadata import ArtifactError

CURRENT = "current"
_LONGEST = 9  # digits


def read_current(folder: Path) -> int | None:
    """Return the number of the current model; None in a folder without the file, and for what is no folder.

    Args:
        folder: what `vit-edge install` wrote to, or any path.

    Raises:
        ArtifactError: when the file is damaged or cannot be read.
    """
    path = folder / CURRENT
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST + 2)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ArtifactError(f"{path}: it cannot be read: {error.strerror or error}") from error
    if not 0 < len(digits := text.removesuffix(b"\n")) <= _LONGEST or not digits.isdigit():
        raise ArtifactError(
            f"{path}: expected the number of a model, found {text!r}; vit-edge rollback {folder} repairs it"
        )
    return int(digits)


def expect_installed(source: str | bytes) -> tuple[Path, int]:
    """Return the folder of `vit-edge install` that a model file is in, and the number of the model.

    Args:
        source: the path of the model file; or its bytes, which are in no folder.

    Raises:
        ArtifactError: when it is in no such folder.
    """
    home = None if isinstance(source, bytes) else Path(source).parent
    if home is None or not home.name.isdecimal() or read_current(home.parent) is None:
        name = "the model" if isinstance(source, bytes) else source
        raise ArtifactError(f"{name}: expected a model in a folder that vit-edge install made, found another")
    return home.parent, int(home.name)
