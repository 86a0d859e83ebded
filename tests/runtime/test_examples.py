"""The examples, run as their first lines say."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Classifier, Preprocess

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def run(*command: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=True
    )


def test_script(model: Path, images: Path) -> None:
    lines = run(sys.executable, EXAMPLES / "classify.py", model, images / "a.png", images / "text.png").stdout
    assert "float32 model of 3 classes on cpu" in lines
    assert f"{images / 'a.png'}: red (" in lines
    assert "it is no image" in lines


def test_webcam(model: Path) -> None:
    lines = run(sys.executable, EXAMPLES / "webcam.py", model, "--frames", "4").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    assert all(line.split()[1] in ("red", "green", "blue") for line in lines)


@pytest.mark.parametrize("script", ["classify.py", "webcam.py", "http_service.py"])
def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, script: str) -> None:
    if script == "http_service.py":
        pytest.importorskip("starlette")
        pytest.importorskip("uvicorn")
    done = subprocess.run(
        [
            sys.executable,
            EXAMPLES / script,
            tmp_path / "nowhere.onnx",
            *(["a.png"] * (script == "classify.py")),
        ],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.splitlines()[-1].endswith("there is no such model file; python -m export makes one")
    assert "Traceback" not in done.stderr


NO_CAMERA = (
    "class VideoCapture:\n    def __init__(self, number): pass\n    def isOpened(self): return False\n"
)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("raise ImportError", "--camera needs OpenCV: pip install opencv-python-headless"),
        (NO_CAMERA, "expected a camera with number 7, found none that opens; the first is --camera 0"),
    ],
    ids=["no OpenCV", "no camera"],
)
def test_webcam_without_a_camera(model: Path, tmp_path: Path, module: str, line: str) -> None:
    (tmp_path / "cv2.py").write_text(module)
    done = subprocess.run(
        [sys.executable, EXAMPLES / "webcam.py", model, "--camera", "7"],
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")


@contextmanager
def serving(*command: Any) -> Iterator[int]:
    """Run a server that prints its address, and give its port."""
    line = [str(word) for word in command]
    process = subprocess.Popen(line, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", process.stdout.readline())
        assert address is not None
        yield int(address[1])
        assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.fixture
def service(model: Path) -> Iterator[int]:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    options = ("--port", 0, "--upload-seconds", 2)
    with serving(sys.executable, EXAMPLES / "http_service.py", model, *options) as port:
        yield port


def post(port: int, body: bytes | Iterator[bytes], **headers: str) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with suppress(BrokenPipeError, ConnectionResetError):  # when it has answered already, and reads no more
        connection.request("POST", "/classify", body, headers, encode_chunked=not isinstance(body, bytes))
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    return answer.status, content


def test_http_service(service: int, images: Path) -> None:
    status, answer = post(service, (images / "b.jpg").read_bytes())
    assert (status, answer["label"]) == (200, "green")
    assert len(answer["top"]) == 3
    assert post(service, b"not an image")[0] == 422
    assert post(service, b"")[0] == 422


def form(*parts: tuple[str, bytes], boundary: str = "x--y") -> tuple[bytes, dict[str, str]]:
    """A form as browsers send it: what the header of each part adds, and its content."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="a"{more}\r\n\r\n'.encode() + content + b"\r\n"
        for more, content in parts
    )
    return body + f"--{boundary}--\r\n".encode(), {
        "Content-Type": f'multipart/form-data; boundary="{boundary}"'
    }


FILE = '; filename="p.bin"\r\nContent-Type: image/jpeg'


def test_http_service_takes_forms(service: int, images: Path) -> None:
    photo = (images / "b.jpg").read_bytes() + b"\r\n\r\n--x-\r\n"  # behind the end of a JPEG is room
    body, headers = form(("", b"a field"), (FILE, photo), ("", b""))
    status, answer = post(service, body, **headers)
    assert (status, answer["label"]) == (200, "green")
    for sent in (form(), form(("", b"a field")), form((FILE, photo), (FILE, photo))):
        status, answer = post(service, sent[0], **sent[1])
        assert status == 400
        assert answer["error"].startswith("expected a form with one file, found ")
    for damaged in (body[:-6], body[2:], body.replace(b"\r\n\r\n", b"\r\n", 1), b"--x--y", b""):
        status, answer = post(service, damaged, **headers)
        assert status == 400, answer
        assert "form" in answer["error"]
    assert post(service, body, **{"Content-Type": "multipart/form-data"})[0] == 400
    assert post(service, form((FILE, b"no image"))[0], **headers)[0] == 422


