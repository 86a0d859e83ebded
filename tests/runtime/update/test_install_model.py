"""Installing models, hostile ones among them: the current one changes only for one that passes everything."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import set_external_data
from PIL import Image

from runtime import ArtifactError, Classifier
from runtime.command.locking import only_writer
from runtime.devices import DEVICES
from runtime.model_file.artifact import choose_model_file
from runtime.model_file.integrity import DATA_KEY
from runtime.update.folder import list_numbers, read_journal, read_status
from runtime.update.signature import sign_model
from tests.support.changed_models import mirror_weights
from tests.support.self_tests import change_model

from .conftest import Run, WriteModel

RED = np.full((40, 30, 3), (250, 10, 10), np.uint8)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def list_names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_file_for_an_npu_keeps_the_name_by_which_the_npu_is_given_it(
    write_model: WriteModel, folder: Path, run: Run
) -> None:
    new = write_model("new.onnx", variant="int8", target="npu")
    code, said = run("install", new, "--into", folder, "--device", "cpu")
    assert code == 0, said
    assert list_names(folder / "1") == ["model.npu.onnx"]
    assert choose_model_file(folder, DEVICES["qnn"].variants) == folder / "1" / "model.npu.onnx"
    assert run("status", folder)[0] == 0


def test_install_update_and_roll_back(write_model: WriteModel, folder: Path, run: Run) -> None:
    assert run("status", folder)[0] == 1
    for number, gain in enumerate((0.1, 0.2, 0.3), 1):
        code, said = run("install", write_model(f"new{number}.onnx", gain=gain), "--into", folder)
        assert code == 0, said
        assert f"installed model {number}" in said
        assert "self-test on cpu: passed" in said
    assert list_numbers(folder) == [2, 3]  # the last one stays, older ones do not
    assert list_names(folder) == ["2", "3", "current", "journal.jsonl"]
    code, said = run("status", folder, "--json")
    status = json.loads(said)
    assert (code, status["current"]["model"], status["previous"]) == (0, 3, 2)
    classify = Classifier(folder)
    assert classify(RED).label == "red"
    assert status["current"]["sha256"] == classify.info.sha256
    assert status["current"]["file"] == classify.info.path

    assert "is installed already" in run("install", write_model("new3.onnx", gain=0.3), "--into", folder)[1]
    code, said = run("rollback", folder)
    assert (code, "back at model 2" in said) == (0, True)
    assert classify.newer()
    assert classify.reload()
    assert Path(str(classify.info.path)).parent.name == "2"
    assert run("rollback", folder)[0] == 2  # none is before
    code, said = run("install", write_model("new3.onnx", gain=0.3), "--into", folder)
    assert (code, "was installed and rolled back" in said) == (2, True)
    code, said = run("install", write_model("new4.onnx", gain=0.4), "--into", folder)
    assert "installed model 4" in said  # no number is used twice
    events = [(each["event"], each["model"], each["before"]) for each in read_journal(folder)]
    assert events == [
        ("install", 1, None),
        ("install", 2, 1),
        ("install", 3, 2),
        ("rollback", 2, 3),
        ("install", 4, 2),
    ]


def test_the_python_of_the_guide(
    write_model: WriteModel, folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = Path(__file__).parents[3] / "docs" / "guides" / "update.md"
    run("install", write_model(), "--into", folder)
    Image.new("RGB", (40, 30), (250, 10, 10)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    said: list[object] = []
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        exec(compile(block, str(page), "exec"), {"print": said.append})
    assert said == ["red"]


def test_a_real_model_of_an_export(digits_artifacts: Path, folder: Path, run: Run) -> None:
    code, said = run("install", digits_artifacts, "--into", folder)
    assert code == 0, said
    assert list_names(folder / "1") == ["model.int8.onnx"]
    assert Classifier(folder).check().passed


# --- Hostile updates ---

Change = Callable[[Path], object]


def flip_bit(model: Path) -> None:
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 4
    model.write_bytes(data)


def replace_by_link(model: Path) -> None:
    other = model.with_name("elsewhere.onnx")
    model.rename(other)
    model.symlink_to(other)


def replace_by_pipe(model: Path) -> None:
    model.unlink()
    os.mkfifo(model)


def announce_four_gigabytes(model: Path) -> None:
    with model.open("r+b") as file:
        file.truncate(2**32)


def put_weights_beside(model: Path, size: int | None = None) -> None:
    """Move the weights into a second file of right content; `size` is announced in its place."""
    proto = onnx.load(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            set_external_data(tensor, location="model.data")
    onnx.save(proto, model)
    data = (model.parent / "model.data").read_bytes()
    entry = dict(file="model.data", bytes=size or len(data), sha256=hashlib.sha256(data).hexdigest())
    proto = onnx.load(model, load_external_data=False)
    proto.metadata_props.add(key=DATA_KEY, value=json.dumps(entry))
    document = next(each for each in proto.metadata_props if each.key == "vit_edge")
    document.value = json.dumps({**json.loads(document.value), "digest": None})
    del proto.metadata_props[[each.key for each in proto.metadata_props].index("vit_edge_sha256")]
    model.write_bytes(proto.SerializeToString())
    if size:
        with (model.parent / "model.data").open("r+b") as file:
            file.truncate(size)


def announce_four_gigabytes_beside(model: Path) -> None:
    put_weights_beside(model, 2**32)


def link_weights(model: Path) -> None:
    put_weights_beside(model)
    replace_by_link(model.with_name("model.data"))


def leave_folder(model: Path) -> None:
    put_weights_beside(model)
    proto = onnx.load(model, load_external_data=False)
    for entry in proto.metadata_props:
        if entry.key == DATA_KEY:
            entry.value = entry.value.replace("model.data", "../model.data")
    model.write_bytes(proto.SerializeToString())


def break_self_test(model: Path) -> None:
    mirror_weights(model, model)


def remove_self_test(model: Path) -> None:
    def remove(proto: onnx.ModelProto) -> None:
        del proto.metadata_props[[each.key for each in proto.metadata_props].index("vit_edge_self_test")]

    change_model(model, remove)


HOSTILE: list[tuple[Change, str]] = [
    (flip_bit, "copy it again|damaged"),
    (replace_by_link, "expected a file, found a link"),
    (replace_by_pipe, "expected a file, found a pipe"),
    (announce_four_gigabytes, "4,294,967,296 bytes, above the limit"),
    (announce_four_gigabytes_beside, "4,294,967,296 bytes, above the limit"),
    (link_weights, r"model\.data: it cannot be read: expected a file, found a link"),
    (leave_folder, "expected the one file beside it"),
    (break_self_test, "refused by its self-test on cpu: "),
    (remove_self_test, "no self-test in this file.*--untested accepts it"),
    (lambda model: model.write_bytes(b""), "not an ONNX model"),
    (lambda model: model.unlink(), "No such file"),
    (lambda model: model.write_bytes(os.urandom(10_000)), "not an ONNX model"),
]


@pytest.mark.parametrize(("change", "words"), HOSTILE)
def test_a_hostile_update_changes_nothing(
    change: Change, words: str, write_model: WriteModel, folder: Path, run: Run
) -> None:
    run("install", write_model("first.onnx"), "--into", folder)
    before = snapshot(folder)
    model = write_model("new/model.onnx", gain=0.2)
    change(model)
    code, said = run("install", model, "--into", folder)
    assert code == 2, said
    assert len(said.splitlines()) == 1, said
    assert re.search(words, said), said
    assert str(folder) not in said.split(": ")[1]  # the message names the file that was given, not the copy
    assert snapshot(folder) == before
    assert Classifier(folder)(RED).label == "red"
    assert read_status(folder)["current"]["model"] == 1


SIGNED: list[tuple[Change, str]] = [
    (flip_bit, "SHA-256 is not the expected one"),
    (lambda model: sign_model(model, model.parents[1] / "other.pem", 6), "not signed with the key"),
    (lambda model: sign_model(model, model.parents[1] / "key.pem", 4), "expected a version above 5, found 4"),
    (lambda model: sign_model(model, model.parents[1] / "key.pem"), "expected a version above 5, found none"),
    (lambda model: sign_model(model, model.parents[1] / "key.pem", 5), "found 5, too, of another model"),
    (lambda model: model.with_name("model.onnx.sig").unlink(), "expected its signature"),
    (lambda model: replace_by_link(model.with_name("model.onnx.sig")), "found a link"),
    (lambda model: announce_four_gigabytes(model.with_name("model.onnx.sig")), "above the limit"),
]


@pytest.mark.parametrize(("change", "words"), SIGNED)
def test_a_hostile_signed_update_changes_nothing(
    change: Change, words: str, write_model: WriteModel, folder: Path, run: Run, keys: Path, tmp_path: Path
) -> None:
    for key in keys.iterdir():
        shutil.copy(key, tmp_path)
    public = tmp_path / "public.pem"
    first = write_model("first.onnx")
    sign_model(first, tmp_path / "key.pem", 5)
    assert run("install", first, "--into", folder, "--key", public)[0] == 0
    before = snapshot(folder)
    model = write_model("new/model.onnx", gain=0.2)
    sign_model(model, tmp_path / "key.pem", 6)
    change(model)
    code, said = run("install", model, "--into", folder, "--key", public)
    assert (code, len(said.splitlines())) == (2, 1), said
    assert re.search(words, said), said
    assert snapshot(folder) == before
    assert Classifier(folder, key=public)(RED).label == "red"
    assert read_status(folder)["current"]["version"] == 5


def test_the_signature_is_of_the_copy(
    write_model: WriteModel, folder: Path, run: Run, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced after it was copied is not the one that is installed."""
    from runtime.update import install

    model = write_model("new/model.onnx")
    signed = sign_model(model, keys / "key.pem", 1)
    real = install.read_signature

    def replace_first(*words: Any) -> Any:
        write_model("new/model.onnx", gain=0.9)
        return real(*words)

    monkeypatch.setattr(install, "read_signature", replace_first)
    assert run("install", model, "--into", folder, "--key", keys / "public.pem")[0] == 0
    assert Classifier(folder).info.sha256 == signed.sha256


