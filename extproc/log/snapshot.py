"""An index as pieces of bytes and back (docs/log-format.md, "Snapshots"). Pure.

A piece is a checksum and a body. The first body is MAGIC, the format's version and a `Header`; then
the index's chunks, in msgpack with the names of their fields; the last an `End`. A checksum covers
the piece's number too, so one that is missing, twice or in another's place is noticed.
"""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import chain

import msgspec
import xxhash

from extproc.index import FOLD_VERSION, Chunk, PrefixIndex, SnapshotError
from extproc.log.interface import BadSnapshot

MAGIC = b"homing.s"
"""What every snapshot begins with, after its checksum."""

FORMAT = 1
"""Rises when a reader of the version before could not make sense of it; further fields are none
such."""

_CHECKSUM_BYTES = 8
_FORMAT_BYTES = 2


class Header(msgspec.Struct, frozen=True):
    """Whose snapshot it is.

    fold: the writer's `FOLD_VERSION`. keyed: `fingerprint` of the secret that the block keys are
    seeded with.
    """

    pool: str
    fold: int
    keyed: str


class End(msgspec.Struct, frozen=True, tag="end"):
    """Last piece: how many came before it."""

    pieces: int


_BODIES = msgspec.msgpack.Decoder(Chunk | End)


class IndexSnapshots:
    """A pool's index as a log's `Snapshots`.

    secret: what its block keys are seeded with, asked for whenever that matters.
    """

    def __init__(self, pool: str, index: PrefixIndex, secret: Callable[[], bytes]) -> None:
        self._pool = pool
        self._index = index
        self._secret = secret

    def save(self) -> Iterator[bytes]:
        """Pieces of the state when the first that is not empty comes; facts may go on meanwhile."""
        while self._index.backlog:
            self._index.step()
            yield b""
        encode = msgspec.msgpack.encode
        chunks = self._index.snapshot()  # closed when this generator is: nobody else has it
        head = next(chunks)
        header = Header(self._pool, FOLD_VERSION, fingerprint(self._secret()))
        yield seal(0, MAGIC + FORMAT.to_bytes(_FORMAT_BYTES, "little") + encode(header))
        number = 1
        for chunk in chain((head,), chunks):
            yield seal(number, encode(chunk))
            number += 1
        yield seal(number, encode(End(number)))

    def load(self, pieces: Iterable[bytes]) -> Iterator[None]:
        """Take over what `save` gave, a slice an item.

        Raises BadSnapshot, which says what is wrong with them; the index is empty then.
        """
        try:
            for _ in self._index.load(self._chunks(pieces)):
                yield
        except (BadSnapshot, SnapshotError) as error:
            self._index.reset()
            raise BadSnapshot(str(error)) from None

    def _chunks(self, pieces: Iterable[bytes]) -> Iterator[Chunk]:
        bodies = enumerate(_bodies(pieces))
        _, first = next(bodies, (0, b""))
        self._check(read_header(first))
        for number, body in bodies:
            try:
                found = _BODIES.decode(body)
            except msgspec.DecodeError as error:
                raise BadSnapshot(f"piece {number}: {error}") from None
            if isinstance(found, End):
                if found.pieces != number or next(bodies, None) is not None:
                    raise BadSnapshot("pieces are missing, or too many")
                return
            yield found
        raise BadSnapshot("the end is missing")

    def _check(self, header: Header) -> None:
        if header.pool != self._pool:
            raise BadSnapshot(f"of the pool {header.pool!r}, not of {self._pool!r}")
        if header.keyed != fingerprint(self._secret()):
            raise BadSnapshot("its blocks are keyed with another secret than the pool's")
        if header.fold != FOLD_VERSION:
            raise BadSnapshot(f"of fold version {header.fold}; this Homing's is {FOLD_VERSION}")


def read_header(body: bytes) -> Header:
    """The first body. Raises BadSnapshot where it begins no snapshot that this code can read."""
    start = len(MAGIC) + _FORMAT_BYTES
    if not body.startswith(MAGIC) or len(body) < start:
        raise BadSnapshot("no snapshot of Homing")
    if (found := int.from_bytes(body[len(MAGIC) : start], "little")) != FORMAT:
        raise BadSnapshot(f"of format {found}; this Homing reads {FORMAT}")
    try:
        return msgspec.msgpack.decode(body[start:], type=Header)
    except msgspec.DecodeError as error:
        raise BadSnapshot(f"header: {error}") from None


def fingerprint(secret: bytes) -> str:
    """Tells secrets apart and says nothing about them."""
    return blake2b(secret, digest_size=8, person=b"homing.keyed").hexdigest()


def seal(number: int, body: bytes) -> bytes:
    """A body as the piece of this number."""
    checksum = xxhash.xxh3_64_intdigest(body, seed=number)
    return checksum.to_bytes(_CHECKSUM_BYTES, "little") + body


def unseal(number: int, piece: bytes) -> bytes:
    """The body of the piece of this number. Raises BadSnapshot where it is not that."""
    body = piece[_CHECKSUM_BYTES:]
    if seal(number, body) != piece:
        raise BadSnapshot(f"piece {number} is damaged")
    return body


def _bodies(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for number, piece in enumerate(pieces):
        yield unseal(number, piece)
