"""A small HTTP service: images in, labels out.

    pip install ".[examples]"
    python -m examples.http_service MODEL [--port 8000]      # prints the address of a page to try it
    curl --data-binary @photo.jpg http://127.0.0.1:8000/classify
    curl -F file=@photo.jpg http://127.0.0.1:8000/classify
    curl http://127.0.0.1:8000/healthz                       # is the model loaded, and which one
    curl http://127.0.0.1:8000/metrics                       # for Prometheus

The image is the body itself, or the one file in a form, as browsers and many clients send it.

Requests are limited in bytes, pixels and time, and are never written to the disk. A connection serves one
request.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
from email.message import Message

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from examples.service_metrics import ServiceMetrics
from runtime import ArtifactError, Classifier, DeviceError, ImageError
from runtime.command.parser import Parser
from runtime.model_file.artifact import choose_model_file, read_artifact

MAX_BYTES = 20 * 2**20
MAX_HEADERS = 2**13  # bytes, of one part of a form
MAX_PIXELS = 50_000_000
UPLOAD_SECONDS = 20.0
CLIENTS = 64  # at a time: with MAX_BYTES this bounds the memory that uploads take
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Classify an image – vit-edge</title>
<body style="font: 1rem/1.5 system-ui; margin: 3rem auto; max-width: 40rem; padding: 0 1rem">
<h1>Classify an image</h1>
<form action="/classify" method="post" enctype="multipart/form-data">
<label>Image <input type="file" name="file" accept="image/*" required></label>
<button>Classify</button>
</form>
<p>The answer is JSON, as for a program: <code>curl -F file=@photo.jpg ADDRESS/classify</code>.
<a href="/info">The model and its labels</a>.</p>
</html>
"""


class Deadline(H11Protocol):
    """A connection that ends when sending the request, or reading the answer, takes longer than `seconds`.

    uvicorn counts every open connection against its limit, and sets no limit of time to one that sends
    nothing or reads nothing.
    """

    seconds: float
    _reading = False  # whether the client had begun to get the answer a deadline ago

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.seconds, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadline."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _check(self) -> None:
        cycle = self.cycle
        if self._reading:
            self.transport.abort()
            return
        begun = cycle is not None and cycle.response_started
        if not begun and (cycle is None or cycle.more_body):
            why = json.dumps({"error": f"the request took longer than {self.seconds:g} seconds"}).encode()
            head = "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
            self.transport.write(f"{head}Content-Length: {len(why)}\r\n\r\n".encode() + why)
            self.transport.close()
            begun = True
        self._reading = begun  # otherwise the prediction is under way, or waits for its turn
        self._timer = self.loop.call_later(self.seconds, self._check)


