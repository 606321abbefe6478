"""The model's name in a body: found in a request's, and put back in an answer's.

Only the name's own bytes change. Nothing is parsed into values, so what else is in the body comes
out as it went in, and nothing is held: an answer's bytes go on as they come, but for the name's.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum, auto, unique
from typing import Final, NamedTuple

_NAME: Final = b"model"

_AROUND_NAMES: Final = frozenset((b"response", b"message"))
"""Objects of an answer that name the model too: events of OpenAI's Responses API
(`response.created` …) and of Anthropic's Messages API (`message_start`)."""

_KEY_BYTES: Final = 6 * max(map(len, (_NAME, *_AROUND_NAMES))) + 2
"""Bytes of a key that are looked at: one of those with each letter an escape, its quote, and one
more, so that what is cut off here is none of them."""

_QUOTE, _BACKSLASH = b'"', b"\\"

_STRING = rb'[^"\\]*+(?:\\.[^"\\]*+)*+'
_STRING_REST = re.compile(_STRING, re.DOTALL)
_TOKEN = re.compile(rb'["{}\[\],:]')
_DEEP_TOKEN = re.compile(rb'[^"{}\[\]]*+(?:"%s"[^"{}\[\]]*+)*+["{}\[\]]' % _STRING, re.DOTALL)
"""Deeper than names are, only brackets matter, and a string that goes on in the next chunk."""

_MOST_BRACKETS: Final = 500_000
"""In a request: half a second of work. A body of 32 MiB can be brackets alone."""

