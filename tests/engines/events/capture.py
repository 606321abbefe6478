"""Events recorded from a real engine with the requests that caused them (data/README.md).

`python -m tests.engines.events.capture FOLDER FILE` packs a recording into a file of data/.
"""

import base64
import gzip
import json
import lzma
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from extproc.engines.events import Message
from extproc.terms import TokenIds

DATA = Path(__file__).parent / "data"


class Heard(Struct, array_like=True):
    """A message in order of receipt. time: Unix seconds."""

    time: float
    seq: int
    payload: bytes

    @property
    def message(self) -> Message:
        return Message(self.seq, self.payload)


class Asked(Struct):
    """A request. cached_tokens: as the engine reported; None for one that was aborted.

    sent: Unix seconds. prompt_ids: 4 bytes an id, little-endian.
    """

    n: int
    segment: str
    sent: float
    salt: str
    prompt_ids: TokenIds
    cached_tokens: int | None


class Capture(Struct):
    events: list[Heard]
    requests: list[Asked]
    """In order of sending."""


def packed(file: Path) -> Capture:
    """One that is in data/."""
    return msgspec.msgpack.decode(lzma.decompress(file.read_bytes()), type=Capture)


def recorded(folder: Path) -> Capture:
    """One as it was recorded: events.jsonl.gz and requests.jsonl.gz."""
    requests = [
        Asked(
            line["n"],
            line.get("segment", ""),
            line["t_send"],
            line["request"].get("cache_salt") or "",
            TokenIds(array("I", line["prompt_ids"]).tobytes()),
            line["cached_tokens"],
        )
        for line in _lines(folder / "requests.jsonl.gz")
        if line["prompt_ids"] is not None
    ]
    events = [
        Heard(line["t"], line["seq"], base64.b64decode(line["payload"]))
        for line in _lines(folder / "events.jsonl.gz")
    ]
    return Capture(events, sorted(requests, key=lambda request: request.sent))


def _lines(file: Path) -> Iterator[Any]:
    with gzip.open(file) as lines:
        yield from map(json.loads, lines)


if __name__ == "__main__":
    raw = msgspec.msgpack.encode(recorded(Path(sys.argv[1])))
    Path(sys.argv[2]).write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