# --- What is accepted when it is asked for ---


def test_other_labels_need_a_word(write_model: WriteModel, folder: Path, run: Run) -> None:
    run("install", write_model(), "--into", folder)
    others = write_model("new.onnx", labels=("rot", "green", "blau"))
    code, said = run("install", others, "--into", folder)
    assert (code, "other labels (2 new, 2 gone)" in said) == (2, True)
    turned = write_model("turned.onnx", labels=("blue", "green", "red"))
    code, said = run("install", turned, "--into", folder)
    assert (code, "the same labels in another order" in said) == (2, True)
    assert run("install", others, "--into", folder, "--labels-changed")[0] == 0
    assert Classifier(folder)(RED).label == "rot"


def test_a_smaller_version_and_no_self_test_need_a_word(
    write_model: WriteModel, folder: Path, run: Run, keys: Path
) -> None:
    model = write_model()
    sign_model(model, keys / "key.pem", 5)
    assert run("install", model, "--into", folder)[0] == 0  # its signature is kept, though nobody asked
    assert Classifier(folder, key=keys / "public.pem").info.path
    older = write_model("new.onnx", gain=0.2, self_test=False)
    sign_model(older, keys / "key.pem", 4)
    words = ("install", older, "--into", folder, "--key", keys / "public.pem", "--downgrade")
    assert "--untested accepts it" in run(*words)[1]
    assert run(*words, "--untested")[0] == 0
    assert read_status(folder)["current"]["version"] == 4


