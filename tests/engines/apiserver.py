"""A Kubernetes API server as far as lists and watches go: versions, pages, bookmarks, 410 Gone.

It follows "Kubernetes API concepts": a version is one number for all objects; a list is as of its
version and comes in pages; a watch tells everything after the version that it is asked from, or
that this version is compacted away.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

TOKEN = "let-me-in"
NAMESPACE = "llm"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
POOLS = f"/apis/inference.networking.k8s.io/v1/namespaces/{NAMESPACE}/inferencepools"


def pod(
    name: str,
    ip: str | None,
    *,
    ready: bool = True,
    phase: str = "Running",
    deleting: bool = False,
    **labels: str,
) -> dict[str, Any]:
    """A pod, with much that nobody reads."""
    status: dict[str, Any] = {
        "phase": phase,
        "conditions": [
            {"type": "Initialized", "status": "True", "lastProbeTime": None},
            {"type": "Ready", "status": "True" if ready else "False"},
        ],
        "containerStatuses": [{"name": "engine", "ready": ready, "restartCount": 0}],
    }
    if ip is not None:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": {"app": "engine", **labels},
        "annotations": {"padding": "x" * 70_000},
    }
    if deleting:
        metadata["deletionTimestamp"] = "2026-11-25T00:00:00Z"
    return {"kind": "Pod", "metadata": metadata, "spec": {"nodeName": "n"}, "status": status}


def pool(name: str, *ports: int, **labels: str) -> dict[str, Any]:
    """An InferencePool."""
    spec = {
        "selector": {"matchLabels": labels},
        "targetPorts": [{"number": port} for port in ports],
        "endpointPickerRef": {"name": "homing", "port": {"number": 9002}},
    }
    return {"kind": "InferencePool", "metadata": {"name": name}, "spec": spec}


@dataclass(slots=True)
class ApiServer:
    """requests: the path and query of each. status: of every answer, where one is set.
    page: objects of a list's page. history: (version, path, type, object)."""

    url: str = ""
    version: int = 100
    oldest: int = 0
    page: int = 2
    status: int | None = None
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    history: list[tuple[int, str, str, dict[str, Any]]] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    watches: dict[web.StreamResponse, asyncio.Task[Any]] = field(default_factory=dict)
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    # What a test does

    def put(self, path: str, *objects: dict[str, Any]) -> None:
        """Make or change objects, each at a version of its own."""
        for one in objects:
            name = one["metadata"]["name"]
            kind = "MODIFIED" if name in self.objects.setdefault(path, {}) else "ADDED"
            self._record(path, kind, one)
            self.objects[path][name] = one

    def delete(self, path: str, name: str) -> None:
        self._record(path, "DELETED", self.objects[path].pop(name))

    def bookmark(self) -> None:
        """Tell all watches the newest version."""
        mark = {"kind": "Pod", "metadata": {"resourceVersion": str(self.version)}}
        self.history.append((self.version, "", "BOOKMARK", mark))
        self._tell()

    def compact(self) -> None:
        """Forget all history for new watches: who asks from an older version is told so."""
        self.oldest = self.version

    def cut(self) -> None:
        """Break all watches in mid-line."""
        for task in self.watches.values():
            task.cancel()

    def _record(self, path: str, kind: str, one: dict[str, Any]) -> None:
        self.version += 1
        one["metadata"]["resourceVersion"] = str(self.version)
        self.history.append((self.version, path, kind, json.loads(json.dumps(one))))
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # What a client sees

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.path, dict(request.query)))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if self.status is not None:
            return web.json_response({"kind": "Status", "code": self.status}, status=self.status)
        if request.query.get("watch") == "true":
            return await self._watch(request)
        return self._list(request)

    def _list(self, request: web.Request) -> web.Response:
        held = [one for one in self.objects.get(request.path, {}).values() if _fits(one, request)]
        begin, version = map(int, request.query.get("continue", f"0-{self.version}").split("-"))
        if version < self.oldest:
            return web.json_response({"kind": "Status", "code": 410}, status=410)
        end = begin + min(self.page, int(request.query["limit"]))
        metadata = {"resourceVersion": str(version)}
        if end < len(held):
            metadata["continue"] = f"{end}-{version}"
        return web.json_response({"metadata": metadata, "items": held[begin:end]})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        since = int(request.query["resourceVersion"])
        answer = web.StreamResponse()
        await answer.prepare(request)
        task = asyncio.current_task()
        assert task is not None
        self.watches[answer] = task
        try:
            if since < self.oldest:
                gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                await answer.write(_line("ERROR", gone))
                return answer
            told = 0
            while True:
                news = self._news
                for version, path, kind, one in self.history[told:]:
                    mark = kind == "BOOKMARK" and "allowWatchBookmarks" in request.query
                    if mark or (path == request.path and version > since and _fits(one, request)):
                        await answer.write(_line(kind, one))
                told = len(self.history)
                await news.wait()
        except asyncio.CancelledError:
            with suppress(ConnectionError):
                await answer.write(b'{"type":"MODIFIED","object":{"metadata":{"name":"to')
            if request.transport is not None:
                request.transport.close()
            return answer
        finally:
            del self.watches[answer]


def _fits(one: dict[str, Any], request: web.Request) -> bool:
    metadata = one["metadata"]
    labels = metadata.get("labels", {})
    wanted = [part.split("=") for part in request.query.get("labelSelector", "").split(",") if part]
    name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
    return name in ("", metadata["name"]) and all(labels.get(k) == v for k, v in wanted)


def _line(kind: str, one: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": one}).encode() + b"\n"


@asynccontextmanager
async def apiserver(folder: Path) -> AsyncIterator[tuple[ApiServer, Path]]:
    """A server on loopback, and a kubeconfig that leads to it."""
    server = ApiServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.serve)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "here", "cluster": {"server": server.url}}],
                "users": [{"name": "me", "user": {"token": TOKEN}}],
                "contexts": [
                    {
                        "name": "test",
                        "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE},
                    }
                ],
            }
        )
    )
    try:
        yield server, kubeconfig
    finally:
        for task in list(server.watches.values()):
            task.cancel()
        await runner.cleanup()
