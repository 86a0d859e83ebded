"""examples/update: a static web server, the script that cron runs, and the app."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.update.app import watch
from runtime.update.folder import read_status
from runtime.update.install import roll_back
from runtime.update.signature import sign_model

from .conftest import write_color_model

SCRIPT = Path(__file__).parents[3] / "examples" / "update" / "update.sh"


class Server:
    """A loopback server of a folder, and the files that were asked for."""

    def __init__(self, place: Path) -> None:
        self.place, self.asked = place, list[str]()

        class Handler(SimpleHTTPRequestHandler):
            def log_message(handler, *words: object) -> None:
                self.asked.append(handler.path)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(place)))
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def publish(self, version: int, keys: Path) -> None:
        model = write_color_model(self.place / "model.int8.onnx", gain=0.1 * version)
        sign_model(model, keys / "key.pem", version)

    def update(self, folder: Path, key: Path) -> tuple[int, str]:
        self.asked.clear()
        url = f"http://127.0.0.1:{self.http.server_port}"
        environment = os.environ | {
            "VIT_EDGE": f"{sys.executable} -m vit_edge",
            "no_proxy": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[2]), os.environ.get("PYTHONPATH", "")]),
        }
        command = ["sh", SCRIPT, url, folder, key]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode, done.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    made = Server(tmp_path / "www")
    yield made
    made.http.shutdown()
    made.http.server_close()


def test_fetch_install_and_reload(
    server: Server, keys: Path, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    public = keys / "public.pem"
    server.publish(1, keys)
    assert server.update(folder, public) == (0, "")
    images = tmp_path / "images"
    images.mkdir()
    over, said = threading.Event(), list[str]()

    def wait_for(words: str) -> None:
        for _ in range(300):
            said.append(capfd.readouterr().out)
            if words in "".join(said):
                return
            time.sleep(0.1)
        pytest.fail("".join(said))

    app = threading.Thread(target=watch, args=(folder, images, public), kwargs={"is_over": over.is_set})
    app.start()
    try:
        Image.fromarray(np.full((40, 30, 3), (250, 10, 10), np.uint8)).save(images / "1.png")
        wait_for("1.png: red")
        server.publish(2, keys)
        assert server.update(folder, public) == (0, "")
        wait_for("now model ")
        Image.fromarray(np.full((40, 30, 3), (10, 250, 10), np.uint8)).save(images / "2.png")
        wait_for("2.png: green")
    finally:
        over.set()
        app.join(60)
    assert read_status(folder)["current"]["version"] == 2

    assert server.update(folder, public) == (0, "")
    assert server.asked == ["/model.int8.onnx.sig"]  # nothing new
    roll_back(folder)
    assert server.update(folder, public) == (0, "")
    assert read_status(folder)["current"]["version"] == 1  # it stays rolled back

    server.publish(3, keys)
    with (server.place / "model.int8.onnx").open("ab") as file:
        file.write(b"x")
    code, error = server.update(folder, public)
    assert (code, "SHA-256 is not the expected one" in error) == (2, True), error
    server.publish(3, keys)
    assert server.update(folder, public) == (0, "")
    assert read_status(folder)["current"]["version"] == 3
    assert {each.name for each in folder.iterdir()} == {"1", "3", "current", "journal.jsonl", "offered.sig"}