_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{")

_LINE = re.compile(rb"[^\r\n]+|\r\n?|\n")
_DATA: Final = b"data:"
_OTHER: Final = b"-"
"""Stands for the beginning of any line that is not data."""


class Span(NamedTuple):
    """Bytes `start` to `stop` of a chunk that are a name in quotes, or a part of one.

    opens: it begins here. closes: it ends here.
    """

    start: int
    stop: int
    opens: bool
    closes: bool


@unique
class _In(IntEnum):
    """Which kind of string the scanner is in."""

    NONE = auto()
    KEY = auto()
    NAME = auto()
    OTHER = auto()


@unique
class _Next(IntEnum):
    """What a string would be that begins now; matters in an object that can name the model."""

    KEY = auto()
    VALUE = auto()
    NEITHER = auto()


class NameScanner:
    """Finds the strings that are the value of a top-level "model", in JSON that comes in chunks.

    around: keys of the top-level object whose own "model" counts too.

    Never raises; of what is not JSON it finds what looks like it. O(bytes), with a step of
    Python's for each string and bracket.
    """

    __slots__ = ("_around", "_depth", "_escaped", "_in", "_key", "_named", "_next")

    def __init__(self, around: frozenset[bytes] = frozenset()) -> None:
        self._around = around
        self._depth = 0
        self._named = 0
        """How many of the objects around this place can name the model; they are the outermost."""
        self._next = _Next.NEITHER
        self._key = b""
        self._in = _In.NONE
        self._escaped = False
        """In a string, whether the last byte escapes the next."""

    @property
    def midway(self) -> bool:
        """Whether a name has begun and not ended."""
        return self._in is _In.NAME

    def feed(self, data: bytes) -> list[Span]:
        """The names in the next chunk, in order."""
        spans: list[Span] = []
        at, opens = 0, False
        while True:
            if self._in is not _In.NONE:
                start = at - 1 if opens else at
                ended = self._string_end(data, at)
                stop = len(data) if ended is None else ended
                if self._in is _In.NAME and stop > start:
                    spans.append(Span(start, stop, opens, ended is not None))
                elif self._in is _In.KEY and len(self._key) < _KEY_BYTES:
                    self._key += data[at : min(stop, at + _KEY_BYTES)]
                if ended is None:
                    return spans
                if self._in is _In.KEY:
                    self._key = _unescaped(self._key[:-1])
                self._in, at = _In.NONE, stop
            deep = self._depth != self._named
            found = _DEEP_TOKEN.match(data, at) if deep else _TOKEN.search(data, at)
            if found is None:
                return spans
            at = found.end()
            token = data[at - 1 : at]
            opens = token == _QUOTE
            if opens:
                self._in = self._string_kind()
            else:
                self._structure(token)

    def _string_kind(self) -> _In:
        if self._depth != self._named or self._next is _Next.NEITHER:
            return _In.OTHER
        if self._next is _Next.KEY:
            self._key = b""
            return _In.KEY
        return _In.NAME if self._key == _NAME else _In.OTHER

    def _structure(self, token: bytes) -> None:
        match token:
            case b"{" | b"[":
                if token == b"{" and self._can_name():
                    self._named += 1
                    self._next = _Next.KEY
                self._depth += 1
            case b"}" | b"]":
                self._depth = max(0, self._depth - 1)
                self._named = min(self._named, self._depth)
                self._next = _Next.NEITHER
            case b":":
                self._next = _Next.VALUE
            case _:
                self._next = _Next.KEY if self._depth else _Next.NEITHER

    def _can_name(self) -> bool:
        """Whether an object that begins now can name the model."""
        return self._depth == 0 or (self._depth == 1 and self._key in self._around)

    def _string_end(self, data: bytes, at: int) -> int | None:
        """Just behind the quote that ends the string; None where it goes on in the next chunk."""
        if self._escaped and at < len(data):
            self._escaped = False
            at += 1
        at = _STRING_REST.match(data, at).end()  # type: ignore[union-attr]
        if at == len(data):
            return None
        if data[at : at + 1] == _QUOTE:
            return at + 1
        self._escaped = True
        return None


def _unescaped(key: bytes) -> bytes:
    if _BACKSLASH not in key:
        return key
    try:
        return str(json.loads(b'"%s"' % key)).encode()
    except ValueError:
        return key


# --- requests ---


@dataclass(frozen=True, slots=True)
class FoundModel:
    """The name that a request's body gives, and where it stands in it, quotes included."""

    name: str
    start: int
    stop: int

    def replaced(self, body: bytes, name: str) -> bytes:
        """The body with another name in this place and every other byte as it is."""
        return b"".join((body[: self.start], _quoted(name), body[self.stop :]))


def find_model(body: bytes) -> FoundModel | None:
    """The model of a JSON body; of several the last, as engines read it.

    None where it is no JSON object, has no model that is a string, or more brackets than any
    prompt.
    """
    if not _OBJECT.match(body):
        return None
    if body.count(b"[") + body.count(b"{") > _MOST_BRACKETS:
        return None
    spans = NameScanner().feed(body)
    if not spans or not spans[-1].closes:
        return None
    start, stop, _, _ = spans[-1]
    try:
        return FoundModel(str(json.loads(body[start:stop])), start, stop)
    except ValueError:
        return None


# --- answers ---


class JsonRenamer:
    """Puts `name` wherever a JSON answer names its model. Holds nothing."""

    __slots__ = ("_quoted", "_scanner")

    def __init__(self, name: str) -> None:
        self._quoted = _quoted(name)
        self._scanner = NameScanner(_AROUND_NAMES)

    @property
    def midway(self) -> bool:
        """Whether the next bytes may be the rest of a name that was replaced."""
        return self._scanner.midway

    def feed(self, data: bytes) -> bytes:
        """What the next chunk becomes."""
        spans = self._scanner.feed(data)
        if not spans:
            return data
        pieces, at = [], 0
        for start, stop, opens, _ in spans:
            pieces.append(data[at:start])
            if opens:
                pieces.append(self._quoted)
            at = stop
        return b"".join((*pieces, data[at:]))


class EventRenamer:
    """Puts `name` wherever an event of a `text/event-stream` names the model. Holds nothing.

    Lines and events as the HTML standard has them: CR, LF or both end a line, an empty line an
    event, and an event's data may be on several lines.
    """

    __slots__ = ("_after_cr", "_begun", "_json", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._json = JsonRenamer(name)
        self._begun = b""
        """The line's first bytes, as far as they may be those of data; `_OTHER` if not."""
        self._after_cr = False

    @property
    def midway(self) -> bool:
        """Whether the next bytes may be the rest of a name that was replaced."""
        return self._json.midway

    def feed(self, data: bytes) -> bytes:
        """What the next chunk becomes."""
        pieces = []
        for piece in _LINE.findall(data):
            if piece[:1] not in (b"\r", b"\n"):
                piece = self._line(piece)
            elif not (piece == b"\n" and self._after_cr):
                self._line_end()
            self._after_cr = piece == b"\r"
            pieces.append(piece)
        return b"".join(pieces)

    def _line_end(self) -> None:
        if not self._begun:
            self._json = JsonRenamer(self._name)
        self._begun = b""

    def _line(self, piece: bytes) -> bytes:
        if self._begun == _DATA:
            return self._json.feed(piece)
        if self._begun == _OTHER:
            return piece
        rest = len(_DATA) - len(self._begun)
        self._begun += piece[:rest]
        if self._begun == _DATA:
            return piece[:rest] + self._json.feed(piece[rest:])
        if not _DATA.startswith(self._begun):
            self._begun = _OTHER
        return piece


_RENAMERS: Final[Mapping[str, Callable[[str], JsonRenamer | EventRenamer]]] = {
    "application/json": JsonRenamer,
    "text/event-stream": EventRenamer,
}


def answer_renamer(content_type: str, name: str) -> JsonRenamer | EventRenamer | None:
    """What puts `name` into an answer of this type; None for types that name no model."""
    media = content_type.partition(";")[0].strip().lower()
    renamer = _RENAMERS.get(media)
    return renamer(name) if renamer is not None else None


def _quoted(name: str) -> bytes:
    return json.dumps(name).encode()
