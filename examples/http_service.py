"""A small HTTP service: images in, labels out.

    pip install ".[examples]"
    python -m examples.http_service MODEL [--port 8000]
    curl --data-binary @photo.jpg http://127.0.0.1:8000/classify
    curl -F file=@photo.jpg http://127.0.0.1:8000/classify

The image is the body itself, or the one file in a form, as browsers and many clients send it.

What a stranger sends is limited in bytes, in pixels and in the time it may take, and is never on the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from email.message import Message

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runtime import ArtifactError, Classifier, DeviceError, ImageError

MAX_BYTES = 20 * 2**20
MAX_HEADERS = 2**13  # bytes, of one part of a form
MAX_PIXELS = 50_000_000
UPLOAD_SECONDS = 20.0
CLIENTS = 64  # at a time: with MAX_BYTES this bounds the memory that uploads take


class Refused(Exception):
    """A request that gets no answer, with the HTTP status that says why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def read_body(request: Request) -> bytes:
    """The whole body, or `Refused` as soon as it is too large: no byte more is read."""
    too_large = Refused(413, f"send at most {MAX_BYTES:,} bytes")
    if int(request.headers.get("content-length", 0)) > MAX_BYTES:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BYTES:
            raise too_large
    return bytes(body)


def image_in(body: bytes, content_type: str) -> bytes:
    """The image that was sent: the body, or the one file of a form (multipart/form-data).

    Strict, and with no copy but the file's own: Python has had no parser of forms since 3.13.
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


def make_app(classify: Classifier, *, upload_seconds: float = UPLOAD_SECONDS, at_once: int = 2) -> Starlette:
    slots = asyncio.Semaphore(at_once)  # predictions under way; the others wait without a thread

    async def answer(request: Request) -> Response:
        try:
            body = await asyncio.wait_for(read_body(request), upload_seconds)
            image = image_in(body, request.headers.get("content-type", ""))
            async with slots:
                prediction = await asyncio.to_thread(classify, image)
        except Refused as error:
            return failure(error.status, str(error))
        except TimeoutError:
            return failure(408, f"the upload took longer than {upload_seconds:g} seconds")
        except ClientDisconnect:
            return Response(status_code=400)
        except ImageError as error:
            return failure(422, str(error))
        top = [{"label": c.label, "index": c.index, "score": c.score} for c in prediction.top]
        return JSONResponse({"label": prediction.label, "score": prediction.score, "top": top})

    async def info(_request: Request) -> Response:
        known = classify.info
        return JSONResponse({"variant": known.variant, "device": known.device, "labels": list(known.labels)})

    return Starlette(routes=[Route("/classify", answer, methods=["POST"]), Route("/info", info)])


def failure(status: int, why: str) -> Response:
    """An error as JSON. The rest of an upload is not waited for: the connection ends here."""
    return Response(
        json.dumps({"error": why}), status, {"connection": "close"}, media_type="application/json"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="model file, or folder of an export")
    parser.add_argument("--port", type=int, default=8000, help="TCP port (default: %(default)s)")
    parser.add_argument(
        "--upload-seconds",
        type=float,
        default=UPLOAD_SECONDS,
        help="longest time of an upload, in seconds (default: %(default)s)",
    )
    options = parser.parse_args()
    try:
        classify = Classifier(options.model, threads=1, max_pixels=MAX_PIXELS)
    except (ArtifactError, DeviceError) as error:
        parser.error(str(error))
    with classify:
        classify.warm_up()
        app = make_app(classify, upload_seconds=options.upload_seconds)
        uvicorn.run(app, port=options.port, limit_concurrency=CLIENTS, log_level="warning")


if __name__ == "__main__":
    main()
