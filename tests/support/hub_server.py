"""A Hugging Face hub on loopback, with the part of its API that huggingface_hub needs to download models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_test"

# Several command lines in one process: their exit codes and what they print on standard error.
_SEVERAL = """
import contextlib, importlib, io, json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
results = []
for package, *words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(sys.stderr):
        try:
            code = importlib.import_module(f"{package}.__main__").main(words)
        except SystemExit as error:
            code = error.code
    results.append([code, said.getvalue()])
print(json.dumps(results))
"""


class Hub:
    """A server with repositories.

    Attributes:
        models: commit and files, by repository and revision.
        gated: repositories that give their files to `TOKEN` alone.
        broken: status and body of the next answers, in the place of right ones.
        requests: method and path of each request, in order.
        agents: the user agents of all requests.
        tokens: the host and the token of each request that has one.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, tuple[str, Mapping[str, Path]]]] = {}
        self.gated: set[str] = set()
        self.broken: list[tuple[int, bytes]] = []
        self.requests: list[str] = []
        self.agents: set[str] = set()
        self.tokens: set[tuple[str, str]] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def add(self, repository: str, folder: Path, *, revision: str = "main", commit: str = COMMIT) -> None:
        """Publish all files of a folder as a revision of a repository."""
        files = {each.relative_to(folder).as_posix(): each for each in folder.rglob("*") if each.is_file()}
        self.models.setdefault(repository, {}).update({revision: (commit, files), commit: (commit, files)})

    def downloads(self) -> list[str]:
        """Return the files whose bytes were sent since the last call, and forget them."""
        sent = [each.split("/", 5)[5] for each in self.requests if each.startswith("GET /files/")]
        self.requests.clear()
        return sent

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """Return the variables of a process that uses this hub, with a cache below `home`."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        direct = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
        own = {"PYTHONPATH": str(ROOT), "HF_HOME": str(home / "hub"), "HF_ENDPOINT": self.endpoint}
        return kept | direct | own | changes

    def run(self, home: Path, *words: Any, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments in the folder `home`; `changes` are variables."""
        line = [sys.executable, *map(str, words)]
        return subprocess.run(
            line, cwd=home, env=self.environment(home, **changes), capture_output=True, text=True, timeout=500
        )

    def run_several(
        self, home: Path, lines: Sequence[Sequence[Any]], without: Sequence[str] = (), **changes: str
    ) -> list[tuple[int, str]]:
        """Run command lines, `vit import …`, in one process; return exit code and standard error of each.

        The packages in `without` cannot be imported there.
        """
        words = json.dumps([list(map(str, each)) for each in lines])
        done = self.run(home, "-c", _SEVERAL, words, *without, **changes)
        assert done.returncode == 0, done.stderr
        return [(code, said) for code, said in json.loads(done.stdout)]


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Start a hub, and stop it at the end."""
    hub = Hub()
    threading.Thread(target=hub.server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()


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
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.agents.add(self.headers.get("User-Agent", ""))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add((self.headers["Host"].partition(":")[0], token))
        if self.hub.broken:
            self._send(*self.hub.broken.pop(0))
        elif path.startswith("/api/models/"):
            owner, name, *revision = path.removeprefix("/api/models/").split("/")
            self._list(f"{owner}/{name}", unquote("/".join(revision[1:])) or "main")
        elif path.startswith("/files/"):  # /files/OWNER/NAME/COMMIT/FILE
            owner, name, commit, file = unquote(path).removeprefix("/files/").split("/", 3)
            self._send(200, self.hub.models[f"{owner}/{name}"][commit][1][file].read_bytes())
        else:  # /OWNER/NAME/resolve/REVISION/FILE
            repository, _, place = path.strip("/").partition("/resolve/")
            self._resolve(repository, *map(unquote, place.split("/", 1)))  # refs%2Fpr%2F7/FILE

    def _list(self, repository: str, revision: str) -> None:
        if (found := self._find(repository, revision)) is None:
            return
        siblings = [{"rfilename": each} for each in sorted(found[1])]
        document = {"id": repository, "sha": found[0], "siblings": siblings}
        self._send(200, json.dumps(document).encode())

    def _resolve(self, repository: str, revision: str, file: str) -> None:
        if (found := self._find(repository, revision)) is None:
            return
        if repository in self.hub.gated and (given := self.headers.get("Authorization")) != f"Bearer {TOKEN}":
            return self._send(403 if given else 401, code="GatedRepo")
        commit, files = found
        if file not in files:
            return self._send(404, code="EntryNotFound")
        data = files[file].read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "X-Repo-Commit": commit}
        # All files lie on another host, as large ones do; it gets no token.
        other = self.hub.endpoint.replace("127.0.0.1", "localhost")
        self._send(302, Location=f"{other}/files/{repository}/{commit}/{file}", **linked)

    def _find(self, repository: str, revision: str) -> tuple[str, Mapping[str, Path]] | None:
        """Return the commit and the files of a revision, or send an error."""
        if repository not in self.hub.models:  # as the hub answers whoever has no token
            self._send(401, code="RepoNotFound")
        elif revision not in self.hub.models[repository]:
            self._send(404, code="RevisionNotFound")
        else:
            return self.hub.models[repository][revision]
        return None

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
