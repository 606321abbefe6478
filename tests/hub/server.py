"""A hub of one model on loopback: the few requests of the real one that a download makes.

No hub can be reached from where the tests run, so this is what we know of its API: what
`huggingface_hub` asks for, over a real socket.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import ClassVar
from urllib.parse import urlsplit

COMMIT = "1" * 40
LATER = "2" * 40


@dataclass
class Hub:
    """What is on it, and what was asked of it.

    commits: the files of each. heads: branch → commit. status: of all answers, where it is down.
    silent: while it is set, nothing is answered.
    """

    model: str
    commits: dict[str, dict[str, bytes]]
    heads: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    status: int = 200
    asked: list[str] = field(default_factory=list)
    answering: Event = field(default_factory=Event)
    endpoint: str = ""

    @property
    def fetched(self) -> set[str]:
        """Names of the files whose bytes were sent."""
        return {
            path.rpartition("/")[2] for path in self.asked if "GET /" in path and "resolve" in path
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def _answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.asked.append(f"{self.command} {path}")
        hub.answering.wait()
        if hub.status != 200:
            return self._send(hub.status, b"{}")
        match path.removeprefix("/api/models").removeprefix(f"/{hub.model}").split("/"):
            case ["", "revision", revision]:
                commit = hub.heads.get(revision, revision)
                if commit not in hub.commits:
                    return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
                info = {"id": hub.model, "sha": commit, "siblings": [], "tags": []}
                return self._send(200, json.dumps(info).encode())
            case ["", "tree", commit]:
                files = hub.commits[commit]
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                    for name, data in files.items()
                ]
                return self._send(200, json.dumps(tree).encode())
            case ["", "resolve", commit, name]:
                data = hub.commits[commit][name]
                headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": commit}
                return self._send(200, data, headers)
        return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _oid(data: bytes) -> str:
    return sha1(data).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub, reachable at its `endpoint` while the block runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    hub.answering.set()
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield hub
        hub.answering.set()
        server.shutdown()
        thread.join()
