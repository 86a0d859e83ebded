"""A process that has imported PyTorch and its exporter, and forks for each command that it reads.

Half of the CPU time of a command of `vit` or `export` is these imports. Nothing of this project is imported
before a fork, and nothing that starts threads (ONNX Runtime does). Run by the fixture `start`.
"""

import json
import os
import runpy
import signal
import sys
import tempfile

# What a command imports in any case, if it exports or trains.
import jinja2  # noqa: F401
import numpy as np  # noqa: F401
import onnx_ir.passes.common  # noqa: F401
import onnxscript  # noqa: F401
import safetensors.torch  # noqa: F401
import scipy.optimize  # noqa: F401
import torch.onnx._internal.exporter._core  # noqa: F401
from PIL import Image  # noqa: F401


def next_command() -> dict:
    """Return the command of this process, a fork: the one that reads commands ends with its input."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            return json.loads(line)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    sys.exit(0)


command = next_command()
signal.signal(signal.SIGINT, signal.default_int_handler)
os.chdir(command["cwd"])
os.environ.clear()
os.environ.update(command["env"])
tempfile.tempdir = None  # TMPDIR is another
for descriptor, name, flags in (
    (0, os.devnull, os.O_RDONLY),
    (1, command["out"], os.O_WRONLY),
    (2, command["err"], os.O_WRONLY),
):
    os.dup2(os.open(name, flags), descriptor)
kind, program, *arguments = command["words"]
sys.path[0:1] = [command["cwd"], *filter(None, command["env"].get("PYTHONPATH", "").split(os.pathsep))]
sys.argv = [program if kind == "-m" else "-c", *arguments]
if kind == "-m":
    runpy.run_module(program, run_name="__main__", alter_sys=True)
else:
    exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
