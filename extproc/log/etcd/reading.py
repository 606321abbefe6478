"""Ranges of keys, a page at a time, all at one revision."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from etcd3aio._protobuf import RangeResponse

from extproc.log.etcd.client import Client, Connection
from extproc.log.etcd.keys import after

PAGE_BYTES = 1024 * 1024
"""What a page has about: some milliseconds to parse, in which nothing else is done."""

_FIRST_PAGE = 16
_LARGEST_PAGE = 4096
"""Keys of one page; with records of the largest size, half of MAX_MESSAGE_BYTES."""

PAGE_TIMEOUT_S = 10.0


async def pages(
    client: Client, prefix: bytes, revision: int, *, keys_only: bool = False
) -> AsyncIterator[Sequence[Any]]:
    """The key-values under the prefix, in the keys' order.

    revision: of all pages; 0 for the latest at each. Raises Away.
    """
    start, end = prefix, after(prefix)
    limit = _LARGEST_PAGE if keys_only else _FIRST_PAGE
    while True:
        page = await client.call(partial(_page, start, end, revision, limit, keys_only))
        if page.kvs:
            yield page.kvs
        if not page.more:
            return
        start = page.kvs[-1].key + b"\0"
        if not keys_only:
            average = max(1, page.ByteSize() // len(page.kvs))
            limit = max(_FIRST_PAGE, min(PAGE_BYTES // average, 4 * limit, _LARGEST_PAGE))


async def _page(
    start: bytes, end: bytes, revision: int, limit: int, keys_only: bool, connection: Connection
) -> RangeResponse:
    return await connection.kv.get(
        start, end, revision=revision, limit=limit, keys_only=keys_only, timeout=PAGE_TIMEOUT_S
    )
