"""Install a model into a folder: copy it aside, check the copy, test it on this device, switch; go back."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..command.locking import only_writer
from ..devices import DEVICES, Device, DeviceOptions
from ..images.find_images import is_folder
from ..interrupts import raise_on_signal
from ..model_file.artifact import FILE_NAMES, ArtifactError, choose_model_file, read_artifact
from ..model_file.integrity import open_regular_file
from ..self_test.check import DeviceCheck, check_model
from ..session import devices_for
from ..writing import DiskError, explain_output_errors, remove_leftovers, sync_folder, temporary_folder
from . import folder as models
from .signature import MAX_BYTES, read_signature, signature_path

_log = logging.getLogger(__name__)
_SPARE = 2**20  # bytes that stay free: `current` and the journal


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Conditions that a new model has to meet."""

    key: Path | None = None  # PEM file with the public key that must have signed it; None: unsigned will do
    downgrade: bool = False  # accept a smaller version
    labels_changed: bool = False  # accept other labels
    untested: bool = False  # accept a file without a self-test
    most: int = 2**31  # bytes of its files
    device: Device = "auto"  # that runs the self-test
    options: DeviceOptions = field(default_factory=DeviceOptions)


def install_model(new: Path, folder: Path, conditions: Conditions) -> str:
    """Install a model, if it meets the conditions and passes its self-test on this device.

    A kill at any moment leaves the model before or the new one.

    Args:
        new: the .onnx file, or a folder of them, of which that for the device is taken.
        folder: the folder of models; it is made if it is missing.
        conditions: what is asked of the model.

    Returns:
        What was done, as one line.

    Raises:
        ArtifactError: when the model is refused; the current one is untouched.
        DeviceError: when the device is not available.
        OutputError: when the folder cannot be written to, or another process does.
    """
    source = choose_model_file(new, DEVICES[devices_for(conditions.device)[0]].variants)
    with raise_on_signal(), only_writer(folder), explain_output_errors(folder):
        remove_leftovers(folder)
        models.remove_others(folder, models.list_kept(folder))
        with temporary_folder(folder) as aside:
            place = aside / "model"
            place.mkdir()
            try:
                model, key = _copy_model(source, place, conditions)
                if _is_installed(source, model, folder, conditions):
                    return f"{folder}: {model.describe()} is installed already"
                check = _check(model.file, aside, conditions)
            except ArtifactError as error:  # it names the copy
                raise ArtifactError(str(error).replace(str(place), str(source.parent))) from error
            number = models.choose_number(folder)
            sync_folder(place)
            place.rename(folder / str(number))
            sync_folder(folder)
        facts = {"sha256": model.artifact.sha256, "version": model.version or None, "key": key}
        models.switch(folder, number, "install", **facts, device=check.device, self_test=check.verdict)
        models.remove_others(folder, models.list_kept(folder))
    tested = f"self-test on {check.device}: {check.verdict}"
    return f"{folder}: installed model {number} ({model.describe()}); {tested}"


def roll_back(folder: Path) -> str:
    """Make the model before the current one current again; where `current` is damaged, the last one.

    Args:
        folder: the folder of models.

    Returns:
        What was done, as one line.

    Raises:
        ArtifactError: when there is none that is whole.
        OutputError: when the folder cannot be written to, or another process does.
    """
    if not is_folder(folder):
        raise ArtifactError(f"{folder}: no such folder; give the one that vit-edge install wrote to")
    with raise_on_signal(), only_writer(folder), explain_output_errors(folder):
        current, damage = models.find_current(folder), ""
        for number in reversed(models.list_numbers(folder)):
            if current is not None and number >= current:
                continue
            try:
                model = models.read_installed(folder, number)
            except ArtifactError as error:
                damage = f"; model {number} is damaged: {error}"
                continue
            models.switch(folder, number, "rollback", sha256=model.artifact.sha256)
            return f"{folder}: back at model {number} ({model.describe()}){damage}"
        raise ArtifactError(f"{folder}: no model before the current one{damage}; install one")


# --- The copy ---