def test_weights_in_a_second_file_are_installed_and_signed(
    write_model: WriteModel, folder: Path, run: Run, keys: Path
) -> None:
    model = write_model("new/model.onnx")
    put_weights_beside(model)
    sign_model(model, keys / "key.pem", 1)
    code, said = run("install", model, "--into", folder, "--key", keys / "public.pem")
    assert code == 0, said
    assert list_names(folder / "1") == ["model.data", "model.onnx", "model.onnx.sig"]
    assert Classifier(folder, key=keys / "public.pem")(RED).label == "red"


def test_a_limit_on_the_bytes(write_model: WriteModel, folder: Path, run: Run, monkeypatch: Any) -> None:
    model = write_model()
    with model.open("ab") as file:
        file.truncate(3 * 2**20)
    assert "above the limit (2,097,152" in run("install", model, "--into", folder, "--max-mb", 2)[1]
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(1, 1, 1000))
    code, said = run("install", write_model(), "--into", folder)
    assert (code, "1,000 are free" in said) == (1, True)


# --- The folder ---


def test_folders_of_others_are_left_alone(write_model: WriteModel, folder: Path, run: Run) -> None:
    """A folder of images with numbers for classes, named by mistake."""
    for name in ("0", "1", "7"):
        (folder / name).mkdir(parents=True)
        (folder / name / "photo.jpg").write_bytes(b"x")
    run("install", write_model(), "--into", folder)
    run("install", write_model("new.onnx", gain=0.2), "--into", folder)
    assert all((folder / name / "photo.jpg").exists() for name in ("0", "1", "7"))


