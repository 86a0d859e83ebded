"""From the start of a process to the first prediction: the runtime beside torch and transformers.

    python -m benchmarks.cold_start MODEL [--image PHOTO] [--rounds 5]

MODEL is an exported INT8 model. The peer is a model of the same shape with random weights, which transformers
loads from a local folder. The rounds alternate, each in a new process; the fastest of each counts, and the
largest memory.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.timing import images_in
from runtime import read_metadata
from runtime.command.line import run_command
from runtime.command.parser import REQUIRED, Parser, argument, option, options_from
from runtime.writing import temporary_folder

OURS = """
import sys
from runtime import Classifier
print(Classifier(sys.argv[1], threads=int(sys.argv[3]))(sys.argv[2]).label)
"""
PIPELINE = """
import sys, torch
torch.set_num_threads(int(sys.argv[3]))
from transformers import pipeline
print(pipeline("image-classification", model=sys.argv[1])(sys.argv[2])[0]["label"])
"""
PLAIN = """
import sys, torch, numpy, PIL.Image
torch.set_num_threads(int(sys.argv[3]))
from transformers import ViTForImageClassification
model = ViTForImageClassification.from_pretrained(sys.argv[1]).eval()
image = PIL.Image.open(sys.argv[2]).convert("RGB").resize((224, 224), PIL.Image.Resampling.BILINEAR)
pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
with torch.inference_mode():
    print(model.config.id2label[int(model(pixels).logits.argmax())])
"""
PEER = """
import sys, torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil
config = ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                   num_labels=int(sys.argv[2]))
torch.manual_seed(0)
ViTForImageClassification(config).save_pretrained(sys.argv[1])
ViTImageProcessorPil().save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Start:
    """Wall time and peak resident set of one process."""

    seconds: float
    mebibytes: float


def start(script: str, *arguments: str) -> Start:
    """Run a script in a new process: wall time, and the largest resident set."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    with process.stderr as stream:
        errors = stream.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(errors.decode())
    return Start(
        time.perf_counter() - began, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    )


def make_peer(folder: str, classes: int) -> None:
    """A ViT-S/16 as a local Hugging Face folder."""
    subprocess.run([sys.executable, "-c", PEER, folder, str(classes)], check=True, stderr=subprocess.DEVNULL)


@dataclass(frozen=True, kw_only=True)
class ColdStartOptions:
    """Measure time and memory from the start of a process to the first prediction."""

    model: Path = argument(REQUIRED, "exported INT8 model file", metavar="MODEL")
    image: Path = option(REQUIRED, "photo to classify")
    rounds: int = option(5, "alternating rounds, each in a new process")
    threads: int = option(1, "CPU threads")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser(prog="python -m benchmarks.cold_start", options=ColdStartOptions)
    options = options_from(ColdStartOptions, parser.parse_args(arguments))
    return run_command("benchmarks.cold_start", lambda: _measure(options))


def _measure(options: ColdStartOptions) -> int:
    classes = len(read_metadata(options.model).labels)
    images_in(options.image)
    with temporary_folder() as folder:
        make_peer(str(folder), classes)
        ways = {
            "vit-edge runtime": (OURS, str(options.model)),
            "torch + transformers": (PLAIN, str(folder)),
            "transformers pipeline": (PIPELINE, str(folder)),
        }
        runs: dict[str, list[Start]] = {name: [] for name in ways}
        for _ in range(options.rounds):
            for name, (script, model) in ways.items():
                runs[name].append(start(script, model, str(options.image), str(options.threads)))
    best = {name: min(r.seconds for r in found) for name, found in runs.items()}
    peak = {name: max(r.mebibytes for r in found) for name, found in runs.items()}
    print("| to the first prediction | seconds | faster by | peak MiB | less by |\n|---|---|---|---|---|")
    ours = "vit-edge runtime"
    for name in ways:
        times, sizes = best[name] / best[ours], peak[name] / peak[ours]
        print(f"| {name} | {best[name]:.2f} | {times:.1f} | {peak[name]:.0f} | {sizes:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
