"""The example services, as strangers use them: examples/http_service.py, examples/browser/serve.mjs."""

from __future__ import annotations

import asyncio
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
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Classifier
from tests.support.field_statistics import add_statistics, describe_rows

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
MakeModel = Any


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


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, content


def test_http_service_says_that_it_is_well(service: int, model: Path) -> None:
    status, answer = get(service, "/healthz")
    digest = sha256(model.read_bytes()).hexdigest()
    assert (status, json.loads(answer)) == (200, {"status": "ok", "sha256": digest})


def test_metrics_of_the_http_service(model: Path, images: Path) -> None:
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    pytest.importorskip("prometheus_client")
    random = np.random.default_rng(0)
    statistics = describe_rows(random.uniform(0, 1, (100, 10)), score=random.uniform(0.5, 1, 100))
    add_statistics(model, statistics.to_json())
    command = (sys.executable, EXAMPLES / "http_service.py", model, "--port", 0, "--min-score", 1)
    with serving(*command) as port:
        post(port, (images / "b.jpg").read_bytes())
        post(port, b"not an image")
        status, text = get(port, "/metrics")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200
    assert values['vit_edge_requests_total{status="200"}'] == "1.0"
    assert values['vit_edge_requests_total{status="422"}'] == "1.0"
    assert values["vit_edge_request_seconds_count"] == "2.0"
    assert values["vit_edge_unsure_total"] == "1.0"
    assert 0 < float(values['vit_edge_drift_bits{statistic="score"}']) <= 1
    assert values['vit_edge_drift_raised{statistic="score"}'] == "0.0"  # of one image
    (info,) = [name for name in values if name.startswith("vit_edge_model_info")]
    assert sha256(model.read_bytes()).hexdigest() in info
    assert 'placement="' in info


def test_the_http_service_needs_no_prometheus_client(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette")
    from starlette.requests import Request

    from examples import service_metrics

    monkeypatch.setattr(service_metrics, "prometheus", None)
    with Classifier(model) as classify:
        metrics = service_metrics.ServiceMetrics(classify)
        metrics.count_prediction(classify(np.zeros((9, 9, 3), np.uint8)))
        with metrics.time_request() as done:
            done(200)
        answer = asyncio.run(metrics._answer_metrics(Request({"type": "http"})))
    assert answer.status_code == 501
    assert b"install prometheus-client" in answer.body


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
    command = [curl, "--silent", option, f"{prefix}{images / 'a.png'}", address]
    answer = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)
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


PAGE = """
import { serve } from SERVE;
const [file, seconds] = process.argv.slice(1);
const server = await serve(new Map([["index.html", file]]), { seconds: Number(seconds) });
console.log(`http://127.0.0.1:${server.address().port}/`);
"""


def page_server(file: Path, seconds: float) -> Any:
    """`serve` of serve.mjs with one file."""
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node")
    script = PAGE.replace("SERVE", json.dumps((EXAMPLES / "browser" / "serve.mjs").as_uri()))
    return serving(node, "--input-type=module", "--eval", script, file, seconds)


INDEX = b"GET /index.html HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def test_the_server_of_the_page_answers_what_is_malformed(tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text("<!doctype html>")
    with page_server(file, 10) as port:
        for request_line, status in (
            ("GET /", 200),
            ("HEAD /", 200),
            ("GET http://x/index.html", 200),
            ("GET /?%", 200),
            ("GET /%", 400),
            ("GET /%ff", 400),
            ("GET /%c3%28", 400),
            ("GET //", 400),
            ("GET //[", 400),
            ("GET /nothing", 404),
            ("GET /%00", 404),
            ("GET /../../etc/passwd", 404),
            ("GET /%2e%2e/%2e%2e/etc/passwd", 404),
            ("GET /constructor", 404),
            ("POST /", 405),
            ("OPTIONS *", 405),
            ("GET /\0", 400),
            ("GET /" + "a" * 100_000, 431),
        ):
            found = ask(port, f"{request_line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert found.startswith(f"HTTP/1.1 {status} ".encode()), (request_line[:30], found[:100])
            assert found.endswith(b"html>") is (status == 200 and not request_line.startswith("HEAD"))
            assert ask(port, INDEX).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nX: ",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
    ],
    ids=["nothing", "headers", "kept alive", "no body"],
)
def test_the_server_of_the_page_ends_connections_that_never_end(tmp_path: Path, sent: bytes) -> None:
    file = tmp_path / "index.html"
    file.write_text("<!doctype html>")
    with page_server(file, 1) as port, connect(port, sent) as client:
        with suppress(ConnectionResetError):
            while client.recv(2**16):  # its time-out is 10 s
                pass
        assert ask(port, INDEX).startswith(b"HTTP/1.1 200")


def test_the_server_of_the_page_does_not_wait_for_clients_that_read_nothing(tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    with file.open("wb") as stream:
        stream.truncate(2**26)
    with page_server(file, 1) as port:
        assert len(ask(port, INDEX, patience=4)) < 2**26
        assert len(ask(port, INDEX)) > 2**26


def serve_page(*arguments: Any) -> subprocess.CompletedProcess[str]:
    if (node := shutil.which("node")) is None:
        pytest.skip("needs node")
    command = [node, EXAMPLES / "browser" / "serve.mjs", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: node serve.mjs MODEL"),
        (["nowhere.onnx"], "nowhere.onnx: there is no such model file"),
        ([EXAMPLES], f"{EXAMPLES}: expected model.int8.onnx or model.onnx in it, found neither"),
        ([os.devnull], f"{os.devnull}: expected a model file, found none"),
        ([ROOT / "README.md"], f"{ROOT / 'README.md'}: not an ONNX model"),
        (["OTHER"], "an ONNX model, but not made by vit-edge"),
        (["MODEL", "--port", "eighty"], "expected --port from 0 to 65535, found eighty"),
        (["MODEL", "--port", "65536"], "expected --port from 0 to 65535, found 65536"),
        (["MODEL", "--prot", "1"], "Unknown option '--prot'"),
        (["MODEL", "--into", ROOT / "README.md"], "README.md"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_server_of_the_page_says_what_it_cannot_use(
    model: Path, tmp_path: Path, arguments: list[Any], message: str
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(model.read_bytes().replace(b"vit_edge", b"vit_else", 1))
    named = {"MODEL": model, "OTHER": other}
    done = serve_page(*(named.get(each, each) for each in arguments))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("serve.mjs: ")
    assert message in line


def test_the_page_takes_the_folder_of_an_export(make_model: MakeModel, tmp_path: Path) -> None:
    if not (ROOT / "javascript" / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs javascript/node_modules: make borrow")
    export = make_model("export/model.onnx").parent
    for name in ("model.onnx", "model.int8.onnx"):  # the INT8 file is taken where there is one
        make_model(f"export/{name}", labels=("red", "green", name))
        done = serve_page(export, "--into", tmp_path / "site")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "site" / "model.onnx").read_bytes() == (export / name).read_bytes()


def test_the_two_examples_have_ports_of_their_own() -> None:
    service = re.findall(r'"--port",\s+type=int,\s+default=(\d+)', (EXAMPLES / "http_service.py").read_text())
    page = re.findall(
        r'port: { type: "string", default: "(\d+)" }', (EXAMPLES / "browser" / "serve.mjs").read_text()
    )
    assert len({*service, *page}) == 2
