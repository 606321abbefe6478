"""JSON bodies, cut into fields and array items, with what was read before skipped.

The next turn of a conversation begins with the bytes of the one before. A body whose first bytes
are known up to the end of a message is read as if the known messages were not there.
"""

import json
import re
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from math import inf
from typing import TypeVar

import msgspec

from extproc.errors import BadRequest, HomingError, Unroutable
from extproc.prompt.beginnings import Beginnings, Marked
from extproc.prompt.rawarray import Json, RawArray
from extproc.prompt.types import TooNew

_MIN_REMEMBERED = 32 << 10
"""Bytes of the shortest body that is worth remembering."""

_BEGINNING_BYTES = 400
"""About what one known beginning takes, without the positions of its items."""

_MEMO_BYTES = 32 << 20

_ITEM_BYTES = 16
"""What an item counts at least where new bytes are counted: empty ones take their time too."""

_FIELD_SHARE = 4
"""Bytes of fields beside the array are skipped, not read: so many count as one."""

_MAX_FIELDS = 1_000

_MAX_ARRAYS = 8
"""Fields of the array's name, at any depth, that are looked at to find the right one."""

_OPEN = re.compile(rb"\s*\{\s*")
_KEY = re.compile(rb'"([^"\\]*)"\s*:\s*')
_COMMA = re.compile(rb"\s*,\s*")
_NEXT = re.compile(rb"\s*([,}])\s*")
_EMPTY = re.compile(rb"\[\s*\]")
_CLOSE = re.compile(rb"\s*\]")

_T = TypeVar("_T")

_decode = msgspec.json.Decoder().decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Body:
    """The fields of a body, decoded when asked for, and the items of its array."""

    __slots__ = ("_fields", "items")

    def __init__(self, fields: dict[str, msgspec.Raw], items: RawArray | None) -> None:
        self._fields = fields
        self.items = items

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def get(self, name: str) -> Json:
        """The value of a field; None where it is absent. The array's own field is empty."""
        raw = self._fields.get(name)
        return None if raw is None else _decode(raw)

    def raw(self, name: str) -> bytes:
        """The JSON of a field, b"" where it is absent."""
        raw = self._fields.get(name)
        return b"" if raw is None else bytes(raw)


@dataclass(frozen=True, slots=True)
class _Beginning:
    """A body's first bytes up to the end of a message."""

    array_start: int
    starts: "array[int]"
    ends: "array[int]"
    chained: bytes
    """The digest of all items so far, see `RawArray.digests`."""