def _copy_model(source: Path, place: Path, conditions: Conditions) -> tuple[models.Model, str | None]:
    """Copy a model file, its signature and its second file; return the copy, and the key that signed it.

    The signature is compared with the copy before anything else reads it.
    """
    copy = place / source.name
    size, signature = _copy(source, copy, conditions.most), None
    if os.path.lexists(signature_path(source)):
        _copy(signature_path(source), signature_path(copy), MAX_BYTES)
    if conditions.key is not None or signature_path(copy).exists():
        signature = read_signature(copy, conditions.key)
    artifact = read_artifact(copy, sha256=None if signature is None else signature.sha256, alone=True)
    file = place / FILE_NAMES[artifact.metadata.file_kind]
    copy.rename(file)
    if signature is not None:
        signature_path(copy).rename(signature_path(file))
    if artifact.data_file is not None:
        if os.path.lexists(place / artifact.data_file):
            raise ArtifactError(f"{source}: its second file is called {artifact.data_file}; export it again")
        _copy(source.with_name(artifact.data_file), place / artifact.data_file, conditions.most - size)
    return models.read_model(file), None if signature is None else signature.key


def _copy(source: Path, target: Path, most: int) -> int:
    """Copy a regular file to the disk, no link, and return its bytes, at most `most`."""
    try:
        file = open_regular_file(source, links=False)
    except OSError as error:
        raise ArtifactError(f"{source}: it cannot be read: {error.strerror or error}") from error
    with file, target.open("xb") as copy:
        size = left = os.fstat(file.fileno()).st_size
        if size > most:
            raise ArtifactError(f"{source}: {size:,} bytes, above the limit ({most:,}; --max-mb raises it)")
        if (free := shutil.disk_usage(target.parent).free) < size + _SPARE:
            raise DiskError(f"{target.parents[2]}: {size + _SPARE:,} bytes are needed, {free:,} are free")
        while left and (chunk := file.read(min(left, _SPARE))):
            copy.write(chunk)
            left -= len(chunk)
        if left:
            raise ArtifactError(f"{source}: it was cut while it was copied; install it again")
        copy.flush()
        os.fsync(copy.fileno())
    return size


# --- The conditions ---


def _is_installed(source: Path, new: models.Model, folder: Path, conditions: Conditions) -> bool:
    """Return whether a model is the current one; refuse one that may not follow the current one."""
    current = models.find_current(folder)
    if current is None:
        return False
    try:
        old = models.read_installed(folder, current)
    except ArtifactError as error:
        _log.warning("the current model is damaged, so nothing is compared with it: %s", error)
        return False
    sha256 = new.artifact.sha256
    if (sha256, new.signature) == (old.artifact.sha256, old.signature):
        return True
    if 0 < new.version == old.version and sha256 != old.artifact.sha256:
        raise ArtifactError(
            f"{source}: expected a version above that of the installed model, found {new.version}, too, of "
            f"another model; sign it with --version {new.version + 1}"
        )
    if not conditions.downgrade and new.version < old.version:
        found = new.version or "none"
        raise ArtifactError(
            f"{source}: expected a version above {old.version}, found {found}; --downgrade accepts it"
        )
    if not conditions.downgrade and sha256 in models.list_rolled_back(folder):
        raise ArtifactError(f"{source}: this model was installed and rolled back; --downgrade accepts it")
    one, other = new.artifact.metadata, old.artifact.metadata
    if (one.labels, one.embedding) != (other.labels, other.embedding) and not conditions.labels_changed:
        raise ArtifactError(
            f"{source}: {_describe_outputs(one.labels, other.labels)} than the installed model; "
            "--labels-changed accepts it"
        )
    return False


def _describe_outputs(new: tuple[str, ...], old: tuple[str, ...]) -> str:
    if new == old:
        return "an embedding of another length"
    if sorted(new) == sorted(old):
        return "the same labels in another order"
    return f"other labels ({len(set(new) - set(old))} new, {len(set(old) - set(new))} gone)"


def _check(file: Path, scratch: Path, conditions: Conditions) -> DeviceCheck:
    """Run the self-test on this device; refuse a model that fails it, and one without, unless accepted."""
    check = check_model(
        file, device=conditions.device, options=conditions.options, baseline=1, scratch=scratch
    )
    none = check.fault == "no self-test"
    if check.passed or (none and conditions.untested):
        return check
    todo = "; --untested accepts it" if none else ""
    raise ArtifactError(f"{file}: refused by its self-test on {check.device}: {check.verdict}{todo}")