def test_a_damaged_pointer_is_said_and_repaired(write_model: WriteModel, folder: Path, run: Run) -> None:
    run("install", write_model(), "--into", folder)
    run("install", write_model("new.onnx", gain=0.2), "--into", folder)
    (folder / "current").write_text("")
    with pytest.raises(ArtifactError, match=r"expected the number of a model, found b''; vit-edge rollback"):
        Classifier(folder)
    assert run("status", folder)[0] == 1
    assert run("rollback", folder)[0] == 0
    assert read_status(folder)["current"]["model"] == 2
    (folder / "current").write_text("9" * 30)
    assert run("install", write_model("third.onnx", gain=0.3), "--into", folder)[0] == 0
    assert list_numbers(folder) == [2, 3]


def test_a_damaged_model_is_replaced_and_not_rolled_back_to(
    write_model: WriteModel, folder: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for number, gain in enumerate((0.1, 0.2), 1):
        run("install", write_model(f"{number}.onnx", gain=gain), "--into", folder)
    flip_bit(folder / "1" / "model.onnx")
    code, said = run("rollback", folder)
    assert (code, "model 1 is damaged" in said) == (2, True)
    flip_bit(folder / "2" / "model.onnx")
    assert run("status", folder)[0] == 1
    assert run("install", write_model("3.onnx", gain=0.3), "--into", folder)[0] == 0
    assert "nothing is compared with it" in caplog.text


def test_one_installer_at_a_time(write_model: WriteModel, folder: Path, run: Run) -> None:
    run("install", write_model(), "--into", folder)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with only_writer(folder):
            entered.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(30)
    try:
        code, said = run("rollback", folder)
        assert (code, "another process is writing to it" in said) == (2, True)
    finally:
        leave.set()
        thread.join()


def test_temporary_files_stay_in_the_folder(
    write_model: WriteModel, folder: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device whose only writable folder is this one."""
    model = write_model()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert run("install", model, "--into", folder)[0] == 0


def test_the_journal_is_bounded_and_survives_an_editor(
    write_model: WriteModel, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.update import folder as models

    monkeypatch.setattr(models, "_MOST_LINES", 3)
    for number, gain in enumerate((0.1, 0.2, 0.3, 0.4), 1):
        run("install", write_model(f"{number}.onnx", gain=gain), "--into", folder)
        with (folder / "journal.jsonl").open("a") as file:
            file.write('["no object"]\n{"cut')
    assert [each["model"] for each in read_journal(folder)] == [2, 3, 4]


def test_a_folder_of_an_export_stays_one(write_model: WriteModel, tmp_path: Path) -> None:
    model = write_model("out/model.onnx")
    assert choose_model_file(tmp_path / "out") == model
    classify = Classifier(tmp_path / "out")
    for ask in (classify.newer, classify.reload):
        with pytest.raises(ArtifactError, match="expected a model in a folder that vit-edge install made"):
            ask()
