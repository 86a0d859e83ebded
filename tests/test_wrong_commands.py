"""Wrong command lines: one line, the right exit code, and nothing heavy imported before it is said."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

import export.command_line as export_command
import runtime.command_line as runtime_command
import vit.commands.main as vit_commands
from calibration.plan import LinearPlan, PlanError, QuantizationPlan
from runtime import Metadata, Preprocess, errors
from runtime.command.line import run_command
from tests.runtime.conftest import add_metadata, color_graph
from tools.expected_drift import random_checkpoint

# Runs every command line in one process; a heavy package ends the command line that imports it.
RUN_ALL = """
import contextlib, importlib, importlib.machinery, io, json, sys

class Heavy(BaseException):
    pass

class Loader:
    def create_module(self, spec):
        raise Heavy(spec.name)
    def exec_module(self, module):
        pass

class Finder:
    heavy = set()
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, Loader()) if name in self.heavy else None

sys.meta_path.insert(0, Finder())
found = []
for heavy, module, arguments in json.load(sys.stdin):
    Finder.heavy = set(heavy)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(module).main(arguments)
        except SystemExit as error:
            code = error.code
        except Heavy as error:
            code = f"imported {error}"
    found.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""
TRAINING = ("torch", "onnxscript", "transformers", "sklearn", "matplotlib.figure")
RUNTIME = ("onnxruntime", "torch", "pyarrow", "ray")