@pytest.mark.parametrize("way", [("--data-binary", "@"), ("-F", "file=@")])
def test_http_service_as_curl_sends(service: int, images: Path, way: tuple[str, str]) -> None:
    if (curl := shutil.which("curl")) is None:
        pytest.skip("needs curl")
    option, prefix = way
    address = f"http://127.0.0.1:{service}/classify"
    answer = json.loads(run(curl, "--silent", option, f"{prefix}{images / 'a.png'}", address).stdout)
    assert answer["label"] == "red"


def test_http_service_refuses_ten_gigabytes_at_once(service: int) -> None:
    with socket.create_connection(("127.0.0.1", service), timeout=10) as client:
        client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000000\r\n\r\n")
        began = time.monotonic()
        assert client.recv(100).startswith(b"HTTP/1.1 413")
        assert time.monotonic() - began < 1

    def endless() -> Iterator[bytes]:
        for _ in range(10_000):  # ten gigabytes that do not say so
            yield b"x" * 2**20

    status, answer = post(service, endless(), **{"Transfer-Encoding": "chunked"})
    assert status == 413
    assert "at most" in answer["error"]


def test_http_service_stands_slow_clients(service: int, images: Path) -> None:
    answers: list[bytes] = []

    def dawdle() -> None:
        with socket.create_connection(("127.0.0.1", service), timeout=20) as client:
            client.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
            answers.append(client.recv(100))

    slow = [threading.Thread(target=dawdle) for _ in range(10)]
    for thread in slow:
        thread.start()
    began = time.monotonic()
    assert post(service, (images / "a.png").read_bytes())[0] == 200
    assert time.monotonic() - began < 1.5
    for thread in slow:
        thread.join(20)
    assert len(answers) == 10
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)


def connect(port: int, *sent: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    for part in sent:
        client.sendall(part)
    return client


def ask(port: int, request: bytes, *, patience: float = 0) -> bytes:
    """The whole answer to the bytes of a request, read after some seconds."""
    with connect(port, request) as client:
        time.sleep(patience)
        answer = bytearray()
        with suppress(ConnectionResetError):
            while part := client.recv(2**16):
                answer += part
        return bytes(answer)


INFO = b"GET /info HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nX: ",
        b"POST /classify HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"POST /info HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\nGET",
    ],
    ids=["nothing", "headers", "chunks", "no body", "kept alive"],
)
def test_http_service_is_not_stopped_by_those_who_never_end(service: int, sent: bytes) -> None:
    stuck = [connect(service, sent) for _ in range(70)]
    deadline = time.monotonic() + 15
    while not ask(service, INFO).startswith(b"HTTP/1.1 200"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for client in stuck:
        client.close()


def test_http_service_gives_one_who_trickles_no_more_time(service: int) -> None:
    with connect(service, b"POST /classify HTTP/1.1\r\nHost: x\r\nX: ") as client:
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() - began < 15 and not select.select([client], [], [], 0.1)[0]:
                client.sendall(b"a")
        assert client.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 8


GREEDY = """
import socket, sys
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from examples.http_service import serve
async def large(request):
    return Response(bytes(2**26))
listener = socket.create_server(("127.0.0.1", 0))
print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
serve(Starlette(routes=[Route("/", large)]), listener, upload_seconds=0.5)
"""


def test_http_service_does_not_wait_for_clients_that_read_nothing() -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    with serving(sys.executable, "-c", GREEDY) as port:
        request = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
        assert len(ask(port, request, patience=2)) < 2**26
        assert len(ask(port, request)) > 2**26


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /%", 404),
        ("GET //", 404),
        ("GET /%00", 404),
        ("GET /%ff/../info", 404),
        ("GET /" + "a" * 100_000, 404),
        ("GET", 400),
        ("GET /\0", 400),
        ("HEAD /", 200),
        ("POST /", 405),
        ("GET /info\r\nContent-Length: " + "9" * 5000, 400),
        ("POST /classify\r\nContent-Length: -1", 400),
        ("POST /classify\r\nContent-Type: multipart/form-data; boundary*=x'y'%ff\r\nContent-Length: 0", 400),
    ],
    ids=lambda value: str(value)[:30],
)
def test_http_service_answers_what_is_malformed(service: int, request_line: str, status: int) -> None:
    line, _, headers = request_line.partition("\r\n")
    found = ask(service, f"{line} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode("latin-1"))
    assert found.startswith(f"HTTP/1.1 {status} ".encode()), found[:200]
    assert ask(service, INFO).startswith(b"HTTP/1.1 200")


def test_http_service_has_a_page_to_try_it(service: int, images: Path) -> None:
    head, _, page = ask(service, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").partition(b"\r\n\r\n")
    assert b"text/html" in head
    action, method, kind = re.findall(rb'(?:action|method|enctype)="(.*?)"', page)
    (name,) = re.findall(rb'type="file" name="(.*?)"', page)
    assert (action, method, kind) == (b"/classify", b"post", b"multipart/form-data")
    body, headers = form((FILE, (images / "b.jpg").read_bytes()))
    status, answer = post(service, body.replace(b'name="a"', b'name="' + name + b'"'), **headers)
    assert (status, answer["label"]) == (200, "green")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "70000"), "port 70000 cannot be used"),
        (("--port", "TAKEN"), "cannot be used"),
        (("--upload-seconds", "0"), "expected --upload-seconds above 0, found 0"),
        (("--upload-seconds", "nan"), "expected --upload-seconds above 0, found nan"),
    ],
)
def test_http_service_refuses_a_wrong_option(model: Path, options: tuple[str, str], message: str) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        name, value = options[0], options[1].replace("TAKEN", str(taken.getsockname()[1]))
        command = [sys.executable, EXAMPLES / "http_service.py", model, name, value]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr.splitlines()[-1]


