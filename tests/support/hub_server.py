"""A Hugging Face hub on loopback, with the part of its API that huggingface_hub uses to download models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"


class Hub:
    """A server with repositories.

    Attributes:
        models: files by repository and revision; a repository in `gated` gives them to `TOKEN` alone.
        requests: method and path of each request, in order.
        agents: the user agents of all requests.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, tuple[str, Mapping[str, Path]]]] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.status: int | None = None  # of all answers, of a hub that is broken
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, repository: str, folder: Path, *, revision: str = "main", commit: str = COMMIT) -> None:
        """Publish all files of a folder as a revision of a repository."""
        files = {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()}
        self.models.setdefault(repository, {}).update(dict.fromkeys((revision, commit), (commit, files)))

    def downloads(self) -> list[str]:
        """The files whose bytes were asked for, within their repositories."""
        return [
            each.split("/", 5)[-1] for each in self.requests if each.startswith("GET") and "/resolve/" in each
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """The variables of a process that uses this hub, with a cache below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        kept |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_ENDPOINT": self.endpoint}
        return kept | {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"} | changes

    def run(self, home: Path, *words: Any, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m WORDS` in the folder `home`."""
        line = [sys.executable, "-W", "error", "-m", *map(str, words)]
        return subprocess.run(
            line, cwd=home, env=self.environment(home, **changes), capture_output=True, text=True, timeout=300
        )


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.requests.append(f"{self.command} {path}")
        hub.agents.add(self.headers.get("User-Agent", ""))
        if hub.status is not None:
            return self._send(hub.status)
        parts = path.strip("/").split("/")
        if parts[0] == "cdn":
            return self._send(200, self._read(parts[1:3], parts[3], "/".join(parts[4:])))
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = [*(parts[2:] if api else parts), "", ""]
        repository = f"{owner}/{name}"
        if repository not in hub.models:  # as the hub answers whoever has no token
            return self._send(401, code="RepoNotFound")
        revision = "/".join(rest[1:]).rstrip("/") if api and rest[0] else "main" if api else rest[1]
        if revision not in hub.models[repository]:
            return self._send(404, code="RevisionNotFound")
        commit, files = hub.models[repository][revision]
        if api:
            listed = [{"rfilename": each} for each in sorted(files)]
            return self._send(200, json.dumps({"id": repository, "sha": commit, "siblings": listed}).encode())
        if repository in hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            known = "Authorization" in self.headers
            return self._send(403 if known else 401, code="GatedRepo")
        file = "/".join(rest[2:]).rstrip("/")
        if file not in files:
            return self._send(404, code="EntryNotFound")
        data = files[file].read_bytes()
        etag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}
        if file.endswith((".json", ".md")):
            return self._send(200, data, **etag)
        linked = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
        # Large files lie on another host, which gets no token.
        place = f"{hub.endpoint.replace('127.0.0.1', 'localhost')}/cdn/{repository}/{revision}/{file}"
        return self._send(302, Location=place, **etag, **linked)

    def _read(self, repository: list[str], revision: str, file: str) -> bytes:
        return self.hub.models["/".join(repository)][revision][1][file].read_bytes()

    def _send(self, status: int, body: bytes = b"", *, code: str | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if code is not None:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
