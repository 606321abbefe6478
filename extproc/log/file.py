"""A snapshot of every pool in one file (docs/log-format.md, "The snapshot file").

The file begins with MAGIC. Then come frames, each with its length (uint32, little-endian) before
it: for every pool a `Section`, the pieces of its snapshot and an empty frame; at last an `End`.
Sections and the end are sealed as pieces are; their number is the pool's.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from errno import EWOULDBLOCK
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec

from extproc.log.interface import PIECE_BYTES, BadSnapshot
from extproc.log.snapshot import seal, unseal

MAGIC = b"homing snapshot file 1\n"
"""With the version of this frame; the pieces have one of their own."""

_MOST_BYTES = PIECE_BYTES + 1024
"""Of a frame: what says it is longer is no file of ours."""

_LENGTH_BYTES = 4
_PRIVATE = 0o600
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Section(msgspec.Struct, frozen=True, tag="pool"):
    """A pool's snapshot follows.

    secret: what the pool's block keys are seeded with; so the file is private.
    """

    pool: str
    secret: bytes


class End(msgspec.Struct, frozen=True, tag="end"):
    """Nothing follows. pools: how many sections there were."""

    pools: int


_MARKS = msgspec.msgpack.Decoder(Section | End)


class FileWriter:
    """Writes a file beside the one that it takes the place of when it is whole.

    Nobody but the owner may read it. One process writes at a time. Blocks on the disk: for a thread
    of its own. Raises OSError.

        with FileWriter(path) as file:
            file.section(section)
            file.pieces(…)
            file.commit()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside = path.with_name(f".{path.name}.new")
        self._pools = 0
        self._committed = False
        self._file = os.fdopen(os.open(self._beside, _CREATE, _PRIVATE), "wb")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(self._file.fileno()), self._beside.stat()):
                raise BlockingIOError(EWOULDBLOCK, "another process has just written it")
            os.fchmod(self._file.fileno(), _PRIVATE)  # one that a crash left may be another's
            self._file.truncate()
            self._file.write(MAGIC)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._committed:
            self._beside.unlink(missing_ok=True)
        self._file.close()  # and with it the lock

    def section(self, section: Section) -> None:
        """Begin the next pool's."""
        self._end_section()
        self._frame(seal(self._pools, msgspec.msgpack.encode(section)))
        self._pools += 1

    def pieces(self, pieces: Iterable[bytes]) -> None:
        """The next pieces of the pool's snapshot; none of them is empty."""
        for piece in pieces:
            self._frame(piece)

    def commit(self) -> int:
        """Put it in the old one's place, on the disk for good; its size in bytes."""
        self._end_section()
        self._frame(seal(self._pools, msgspec.msgpack.encode(End(self._pools))))
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._beside.replace(self._path)
        self._committed = True
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return size

    def _end_section(self) -> None:
        if self._pools:
            self._frame(b"")

    def _frame(self, data: bytes) -> None:
        self._file.write(len(data).to_bytes(_LENGTH_BYTES, "little"))
        self._file.write(data)


def read_file(path: Path) -> list[tuple[Section, list[bytes]]] | None:
    """Every pool's section with the pieces of its snapshot; None where there is no file.

    The frames are checked, what is in the pieces is not. Blocks on the disk. Raises BadSnapshot
    where it is no file of ours or not a whole one, OSError where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return list(_sections(file))
    except FileNotFoundError:
        return None


def _sections(file: BinaryIO) -> Iterator[tuple[Section, list[bytes]]]:
    if file.read(len(MAGIC)) != MAGIC:
        raise BadSnapshot("no snapshot file of this version of Homing")
    pools = 0
    while True:
        try:
            mark = _MARKS.decode(unseal(pools, _frame(file)))
        except msgspec.DecodeError as error:
            raise BadSnapshot(f"section {pools}: {error}") from None
        if isinstance(mark, End):
            if mark.pools != pools or file.read(1):
                raise BadSnapshot("it goes on after its end")
            return
        pieces: list[bytes] = []
        while piece := _frame(file):
            unseal(len(pieces), piece)
            pieces.append(piece)
        yield mark, pieces
        pools += 1


def _frame(file: BinaryIO) -> bytes:
    head = file.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "little")
    if length > _MOST_BYTES:
        raise BadSnapshot("damaged: a frame is too long")
    data = file.read(length)
    if len(head) < _LENGTH_BYTES or len(data) < length:
        raise BadSnapshot("cut off")
    return data