TRAIN = "train --data photos --out new"
EXPORT = "c.safetensors --quantize --calibration photos"
CLASSIFY = "m.onnx photos"
# Command, arguments, exit code, words of the line.
TABLE = [
    ("runtime", "", 2, "required: MODEL, IMAGES"),
    ("runtime", "m.onnx", 2, "required: IMAGES"),
    ("runtime", "nowhere.onnx photos", 2, "no such model file"),
    ("runtime", "photos/0/1.png photos", 2, "first the model, then the images"),
    ("runtime", "photos photos", 2, "no model in this folder"),
    ("runtime", "photo.jpg", 2, "expected a model and images, found an image alone"),
    ("runtime", "photo.jpg photos", 2, "first the model, then the images"),
    ("runtime", "words.txt photos", 2, "expected a model that python -m export made, found text"),
    ("runtime", "a.zip photos", 2, "found a ZIP archive"),
    ("runtime", "none.onnx photos", 2, "found an empty file"),
    ("runtime", "c.safetensors photos", 2, "export it first: python -m export c.safetensors"),
    ("runtime", "run photos", 2, "found the checkpoint of a run; export it first: python -m export run"),
    ("runtime", f"{CLASSIFY} --outptu l.csv", 2, "did you mean --output?"),
    ("runtime", "m.onnx nowhere", 2, "nowhere: no such image"),
    ("runtime", f"{CLASSIFY} --output nowhere/l.jsonl", 2, "no such folder"),
    ("runtime", f"{CLASSIFY} --output m.onnx --overwrite", 2, "it is an input"),
    ("runtime", f"{CLASSIFY} --output l.json", 2, "expected a name in .jsonl or .csv"),
    ("runtime", f"{CLASSIFY} --output l.parquet", 2, "expected a name in .jsonl or .csv"),
    (
        "runtime",
        f"{CLASSIFY} --output l.csv --format jsonl",
        2,
        "expected a name in .jsonl for --format jsonl",
    ),
    ("runtime", f"{CLASSIFY} --output l.JSONL --format csv", 2, "expected a name in .csv for --format csv"),
    ("runtime", f"{CLASSIFY} --output l.parquet --format csv", 2, "expected a name in .jsonl or .csv"),
    ("runtime", f"{CLASSIFY} --embeddings e.csv", 2, "ends in .npy or .parquet"),
    ("runtime", f"{CLASSIFY} --sort-into s.zip", 2, "expected the name of a folder"),
    ("runtime", f"{CLASSIFY} --output l.jsonl --resume --overwrite", 2, "found both"),
    ("runtime", f"{CLASSIFY} --resume", 2, "need --output"),
    ("runtime", f"{CLASSIFY} --top 0", 2, "whole number from 1"),
    ("runtime", f"{CLASSIFY} --workers many", 2, "whole number from 1"),
    ("runtime", f"{CLASSIFY} --max-pixels 0", 2, "whole number from 1"),
    ("runtime", f"{CLASSIFY} --min-score 2", 2, "a score from 0 to 1"),
    ("runtime", f"{CLASSIFY} --min-score nan", 2, "a score from 0 to 1"),
    ("runtime", f"{CLASSIFY} --device tpu", 2, "invalid choice: 'tpu'"),
    ("runtime", f"{CLASSIFY} --copy", 2, "needs --sort-into"),
    ("runtime", f"{CLASSIFY} --sort-into file", 2, "found a file"),
    ("runtime", f"{CLASSIFY} --sort-into photos", 2, "photos: its images would not be read"),
    ("runtime", f"{CLASSIFY} --null", 2, "add -"),
    ("runtime", f"{CLASSIFY} --sha256 abc", 2, "64 hexadecimal digits"),
    ("runtime", f"{CLASSIFY} --format parquet", 2, "needs --engine ray"),
    ("runtime", f"{CLASSIFY} --address a:1", 2, "needs --engine ray"),
    ("runtime", f"{CLASSIFY} --embeddings e.txt", 2, "ends in .npy or .parquet"),
    ("runtime", f"{CLASSIFY} --embeddings e.npy --output l.jsonl", 2, "labels nothing"),
    ("runtime", f"{CLASSIFY} --embeddings nowhere/e.npy", 2, "no such folder"),
    ("runtime", f"{CLASSIFY} --what", 2, "unrecognized arguments: --what"),
    ("vit_edge", "", 2, "required: COMMAND"),
    ("vit_edge", "fly", 2, "invalid choice: 'fly'"),
    ("vit_edge", "traim", 2, "did you mean train?"),
    ("vit_edge", "predict run photo.jpg", 2, "did you mean run?"),
    ("vit_edge", "train --data photos --epohs 3 --out new", 2, "did you mean --epochs?"),
    ("vit_edge", "train --data nowhere --out new", 2, "nowhere: no such file or folder"),
    ("vit_edge", "export c.safetensors --max-drift 1 --calibration photos", 2, "add --quantize"),
    ("vit", "", 2, "required: COMMAND"),
    ("vit", "fly", 2, "invalid choice: 'fly'"),
    ("vit", "sumary tiny", 2, "did you mean summary?"),
    ("vit", "predict run photo.jpg", 2, "python -m export RUN, then python -m runtime artifacts/RUN IMAGES"),
    ("vit", "quantize run", 2, "type python -m export"),
    ("vit", f"{TRAIN} --epohs 3", 2, "did you mean --epochs?; see python -m vit train --help"),
    ("vit", f"{TRAIN} --model tinny", 2, "did you mean tiny?"),
    ("vit", f"{TRAIN} --preset fintune", 2, "did you mean finetune?"),
    ("vit", f"{TRAIN} --set mixupp=1", 2, "did you mean mixup?"),
    ("vit", f"{TRAIN} --set mixup", 2, "found a name alone; write mixup=VALUE"),
    ("vit", f"{TRAIN} --dry", 2, "unrecognized arguments: --dry; see python -m vit train --help"),
    ("vit", "train --data digit --out new", 2, "did you mean digits?"),
    ("vit", "train --data fashion-mist --out new", 2, "did you mean fashion-mnist?"),
    ("vit", "summary tinny", 2, "did you mean tiny?"),
    ("vit_edge", "train --datas photos", 2, "vit: error: "),
    ("vit_edge", "export --quantizd", 2, "export: error: "),
    ("vit", f"{TRAIN} --preset finetune", 2, "give them with --from CHECKPOINT"),
    ("vit", "train --data photos --out run --preset finetune", 2, "give them with --from CHECKPOINT"),
    ("vit", "train --data photos --out run --set mixup=-1", 2, "mixup must be at least 0"),
    ("vit", "train --data photo.jpg --out new", 2, "with a folder per class, found a JPEG image"),
    ("vit", "train --data a.zip --out new", 2, "found a ZIP archive"),
    ("vit", "train --data c.safetensors --out run", 2, "found a safetensors file"),
    ("vit", f"{TRAIN} --from photo.jpg", 2, "photo.jpg: expected a checkpoint, found a JPEG image"),
    ("vit", f"{TRAIN} --from empty", 2, "empty is an empty folder, not that of a run"),
    ("vit", f"{TRAIN} --from model.int8.onnx", 2, "found an ONNX model; label images with it"),
    ("vit", f"{TRAIN} --teacher words.txt", 2, "expected a checkpoint, found text"),
    ("vit", "train --out new", 2, "required: --data"),
    ("vit", "train --data nowhere --out new", 2, "nowhere: no such file or folder"),
    ("vit", "train --data empty --out new", 2, "empty: "),
    ("vit", "train --data photos --out file", 2, "file: expected a folder to write to, found a file"),
    ("vit", "train --data photos --out file/below", 2, "file: expected a folder to write to, found a file"),
    ("vit", "train --data photos --out /proc/new", 2, "/proc/new: it cannot be written"),
    ("vit", "train --data photos --out model.safetensors", 2, "expected the name of a folder"),
    ("vit", "train --data photos --out run", 2, "a run is there already"),
    ("vit", f"{TRAIN} --resume", 2, "no state.safetensors to resume from"),
    ("vit", f"{TRAIN} --resume --overwrite", 2, "found both"),
    ("vit", f"{TRAIN} --epochs 0", 2, "whole number from 1"),
    ("vit", f"{TRAIN} --batch many", 2, "whole number from 1"),
    ("vit", f"{TRAIN} --lr 0", 2, "a number above 0"),
    ("vit", f"{TRAIN} --lr nan", 2, "a number above 0"),
    ("vit", f"{TRAIN} --seed=-1", 2, "whole number from 0"),
    ("vit", f"{TRAIN} --image-size 0", 2, "whole number from 1"),
    ("vit", f"{TRAIN} --image-size 33", 2, "multiple of patch_size 16; take 32x32 or 48x48"),
    ("vit", f"{TRAIN} --model gigantic", 2, "unknown size 'gigantic'"),
    ("vit", f"{TRAIN} --preset x", 2, "unknown preset 'x'"),
    ("vit", f"{TRAIN} --preset probe", 2, "give the backbone with --from"),
    ("vit", f"{TRAIN} --from nowhere", 2, "no checkpoint here"),
    ("vit", f"{TRAIN} --from cut.safetensors", 2, "not a complete safetensors file"),
    ("vit", f"{TRAIN} --from c.safetensors --model tiny", 2, "give one of them"),
    ("vit", f"{TRAIN} --teacher c.safetensors", 2, "the teacher's classes"),
    ("vit", f"{TRAIN} --set nonsense", 2, "expected NAME=VALUE"),
    ("vit", f"{TRAIN} --set batch=many", 2, "batch: expected a whole number, found 'many'"),
    ("vit", f"{TRAIN} --set flip=yes", 2, "flip: expected true or false, found 'yes'"),
    ("vit", f"{TRAIN} --set lr=inf", 2, "lr must be positive"),
    ("vit", f"{TRAIN} --set holdout=2", 2, "at least 0 and below 1"),
    ("vit", f"{TRAIN} --set smoothing=2", 2, "between 0 and 1"),
    ("vit", f"{TRAIN} --set holdout=1", 2, "holdout must be at least 0 and below 1"),
    ("vit", f"{TRAIN} --set beta2=1", 2, "beta2 must be at least 0 and below 1"),
    ("vit", f"{TRAIN} --set beta2=nan", 2, "beta2 must be at least 0 and below 1"),
    ("vit", f"{TRAIN} --set ema=1", 2, "ema must be at least 0 and below 1"),
    ("vit", f"{TRAIN} --set crop=2", 2, "crop must be above 0 and at most 1"),
    ("vit", f"{TRAIN} --set name=digits", 2, "a NAME among epochs, batch"),
    ("vit", f"{TRAIN} --seed 99999999999999999999", 2, "seed must be at least 0 and below 2^63"),
    ("vit", f"{TRAIN} --merge-tokens 99", 2, "merged tokens per block"),
    ("vit", "train --data photos --out photos/run", 2, "would be a class of it the next time"),
    ("vit", "train --data . --out photos/run", 2, "would be a class of it the next time"),
    (
        "vit",
        "train --data data/splits --out data/splits/train/run",
        2,
        "would be a class of it the next time",
    ),
    (
        "vit",
        "train --data data/splits --out data/splits/test/a/run",
        2,
        "would be a class of it the next time",
    ),
    (
        "vit",
        "train --data data/packed --out data/packed/my_test/run",
        2,
        "would be a class of it the next time",
    ),
    ("vit", "plots run --data photos --out photos/plots", 2, "would be a class of it the next time"),
    (
        "vit",
        "plots run --data data/splits --out data/splits/test/plots",
        2,
        "would be a class of it the next time",
    ),
    ("vit", f"{TRAIN} --device tpu", 2, "invalid choice: 'tpu'"),
    ("vit", "import nowhere --out new", 2, "nowhere: no such folder or file"),
    ("vit", "import empty --out new", 2, "expected one file of weights"),
    (
        "vit",
        "import page.bin --out new",
        2,
        "expected weights of PyTorch, found a web page; download the file again",
    ),
    ("vit", "import timm.bin --out file", 2, "found a file"),
    ("vit", "import timm.bin --out run", 2, "another model is there"),
    ("vit", "import photo.jpg --out new", 2, "expected weights of a model, found a JPEG image"),
    ("vit", "import timm.bin --out new", 2, "expected weights of a model, found text"),
    ("vit", "import c.safetensors --out new", 2, "found a checkpoint of vit-edge; use it as it is"),
    ("vit", "import run --out new", 2, "found a checkpoint of vit-edge; use it as it is"),
    ("vit", "import timm.bin --out new --labels photo.jpg", 2, "name of a class on each line, found a JPEG"),
    ("vit", "import timm.bin --out new --heads 0", 2, "whole number from 1"),
    ("vit", "import timm.bin --out new --activation tan", 2, "invalid choice: 'tan'"),
    ("vit", "import timm.bin --out new --labels nowhere", 2, "nowhere: no such file; give a text file with"),
    ("vit", "import timm.bin --out new --labels blank", 2, "found no line"),
    ("vit", "summary nowhere", 2, "or one of tiny, small, base, large, huge, found neither"),
    ("vit", "summary photo.jpg", 2, "photo.jpg: expected a checkpoint, found a JPEG image"),
    ("vit", "summary model.int8.onnx", 2, "found an ONNX model; label images with it (python -m runtime"),
    ("vit", "summary photos", 2, "photos is a folder, not that of a run"),
    ("vit", "plots page.bin", 2, "expected a checkpoint, found a web page"),
    ("vit", "plots nowhere", 2, "no checkpoint here"),
    ("vit", "plots c.safetensors --out file", 2, "found a file"),
    ("vit", "plots c.safetensors --data flowers", 2, "is not one of the model's 10 labels"),
    ("tools.digit_images", "--out d --count 999", 2, "expected 1 to 360"),
    ("tools.digit_images", "--out file", 2, "found a file"),
    ("export", "nowhere --calibration photos", 2, "nowhere: no checkpoint here"),
    ("export", "cut.safetensors --calibration photos", 2, "not a complete safetensors file"),
    ("export", "c.safetensors", 2, "add --calibration IMAGES"),
    ("export", "c.safetensors --calibration nowhere", 2, "nowhere: no such file or folder"),
    ("export", "c.safetensors --calibration empty", 2, "empty: no images here"),
    ("export", "c.safetensors --calibration flowers", 2, "is not one of the model's 10 labels"),
    ("export", f"{EXPORT} --evaluate nowhere", 2, "nowhere: no such file or folder"),
    ("export", f"{EXPORT} --evaluate photos", 2, "calibrates and measures"),
    ("export", f"{EXPORT} --out file", 2, "found a file"),
    ("export", f"{EXPORT} --out report.json", 2, "expected the name of a folder"),
    ("export", f"{EXPORT} --out /proc/new", 2, "it cannot be written"),
    ("export", f"{EXPORT} --keep-float blocks.9.mlp.fc2", 2, "no layer is called blocks.9.mlp.fc2"),
    ("export", f"{EXPORT} --keep-float head --keep-float tail", 2, "no layer is called tail"),
    ("export", "c.safetensors --calibration photos --keep-float head", 2, "add --quantize"),
    ("export", "c.safetensors --calibration photos --max-drift 1", 2, "add --quantize, --plan or --fp16"),
    ("export", f"{EXPORT} --plan other.json", 2, "with 74 linear layers, this model has 14"),
    ("export", f"{EXPORT} --plan nowhere", 2, "nowhere: no such file; give the plan.json of an export"),
    ("export", f"{EXPORT} --plan photos", 2, "photos: expected the plan.json of an export, found a folder"),
    ("export", f"{EXPORT} --plan blank", 2, "blank: expected a plan in JSON, found an empty file"),
    ("export", f"{EXPORT} --plan spec.json", 2, 'a JSON object with "format": "vit-edge plan"'),
    ("export", f"{EXPORT} --plan other.json --keep-float head", 2, "--plan brings one"),
    ("export", f"{EXPORT} --samples 0", 2, "whole number from 1"),
    ("export", f"{EXPORT} --threads many", 2, "whole number from 1"),
    ("export", f"{EXPORT} --max-drift nan", 2, "a number from 0 to 100"),
    ("export", f"{EXPORT} --max-drift=-1", 2, "a number from 0 to 100"),
    ("export", f"{EXPORT} --min-agreement 101", 2, "a number from 0 to 100"),
    ("export", f"{EXPORT} --min-cosine 2 --embedding", 2, "a number from -1 to 1"),
    ("export", f"{EXPORT} --min-cosine 0.9", 2, "add --embedding"),
    ("export", f"{EXPORT} --min-sqnr inf", 2, "expected a number"),
    ("export", "c.safetensors --quantize --calibration photos/0 --max-drift 1", 2, "needs known classes"),
    ("export", f"{EXPORT} --target z80", 2, "z80"),
    ("export", f"{EXPORT} --merge-tokens 99", 2, "can merge 1 to"),
    ("export", "--merge-tokens c.safetensors --calibration photos", 2, "behind the checkpoint"),
    ("export", "m.onnx --calibration photos", 2, "write --onnx m.onnx"),
    ("export", "photo.jpg --calibration photos", 2, "expected a checkpoint, found a JPEG image"),
    ("export", "model.int8.onnx --calibration photos", 2, "found the int8 file of an export; label images"),
    ("export", "--onnx model.int8.onnx --calibration photos", 2, "found the int8 file of an export"),
    ("export", "--onnx exported --preprocess spec.json", 2, "found the float32 file of an export; label"),
    ("export", "--onnx exported/model.onnx", 2, "or quantize the model that it was made from"),
    ("export", "--onnx nowhere.onnx --calibration photos", 2, "nowhere.onnx: no such file"),
    ("export", "--onnx photo.jpg --calibration photos", 2, "expected an ONNX model, found a JPEG image"),
    ("export", "--onnx words.txt --calibration photos", 2, "expected an ONNX model, found text"),
    ("export", "--onnx none.onnx --calibration photos", 2, "expected an ONNX model, found an empty file"),
    ("export", "--onnx c.safetensors --calibration photos", 2, "found a safetensors file; leave --onnx out"),
    ("export", "--onnx m.onnx --preprocess photo.jpg --calibration photos", 2, "in JSON, found a JPEG"),
    ("export", "c.safetensors --calibration words.txt", 2, "expected a folder of images, found text"),
    ("export", f"{EXPORT} --quantizd", 2, "did you mean --quantize?"),
    ("export", "c.safetensors --onnx m.onnx", 2, "found both"),
    ("export", "c.safetensors --preprocess blank", 2, "add --onnx MODEL"),
    (
        "export",
        "--onnx nowhere.onnx --preprocess spec.json --calibration photos",
        2,
        "nowhere.onnx: no such file",
    ),
    ("export", "--onnx m.onnx --calibration photos", 2, "add --preprocess SPEC"),
    ("export", "--onnx m.onnx --preprocess blank --calibration photos", 2, "blank: "),
    ("export", "--onnx m.onnx --preprocess spec.json --calibration flowers", 2, "model's 2 labels"),
    ("export", f"{EXPORT} --what", 2, "unrecognized arguments: --what"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the table names."""
    folder = tmp_path_factory.mktemp("wrong")
    random_checkpoint(folder / "c.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "c.safetensors").read_bytes()[:-50])
    random_checkpoint(folder / "run" / "model.safetensors")
    splits = [f"data/splits/{split}/{name}" for split in ("train", "test") for name in "ab"]
    packed = [f"data/packed/my_{split}/my_{split}/{name}" for split in ("train", "test") for name in "ab"]
    for name in ("photos/0", "photos/1", "flowers/rose", "flowers/tulip", *splits, *packed):
        (folder / name).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (20, 20), (30 * index, 9, 9)).save(folder / name / f"{index}.png")
    (folder / "empty").mkdir()
    for name in ("file", "m.onnx", "timm.bin"):
        (folder / name).write_text("nothing of use", encoding="utf-8")
    (folder / "words.txt").write_text("nothing of use", encoding="utf-8")
    (folder / "a.zip").write_bytes(b"PK\x03\x04" + bytes(30))
    (folder / "none.onnx").touch()
    Image.new("RGB", (20, 20)).save(folder / "photo.jpg")
    (folder / "exported").mkdir()
    for variant, name in (("int8", "model.int8.onnx"), ("float32", "exported/model.onnx")):
        metadata = Metadata(variant=variant, preprocess=Preprocess(size=(32, 32)), labels=("a", "b", "c"))
        model = add_metadata(color_graph((32, 32)), metadata.to_json())
        (folder / name).write_bytes(model.SerializeToString())
    (folder / "blank").write_text("\n", encoding="utf-8")
    (folder / "page.bin").write_text("<!DOCTYPE html><p>Sign in", encoding="utf-8")
    (folder / "other.json").write_text(plan_of_base().to_json(), encoding="utf-8")
    spec = {"preprocess": {"size": [16, 16]}, "mean": 0.5, "std": 0.5, "labels": ["cat", "dog"]}
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def plan_of_base() -> QuantizationPlan:
    """A plan for a ViT-B/16, whose layers are counted in the message."""
    from export.check_options import is_product, list_layer_names
    from vit.config import ViTConfig

    names = [name for name in list_layer_names(ViTConfig()) or () if not is_product(name)]
    return QuantizationPlan(
        target="any-cpu", linears={name: LinearPlan(precision="float32") for name in names}
    )


@pytest.fixture(scope="module")
def answers(place: Path, root: Path) -> list[tuple[object, str, str]]:
    """Exit code, standard output and standard error of each line of the table."""
    before = sorted(place.rglob("*"))
    given = [
        (RUNTIME if module == "runtime" else TRAINING, f"{module}.__main__", words.split())
        for module, words, _, _ in TABLE
    ]
    given = [
        (heavy, "tools.digit_images" if "tools" in name else name, words) for heavy, name, words in given
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(root)},
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(place.rglob("*")) == before  # nothing was written
    return [tuple(each) for each in json.loads(done.stdout)]


@pytest.mark.parametrize("index", range(len(TABLE)), ids=lambda index: " ".join(TABLE[index][:2]))
def test_a_wrong_command_line_is_refused_in_one_line(
    index: int, answers: list[tuple[object, str, str]]
) -> None:
    module, _, expected, words = TABLE[index]
    code, out, err = answers[index]
    assert code == expected, err
    assert out == ""
    assert err.count("\n") == 1, err
    prog = "vit-edge" if module == "vit_edge" else f"python -m {module}"
    name = module.rpartition(".")[2] if module != "vit_edge" else "(vit|export|runtime)"
    assert re.match(rf"({name}: |{prog}[ a-z]*: error: .*; see .* --help$)", err)
    assert words in err


def test_the_table_is_long_enough() -> None:
    assert len(TABLE) >= 40
    assert {module for module, *_ in TABLE} == {"runtime", "vit", "vit_edge", "export", "tools.digit_images"}


def test_keep_float_takes_one_name_and_leaves_the_checkpoint() -> None:
    from export.command_line import make_parser

    options = make_parser("export").parse_args(
        ["--keep-float", "head", "runs/x", "--keep-float", "patch_embedding"]
    )
    assert options.checkpoint == Path("runs/x")
    assert options.keep_float == ["head", "patch_embedding"]


def test_of_a_large_model_the_nearest_names_are_shown() -> None:
    from export.check_options import check_layer_names, list_layer_names
    from vit.config import ViTConfig

    layers = list_layer_names(ViTConfig()) or ()
    with pytest.raises(PlanError) as caught:
        check_layer_names(("blocks.3.mlp.fc3",), layers)
    assert "blocks.3.mlp.fc1" in str(caught.value)
    assert str(caught.value).endswith(f"and {len(layers) - 3} more, all in plan.json")
    assert len(str(caught.value)) < 200


WITHOUT_PACKAGES = [
    ("vit train --data digits --out new", "train,cpu"),
    ("vit import weights.pth --out new", "train,cpu"),
    ("vit summary tiny", "train,cpu"),
    ("vit plots run", "train,cpu"),
    ("export", "export"),
    ("export run --quantize --calibration photos", "export"),
    ("export --onnx model.onnx", "onnx"),
    ("runtime model.onnx photo.jpg", "cpu"),
    ("vit_edge run model.onnx photo.jpg", "cpu"),
    ("vit_edge train --data digits --out new", "train,cpu"),
    ("vit_edge export", "export"),
]


@pytest.mark.parametrize(("words", "extra"), WITHOUT_PACKAGES)
def test_a_python_without_packages_gets_one_line(words: str, extra: str, root: Path, tmp_path: Path) -> None:
    """As the Python of the system, in which a command is typed after `make demo`."""
    done = subprocess.run(
        [sys.executable, "-S", "-m", *words.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = done.stderr.splitlines()
    assert re.match(r"(vit|export|runtime): .* is not installed; ", line), line
    assert f"in a checkout of vit-edge: python tools/install.py {extra}" in line
    assert done.returncode == 1
    if (root / ".venv").is_dir():
        assert "activate" in line


@pytest.mark.parametrize("words", ["vit --help", "export --help", "runtime --help", "vit_edge --version"])
def test_help_and_version_need_no_package(words: str, root: Path) -> None:
    command = [sys.executable, "-S", "-m", *words.split()]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_an_environment_that_is_not_active_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "runtime" / "errors.py"))
    line = errors.install_line("cpu")
    assert line.startswith(
        "activate the environment of the checkout (. .venv/bin/activate), or in a checkout"
    )
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert errors.install_line("cpu") == "in a checkout of vit-edge: python tools/install.py cpu"


def test_a_module_of_ours_that_is_missing_is_a_bug() -> None:
    def work() -> int:
        raise ModuleNotFoundError("no", name="vit.nowhere")

    with pytest.raises(ModuleNotFoundError):
        run_command("vit", work, extra="train,cpu")


@pytest.mark.parametrize("module", ["vit", "export", "runtime", "vit_edge"])
def test_every_command_has_a_version(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"{module}.__main__").main(["--version"])
    assert ended.value.code == 0
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    assert capsys.readouterr().out == f"vit-edge {project['project']['version']}\n"


HELP = ["vit", "vit train", "vit import", "vit summary", "vit plots", "export", "runtime", "vit_edge"]


@pytest.mark.parametrize("words", HELP)
def test_every_help_ends_with_examples_that_are_understood(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *command = words.split()
    main = importlib.import_module(f"{module}.__main__").main
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    text = capsys.readouterr().out.split("examples:\n")[1]
    prog = "vit-edge" if module == "vit_edge" else f"python -m {words}"
    lines = [line.split("   ")[0] for line in re.findall(rf"{prog} ((?:(?!--help).)+)$", text, re.M)]
    lines = [
        line for line in lines if " > " not in line and "RUN" not in line and "artifacts/RUN" not in line
    ]
    assert len(lines) >= 3
    if module == "vit_edge":
        assert {line.split()[0] for line in lines} <= {*vit_commands.COMMANDS, "export", "run"}
        return
    parser = {
        "vit": vit_commands.make_parser,
        "export": export_command.make_parser,
        "runtime": runtime_command.make_parser,
    }[module](f"python -m {module}")
    for line in lines:
        parser.parse_args([*command, *shlex.split(line)])