class BodyReader:
    """Reads bodies whose field `name` holds an array of objects.

    Thread-safe. Keeps digests and positions of what it has read, and no text.
    """

    def __init__(self, name: str, memo_bytes: int = _MEMO_BYTES) -> None:
        self._name = name
        self._find = re.compile(rb'"%s"\s*:\s*\[\s*' % name.encode())
        only = msgspec.defstruct(
            "Only", [(name, list[msgspec.Raw] | msgspec.UnsetType, msgspec.UNSET)]
        )
        self._decode_array = msgspec.json.Decoder(only).decode
        self._known: Beginnings[_Beginning] = Beginnings(memo_bytes)

    def read(self, body: bytes, most_new: float = inf) -> Body:
        """The body's fields and, where `name` holds an array, its items.

        most_new: bytes that may be read besides a known beginning.

        Raises BadRequest where the body is not a JSON object or an item of the array is none,
        Unroutable where only some engines can read it, and TooNew.
        """
        if len(body) < _MIN_REMEMBERED:
            _check_new(len(body), most_new)
            return self._read_all(body)
        text = Marked(body)
        found = self._known.find(text)
        read = self._read_after(body, *found, most_new) if found else None
        if read is None:
            _check_new(len(body), most_new)
            read = self._read_all(body)
        if read.items:
            self._remember(text, read.items)
        return read

    def _read_all(self, body: bytes) -> Body:
        raws = _judged(body, self._decode_items)
        if raws is None:
            return read_fields(body)
        for found in islice(self._find.finditer(body), _MAX_ARRAYS):
            read = self._cut(body, found.end(), raws)
            if read is not None:
                return read
        raise Unroutable("json_dialect", f"{self._name} too often, or its name with escapes")

    def _decode_items(self, body: bytes) -> list[msgspec.Raw] | None:
        """The array's items; None where there is no array."""
        try:
            items = getattr(self._decode_array(body), self._name)
        except msgspec.ValidationError:  # another type, or the body is no object
            return None
        return None if items is msgspec.UNSET else items

    def _cut(self, body: bytes, array_start: int, raws: list[msgspec.Raw]) -> Body | None:
        """Fields and items, if the array at `array_start` is the one of the items `raws`."""
        starts, ends = array("Q"), array("Q")
        at = array_start
        for raw in raws:
            data = bytes(raw)
            if not body.startswith(data, at):
                return None
            if not data.startswith(b"{"):
                raise BadRequest("must be an object", f"{self._name}[{len(starts)}]")
            starts.append(at)
            at += len(data)
            ends.append(at)
            comma = _COMMA.match(body, at)
            at = comma.end() if comma else at
        if not _CLOSE.match(body, at):
            return None
        rest = body[:array_start] + body[at:]
        fields = _unique(rest, _decode_fields(rest))
        if not _EMPTY.fullmatch(fields.get(self._name, b"")):  # of an object inside another field
            return None
        return Body(fields, RawArray(body, starts, ends))

    def _read_after(
        self, body: bytes, size: int, known: _Beginning, most_new: float
    ) -> Body | None:
        """The body, of which `size` bytes are not read again; None where that cannot be done."""
        comma = _COMMA.match(body, size)
        resumed = comma.end() if comma else size
        if not (comma or _CLOSE.match(body, resumed)):
            return None
        short = body[: known.array_start] + body[resumed:]
        moved = len(body) - len(short)
        _check_new(len(short) // _FIELD_SHARE, most_new)
        try:
            _check_utf8(short)
            raws = self._decode_items(short)
            _check_new(sum(max(len(raw), _ITEM_BYTES) for raw in raws or ()), most_new)
            read = None if raws is None else self._cut(short, known.array_start, raws)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, HomingError):
            return None  # to be judged as a whole
        if read is None or read.items is None or (comma and not read.items):
            return None
        read.items = RawArray(
            body,
            known.starts + array("Q", (start + moved for start in read.items.starts)),
            known.ends + array("Q", (end + moved for end in read.items.ends)),
            len(known.ends),
            known.chained,
        )
        return read

    def _remember(self, text: Marked, items: RawArray) -> None:
        size = items.ends[-1]
        if size >= _MIN_REMEMBERED:
            known = _Beginning(items.starts[0], items.starts, items.ends, items.digests()[-1])
            self._known.put(text, size, known, _BEGINNING_BYTES + 16 * len(items.ends))


def read_fields(body: bytes, most_new: float = inf) -> Body:
    """A body of which no array is cut. Raises as `BodyReader.read` does."""
    _check_new(len(body), most_new)
    try:
        return Body(_judged(body, lambda body: _unique(body, _decode_fields(body))), None)
    except msgspec.ValidationError:
        raise BadRequest("the body must be a JSON object") from None


def _judged(body: bytes, decode: Callable[[bytes], _T]) -> _T:
    """Decode, and refuse what is not JSON even to Python's `json`, which reads the most."""
    try:
        _check_utf8(body)
        return decode(body)
    except msgspec.ValidationError:
        raise
    except RecursionError:
        raise Unroutable("json_too_deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        value = json.loads(body)
    except RecursionError:
        raise Unroutable("json_too_deep") from None
    except ValueError:
        raise BadRequest("the body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    raise Unroutable("json_dialect")


def _check_new(size: int, most: float) -> None:
    if size > most:
        raise TooNew


def _check_utf8(body: bytes) -> None:
    if not body.isascii():
        body.decode()


def _unique(body: bytes, fields: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """The fields of the object `body`, of which each is there once."""
    if len(fields) > _MAX_FIELDS:
        raise Unroutable("json_dialect", "too many fields")
    at = _OPEN.match(body).end()  # type: ignore[union-attr]
    for _ in fields:
        key = _KEY.match(body, at)
        raw = fields.get(key[1].decode()) if key else None
        if key is None or raw is None:
            raise Unroutable("json_dialect", "a field's name with escapes")
        step = _NEXT.match(body, key.end() + memoryview(raw).nbytes)
        if step is None:
            break
        at = step.end()
    if fields and not (step and step[1] == b"}"):
        raise Unroutable("json_dialect", "a field twice")
    return fields
