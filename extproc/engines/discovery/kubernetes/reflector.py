"""Keeps a copy of one kind of objects: list, then watch from where the list ended.

https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes: a watch
ends whenever the server likes and goes on from the last version seen; bookmarks move that version
on without a change; 410 says that it is too old, and everything is listed again.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
import msgspec

from extproc.engines.discovery.interface import DiscoveryError
from extproc.engines.discovery.kubernetes.objects import (
    ObjectList,
    Status,
    Thing,
    WatchEvent,
)

PAGE_OBJECTS = 500
"""Of a list, fetched at a time."""

MOST_LINE_BYTES = 16 * 1024 * 1024
"""Of one event: etcd keeps no object beyond 1.5 MiB."""

WATCH_S = 240
"""The server is asked to end a watch after this time; a connection that has died shows by then."""

LIST_PATIENCE_S = 30

PAUSE_S = 1.0
"""After a watch that ended at once, before the next."""

_GONE = 410
_DECODE_EVENT = msgspec.json.Decoder(WatchEvent)
_DECODE_THING = msgspec.json.Decoder(Thing)
_DECODE_STATUS = msgspec.json.Decoder(Status)

T = TypeVar("T", bound=Thing)


class Api(Protocol):
    """Sends a GET to the API server, with its authentication."""

    async def get(
        self, path: str, query: Mapping[str, str], timeout_s: float
    ) -> aiohttp.ClientResponse:
        """The answer, whatever its status, its body not read yet."""
        ...


class _Expired(Exception):
    """The version that was asked from is too old."""


class Reflector(Generic[T]):
    """objects: by name, as of now; empty before the first list. listed: whether there was one.

    path: of the resource in its namespace. query: what limits it, such as a label selector.
    """

    def __init__(
        self,
        api: Api,
        kind: type[T],
        path: str,
        query: Mapping[str, str],
        changed: Callable[[], None],
    ) -> None:
        self.objects: dict[str, T] = {}
        self.listed = False
        self._api = api
        self._path = path
        self._query = query
        self._changed = changed
        self._version = ""
        self._decode = msgspec.json.Decoder(kind)
        self._decode_list: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
            ObjectList[kind]  # type: ignore[valid-type]
        )

    async def run(self) -> None:
        """Follow until cancelled. Raises DiscoveryError where the server is away or refuses."""
        try:
            while True:
                try:
                    await self._list()
                    await self._watch()
                except _Expired:
                    await asyncio.sleep(0)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            raise DiscoveryError(f"{self._path}: {said}") from None
        except msgspec.DecodeError as error:
            raise DiscoveryError(f"{self._path}: not what the API says: {error}") from None

    async def _list(self) -> None:
        objects: dict[str, T] = {}
        query = {**self._query, "limit": str(PAGE_OBJECTS)}
        while True:
            answer = await self._get(query, LIST_PATIENCE_S)
            async with answer:
                page = self._decode_list.decode(await answer.read())
            objects |= {one.metadata.name: one for one in page.items}
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self._version = page.metadata.resource_version
        self.objects = objects
        self.listed = True
        self._changed()

    async def _watch(self) -> None:
        """One watch after another, each from where the one before ended."""
        while True:
            begun = monotonic()
            query = {
                **self._query,
                "watch": "true",
                "allowWatchBookmarks": "true",
                "resourceVersion": self._version,
                "timeoutSeconds": str(WATCH_S),
            }
            answer = await self._get(query, WATCH_S + LIST_PATIENCE_S)
            async with answer:
                try:
                    async for line in _lines(answer.content):
                        self._take(_DECODE_EVENT.decode(line))
                except (aiohttp.ClientPayloadError, ConnectionError):
                    pass  # cut off: it goes on where it was
            if monotonic() - begun < PAUSE_S:
                await asyncio.sleep(PAUSE_S)

    def _take(self, event: WatchEvent) -> None:
        if event.type == "ERROR":
            status = _DECODE_STATUS.decode(event.object)
            if status.code == _GONE:
                raise _Expired
            raise DiscoveryError(f"{self._path}: {status.code} {status.message}")
        if event.type == "BOOKMARK":  # of an object it has the version only
            self._version = _DECODE_THING.decode(event.object).metadata.resource_version
            return
        one = self._decode.decode(event.object)
        self._version = one.metadata.resource_version
        if event.type == "DELETED":
            self.objects.pop(one.metadata.name, None)
        else:
            self.objects[one.metadata.name] = one
        self._changed()

    async def _get(self, query: Mapping[str, str], timeout_s: float) -> aiohttp.ClientResponse:
        answer = await self._api.get(self._path, query, timeout_s)
        if answer.status == 200:
            return answer
        answer.close()
        if answer.status == _GONE:
            raise _Expired
        raise DiscoveryError(f"{self._path}: {answer.status} {answer.reason}")


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The events of a watch, a line each; a last one that was cut is left out."""
    rest = b""
    async for chunk in content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line
        if len(rest) > MOST_LINE_BYTES:
            raise DiscoveryError(f"an event of more than {MOST_LINE_BYTES} bytes")
