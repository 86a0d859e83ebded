"""Names of the Hugging Face hub, against a hub on loopback and then from its cache.

The commands run as a user runs them: huggingface_hub reads its variables when it is imported.
"""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.hub_server import COMMIT, TOKEN, Hub, serve_hub
from tests.vit.pretrained.test_load import CLASSES, HEADS, SIZE, TIMM, hugging_face_vit, tensors
from vit.checkpoint import load_checkpoint
from vit.pretrained import import_model
from vit.pretrained.hub import describe_download, find_snapshot, name_snapshot

NEW = "f" * 40
NEEDED = ["config.json", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Repositories as people publish them."""
    base = tmp_path_factory.mktemp("published")
    folders = {name: base / name for name in ("both", "new", "pickled", "shards", "timm", "other", "odd")}
    theirs = hugging_face_vit(folders["both"])
    torch.save(theirs.state_dict(), folders["both"] / "pytorch_model.bin")
    (folders["both"] / "README.md").write_text("a model\n")
    (folders["both"] / "onnx").mkdir()
    (folders["both"] / "onnx" / "model.onnx").write_bytes(b"no weights of PyTorch")
    shutil.copytree(folders["both"], folders["pickled"])
    (folders["pickled"] / "model.safetensors").unlink()
    theirs.classifier.bias.data += 1
    shutil.copytree(folders["pickled"], folders["shards"])
    theirs.save_pretrained(folders["shards"], max_shard_size="30KB")
    shutil.copytree(folders["both"], folders["new"])
    theirs.save_pretrained(folders["new"])
    for name in ("timm", "other", "odd"):
        folders[name].mkdir()
    save_file(tensors(**TIMM), folders["timm"] / "model.safetensors")
    view = {"input_size": [3, SIZE, SIZE], "crop_pct": 0.75, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    document = {"architecture": "vit_x", "num_classes": CLASSES, "model_args": {"num_heads": HEADS}}
    (folders["timm"] / "config.json").write_text(json.dumps(document | {"pretrained_cfg": view}))
    (folders["other"] / "tf_model.h5").write_bytes(b"Keras")
    for name in ("a", "b"):
        save_file(tensors(**TIMM), folders["odd"] / f"{name}.safetensors")
    return folders


@pytest.fixture
def hub(published: dict[str, Path]) -> Iterator[Hub]:
    with serve_hub() as hub:
        for name, folder in published.items():
            hub.add(f"google/{name}", folder)
        yield hub


def expect_done(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stderr


def expect_all_done(results: list[tuple[int, str]]) -> list[str]:
    for code, said in results:
        assert code == 0, said
    return [said for _, said in results]


def same_model(one: Path, other: Path) -> bool:
    mine, theirs = load_checkpoint(one), import_model(other)
    first, second = mine.model.state_dict(), theirs.model.state_dict()
    return mine.labels == theirs.labels and all(torch.equal(first[name], second[name]) for name in second)


def test_by_name_and_then_from_the_cache(hub: Hub, published: dict[str, Path], tmp_path: Path) -> None:
    line = ("-m", "vit", "import", "google/both")
    said = expect_done(hub.run(tmp_path, *line, "--out", "one"))
    name = f"hf:google/both@{COMMIT}"
    assert said.startswith(f"hub: {name}: config.json, preprocessor_config.json, model.safetensors\n")
    assert len(said.splitlines()) == 2  # that line, and what was imported
    assert hub.downloads() == [*NEEDED, "model.safetensors"]
    assert same_model(tmp_path / "one", published["both"])
    assert load_checkpoint(tmp_path / "one").recipe["source"] == name
    # Neither other packages nor the program that runs it are told, and no list of such programs is asked for.
    assert all(re.fullmatch(r"unknown/None; hf_hub/\S+; python/\S+", each) for each in hub.agents)

    said = expect_done(hub.run(tmp_path, *line, "--out", "two", HF_HUB_OFFLINE="1"))
    assert "; of the cache alone, since HF_HUB_OFFLINE is set\n" in said
    assert not hub.requests
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9"}  # the port that discards
    said = expect_done(hub.run(tmp_path, *line, "--out", "three", **nobody))
    assert "; of the cache alone, since http://127.0.0.1:9 cannot be reached (" in said
    for out in ("two", "three"):
        assert same_model(tmp_path / out, published["both"])
        assert load_checkpoint(tmp_path / out).recipe["source"] == name

    ((code, said),) = hub.run_several(tmp_path, [("vit", "import", "hf:a/b", "--out", "x")], **nobody)
    assert (code, len(said.splitlines())) == (1, 1)
    assert "127.0.0.1:9 cannot be reached" in said
    assert "does not have revision main; run it once with a connection to the hub" in said


FILES = {
    "hf:google/pickled": [*NEEDED, "pytorch_model.bin"],
    "hf:google/timm": ["config.json", "model.safetensors"],
    "google/shards": [
        *NEEDED,
        "model.safetensors.index.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    ],
    "hf:google/both/pytorch_model.bin": [*NEEDED, "pytorch_model.bin"],
}


def test_files(hub: Hub, published: dict[str, Path], tmp_path: Path) -> None:
    """A .bin where there are no safetensors, timm's layout, shards with their index, and one file by name."""
    lines = [("vit", "import", name, "--out", f"run-{index}") for index, name in enumerate(FILES)]
    expect_all_done(hub.run_several(tmp_path, lines))
    assert hub.downloads() == [file for files in FILES.values() for file in files]
    for index, name in enumerate(FILES):
        assert same_model(tmp_path / f"run-{index}", published[name.split("/")[1]])


def test_revisions(hub: Hub, published: dict[str, Path], tmp_path: Path) -> None:
    hub.add("google/both", published["new"], revision="refs/pr/7", commit=NEW)
    revisions = {"refs/pr/7": "new", NEW: "new", "main": "both", COMMIT: "both"}
    lines = [
        ("vit", "import", f"hf:google/both@{revision}", "--out", f"run-{index}")
        for index, revision in enumerate(revisions)
    ]
    for offline in ("0", "1"):
        expect_all_done(hub.run_several(tmp_path, lines, HF_HUB_OFFLINE=offline))
        for index, folder in enumerate(revisions.values()):
            run = tmp_path / f"run-{index}"
            assert same_model(run, published[folder])
            commit = NEW if folder == "new" else COMMIT
            assert load_checkpoint(run).recipe["source"] == f"hf:google/both@{commit}"


def test_a_path_that_exists_wins(hub: Hub, published: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(published["new"], tmp_path / "google" / "both")
    lines = [
        ("vit", "import", "google/both", "--out", "local"),
        ("vit", "import", "google/timm", "--out", "x"),  # a folder `google` is here: a path that was mistyped
        ("vit", "import", "weights/vit.pth", "--out", "x"),
        ("export", "google/timm"),  # where the source is a run in general, a name has its prefix
        ("vit", "train", "--data", "digits", "--from", "google/timm", "--out", "x"),
    ]
    done, *wrong = hub.run_several(tmp_path, lines)
    assert done[0] == 0
    assert same_model(tmp_path / "local", published["new"])
    for code, said in wrong:
        assert (code, len(said.splitlines())) == (2, 1)
        assert "no such folder or file" in said or "no checkpoint here" in said
    assert not hub.requests
    expect_done(hub.run(tmp_path, "-m", "vit", "import", "hf:google/both", "--out", "remote"))
    assert same_model(tmp_path / "remote", published["both"])


WRONG = [
    ("google/nothing", 2, "google/nothing (not here, so looked for on the hub): no such model at http://"),
    ("hf:google/both@gone", 2, "no revision gone in the repository; http://"),
    ("hf:google/both/vit.bin", 2, "expected vit.bin in the repository, found README.md, config.json"),
    ("hf:google/other", 2, "expected a file of weights in the repository, found tf_model.h5; name one: hf:"),
    ("hf:google/odd", 2, "found several: a.safetensors, b.safetensors; name one: hf:google/odd/FILE"),
    ("hf:google/evil", 2, "expected a file of weights in the repository, found no file"),
    ("hf:google/strange", 1, "expected the hash of a commit from the hub, found '../../x'"),
    ("hf:google/gated", 2, "access to the repository is restricted; accept its terms at http://"),
    *(
        (f"hf:{name}", 2, f"hf:{name}: expected hf:OWNER/NAME, with /FILE and @REVISION where they are")
        for name in ("google", "../both", "google/../both", "google/a--b", "google/both@../x", "google/x.git")
    ),
]


def test_errors_are_one_line(hub: Hub, published: dict[str, Path], tmp_path: Path) -> None:
    for name in ("gated", "evil", "strange"):
        hub.add(f"google/{name}", published["both"])
    hub.gated.add("google/gated")
    files = {"../model.safetensors": published["both"] / "model.safetensors"}
    hub.models["google/evil"]["main"] = (COMMIT, files)
    hub.models["google/strange"]["main"] = ("../../x", files)
    lines = [("vit", "import", name, "--out", "run") for name, _, _ in WRONG]
    results = hub.run_several(tmp_path, lines)
    for (name, expected, words), (code, said) in zip(WRONG, results, strict=True):
        assert (name, code, len(said.splitlines())) == (name, expected, 1), said
        assert words in said
    assert not hub.downloads()
    assert not (tmp_path / "run").exists()


def test_gated(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("google/both")
    line = ("vit", "import", "hf:google/both", "--out", "run")
    ((code, said),) = hub.run_several(tmp_path, [line], HF_TOKEN="hf_wrong")  # 403, and 401 without a token
    assert (code, len(said.splitlines())) == (2, 1)
    assert "access to the repository is restricted" in said
    hub.tokens.clear()
    expect_done(hub.run(tmp_path, "-m", *line, HF_TOKEN=TOKEN))
    assert hub.tokens == {("127.0.0.1", f"Bearer {TOKEN}")}


def test_a_hub_that_is_broken(hub: Hub, tmp_path: Path) -> None:
    answers = {
        "503 ": "answered 503; try again later, or set HF_HUB_OFFLINE=1 to take what the cache has",
        "403 ": "answered 403; check the token (HF_TOKEN, or hf auth login), or set HF_HUB_OFFLINE=1",
        "200 <html>a page": "does not answer as a hub (",
    }
    hub.broken = [(int(each[:3]), each[4:].encode()) for each in answers]
    lines = [("vit", "import", "hf:google/both", "--out", "run")] * len(answers)
    for words, (code, said) in zip(answers.values(), hub.run_several(tmp_path, lines), strict=True):
        assert (code, len(said.splitlines())) == (1, 1)
        assert words in said


def test_without_the_package(hub: Hub, tmp_path: Path) -> None:
    lines = [("vit", "import", "google/both", "--out", "x"), ("export", "--onnx", "hf:google/both")]
    for code, said in hub.run_several(tmp_path, lines, without=["huggingface_hub"]):
        assert code == 1
        assert "google/both" in said
        assert re.search(r": it needs huggingface_hub; .*python tools/install.py hub\n$", said)
    assert not hub.requests


def test_a_training_starts_from_a_name(hub: Hub, published: dict[str, Path], tmp_path: Path) -> None:
    from PIL import Image

    for index in range(12):
        path = tmp_path / "photos" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (20 * index, 9, 99)).save(path)
    line = ("vit", "train", "--data", "photos", "--preset", "probe", "--out")
    lines = [
        (*line, "hub", "--from", "hf:google/timm"),
        (*line, "folder", "--from", published["timm"]),
        ("vit", "import", published["timm"], "--out", "imported"),
        (*line, "two-steps", "--from", "imported"),
    ]
    said = expect_all_done(hub.run_several(tmp_path, lines))
    assert f"hub: hf:google/timm@{COMMIT}: " in said[0]
    assert "assumed, since the source does not say: " in said[0]
    # A checkpoint of this project on the hub is one there, too.
    hub.add("google/run", tmp_path / "imported")
    expect_all_done(hub.run_several(tmp_path, [(*line, "run", "--from", "hf:google/run")]))
    first = load_checkpoint(tmp_path / "hub")
    assert first.recipe["from_name"] == f"hf:google/timm@{COMMIT}"
    assert load_checkpoint(tmp_path / "run").recipe["from_name"] == f"hf:google/run@{COMMIT}"
    for out in ("folder", "two-steps", "run"):
        other = load_checkpoint(tmp_path / out).model.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in first.model.state_dict().items())


def test_progress_is_for_terminals(hub: Hub, tmp_path: Path) -> None:
    """The line of a step is shown while a file comes, and no bar of the library is drawn."""
    main, terminal = pty.openpty()
    termios.tcsetwinsize(main, (24, 100))  # without rows no bar is drawn
    line = [sys.executable, "-m", "vit", "import", "hf:google/both", "--out", "run"]
    with subprocess.Popen(
        line, cwd=tmp_path, env=hub.environment(tmp_path), stdout=subprocess.PIPE, stderr=terminal
    ) as process:
        os.close(terminal)
        said = b""
        while True:
            try:
                said += (read := os.read(main, 65536))
            except OSError:  # the other side has closed
                break
            if not read:
                break
    os.close(main)
    assert process.returncode == 0, said
    size = (tmp_path / "hub" / "hub").rglob("model.safetensors")
    total = f"{next(size).stat().st_size:,}"
    assert f"downloading model.safetensors of google/both: 0 of {total} bytes".encode() in said
    assert not re.search(rb"%\||B/s", said)


@pytest.mark.parametrize(
    ("path", "found", "name"),
    [
        (f"/c/models--google--vit/snapshots/{COMMIT}/onnx/model.onnx", f"hf:google/vit@{COMMIT}", "vit"),
        (f"/c/models--google--vit/snapshots/{COMMIT}", f"hf:google/vit@{COMMIT}", "vit"),
        ("/c/models--google--vit/blobs/1", "", ""),
        (f"/c/datasets--google--vit/snapshots/{COMMIT}", "", ""),
        ("model.onnx", "", ""),
    ],
)
def test_paths_of_the_cache(path: str, found: str, name: str) -> None:
    assert (find_snapshot(Path(path)), name_snapshot(Path(path))) == (found, name)
    assert describe_download(Path(path)) == ({"downloaded_from": found} if found else {})
    source: Any = f"hf:google/vit@{NEW}"
    assert describe_download(Path("run"), source) == {"downloaded_from": source}
    assert describe_download(Path("run"), "vit-base") == {}