def classify_in_javascript(*arguments: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in in_javascript(*arguments).stdout.splitlines()]


def in_javascript(*arguments: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    folder = ROOT / "javascript"
    if shutil.which("node") is None or not (folder / "node_modules").is_dir():
        pytest.skip("needs node, and javascript/node_modules: make borrow")
    command = ["node", str(folder / "classify.mjs"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=check)


@pytest.mark.parametrize(
    "spec",
    [
        Preprocess(size=(32, 32)),
        Preprocess(size=(32, 32), resize="crop", resize_to=36, interpolation="bicubic"),
        Preprocess(size=(32, 32), resize="crop", interpolation="lanczos"),
    ],
    ids=lambda spec: f"{spec.resize}-{spec.interpolation}",
)
def test_javascript_gives_the_same_labels(
    make_model: Any, imagenet_photos: list[Path], spec: Preprocess
) -> None:
    model = make_model(preprocess=spec)
    photos = imagenet_photos[::20]
    classify = Classifier(model)
    answers = classify_in_javascript(model, *photos)
    assert [answer["path"] for answer in answers] == list(map(str, photos))
    for answer in answers:
        prediction = classify(answer["path"])
        assert (answer["label"], answer["index"]) == (prediction.label, prediction.index)
        assert answer["score"] == pytest.approx(prediction.score, abs=0.02)


def test_javascript_reads_transparency_and_refuses_strangers(model: Path, images: Path) -> None:
    (answer,) = classify_in_javascript(model, images / "a.png")
    assert answer["label"] == "red"
    refused = in_javascript(images / "notes.txt", images / "a.png", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"{images / 'notes.txt'}: not an ONNX model")


def test_javascript_goes_on_after_a_bad_image(model: Path, images: Path) -> None:
    paths = [images / name for name in ("a.png", "empty.jpg", "text.png", "missing.png", "b.jpg")]
    done = in_javascript(model, *paths, check=False)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (1, "")
    assert [answer["path"] for answer in answers] == list(map(str, paths))
    assert [answer["label"] for answer in answers] == ["red", None, None, None, "green"]
    assert [answer["error"] for answer in answers] == [
        None,
        "it is empty (zero bytes)",
        "it is neither a JPEG nor a PNG; convert it",
        "it cannot be opened: ENOENT",
        None,
    ]


def test_javascript_knows_the_white_of_twelve_bits(make_model: Any, tmp_path: Path) -> None:
    spec = Preprocess(size=(32, 32), white_level=4095)
    model = make_model(preprocess=spec)
    values = np.linspace(0, 5000, 40 * 40).astype(np.uint16).reshape(40, 40)
    Image.fromarray(values).save(tmp_path / "gray.png")
    (answer,) = classify_in_javascript(model, tmp_path / "gray.png")
    assert answer["score"] == pytest.approx(Classifier(model)(tmp_path / "gray.png").score, abs=1e-5)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_javascript_turns_images_upright(make_model: Any, tmp_path: Path, form: str) -> None:
    """The model sees a wide strip: all red in an upright image, three quarters red in one on its side."""
    spec = Preprocess(size=(4, 16), resize="crop")
    model = make_model(size=(4, 16), preprocess=spec)
    image = Image.new("RGB", (64, 48), (0, 0, 90))
    image.paste((20, 0, 0), (0, 0, 64, 36))
    turned = {6: 90, 8: 270}  # what the camera stored, counterclockwise
    for orientation, angle in turned.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{form.lower()}"
        image.rotate(angle, expand=True).save(path, form, exif=exif)
    paths = sorted(tmp_path.glob(f"*.{form.lower()}"))
    scores = [answer["score"] for answer in classify_in_javascript(model, *paths)]
    expected = [Classifier(model)(path).score for path in paths]
    assert scores == pytest.approx(expected, abs=0.01)
    as_stored = Classifier(make_model("stored.onnx", size=(4, 16), preprocess=replace(spec, exif=False)))
    assert all(abs(as_stored(path).score - score) > 0.05 for path, score in zip(paths, scores, strict=True))