class Refused(Exception):
    """A request that is refused, with the reason and its HTTP status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def read_body(request: Request) -> bytes:
    """Return the whole body; raise `Refused` as soon as it is too large, and read no further."""
    too_large = Refused(413, f"send at most {MAX_BYTES:,} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise too_large
    return bytes(body)


def extract_image(body: bytes, content_type: str) -> bytes:
    """Return the image in a request: the body, or the one file of a form (multipart/form-data).

    This parser is strict and copies only the file. Python has no parser of forms since 3.13.
    """
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return body
    boundary = header.get_boundary("")
    delimiter = f"\r\n--{boundary}".encode("ascii", "replace")
    if not boundary or not body.startswith(delimiter[2:]):
        raise Refused(400, "expected a form with a boundary, and the boundary at its start")
    files, at = [], len(delimiter) - 2
    while body[at : at + 2] == b"\r\n":
        begin = body.find(b"\r\n\r\n", at, at + MAX_HEADERS)
        end = body.find(delimiter, at)
        if not 0 <= begin <= end - 4:
            break
        if b"filename" in body[at:begin].lower():
            files.append((begin + 4, end))
        at = end + len(delimiter)
    if body[at : at + 2] != b"--":
        raise Refused(400, "the form is cut short, or damaged")
    if len(files) != 1:
        raise Refused(400, f"expected a form with one file, found {len(files)}")
    return body[slice(*files[0])]


def make_app(classify: Classifier, *, at_once: int = 2) -> Starlette:
    """Return the service; it predicts `at_once` images at the same time."""
    slots = asyncio.Semaphore(at_once)  # predictions under way; the others wait without a thread
    metrics = ServiceMetrics(classify)

    async def answer(request: Request) -> Response:
        with metrics.time_request() as done:
            response = await predict(request)
            done(response.status_code)
        return response

    async def predict(request: Request) -> Response:
        try:
            body = await read_body(request)
            image = extract_image(body, request.headers.get("content-type", ""))
            async with slots:
                prediction = await asyncio.to_thread(classify, image)
        except Refused as error:
            return failure(error.status, str(error))
        except ClientDisconnect:
            return Response(status_code=400)
        except ImageError as error:
            return failure(422, str(error))
        metrics.count_prediction(prediction)
        top = [{"label": c.label, "index": c.index, "score": c.score} for c in prediction.top]
        answer = {"label": prediction.label, "score": prediction.score, "top": top}
        if prediction.labels is not None:  # of a model with several labels per image
            answer["labels"] = [each.label for each in prediction.labels]
        return JSONResponse(answer)

    async def info(_request: Request) -> Response:
        model = classify.info
        return JSONResponse({"variant": model.variant, "device": model.device, "labels": list(model.labels)})

    async def page(_request: Request) -> Response:
        return HTMLResponse(PAGE)

    routes = [Route("/", page), Route("/classify", answer, methods=["POST"]), Route("/info", info)]
    return Starlette(routes=routes + metrics.routes)


def failure(status: int, why: str) -> Response:
    """Return an error as JSON; the rest of an upload is not read."""
    return JSONResponse({"error": why}, status)


def serve(app: Starlette, listener: socket.socket, *, upload_seconds: float) -> None:
    """Answer requests until a signal ends the process."""
    Deadline.seconds = upload_seconds
    config = uvicorn.Config(
        app,
        http=Deadline,
        ws="none",
        proxy_headers=False,
        limit_concurrency=CLIENTS,
        log_level="warning",
        headers=[("connection", "close")],
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    """Serve until a signal ends the process."""
    parser = Parser(
        prog="python -m examples.http_service",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="model file, or folder of an export")
    parser.add_argument(
        "--port", type=int, default=8000, help="TCP port; 0 takes a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--upload-seconds",
        type=float,
        default=UPLOAD_SECONDS,
        help="longest time to send a request, from the connection to its last byte, and to read the answer, "
        "in seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--min-score",
        type=float,
        help="below this score, 0 to 1, an answer has no label and counts as unsure (default: none does)",
    )
    options = parser.parse_args()
    if options.min_score is not None and not 0 <= options.min_score <= 1:
        parser.error(f"expected --min-score 0 to 1, found {options.min_score:g}")
    if not options.upload_seconds > 0:
        parser.error(f"expected --upload-seconds above 0, found {options.upload_seconds:g}")
    try:
        monitor = read_artifact(choose_model_file(options.model)).field_statistics is not None
        classify = Classifier(
            options.model,
            threads=1,
            max_pixels=MAX_PIXELS,
            min_score=options.min_score,
            monitor=monitor,
        )
    except (ArtifactError, DeviceError) as error:
        parser.error(str(error))
    try:
        listener = socket.create_server(("127.0.0.1", options.port))
    except (OSError, OverflowError) as error:
        parser.error(f"port {options.port} cannot be used: {error}; choose another one with --port")
    with classify, listener:
        classify.warm_up()
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
        serve(make_app(classify), listener, upload_seconds=options.upload_seconds)


if __name__ == "__main__":
    main()
