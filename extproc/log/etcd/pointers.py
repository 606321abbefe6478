"""The pointer to a snapshot ↔ bytes. Pure."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from extproc.log.etcd.keys import POINTER
from extproc.log.records import BadRecord, Signer
from proto_gen import factlog_pb2 as pb

SNAPSHOT_VERSION = 1
"""Of the pointer; the pieces have their own."""

_PIECES = b"pieces"


@dataclass(frozen=True, slots=True)
class Pointer:
    """Which snapshot to start from, and how far each writer's records are in it.

    revision: of the last record in it. writer: who wrote it. pieces: how many.
    """

    revision: int
    writer: int
    pieces: int
    checksum: bytes
    writers: "OrderedDict[int, int]"


def point(
    revision: int,
    writer: int,
    writers: "OrderedDict[int, int]",
    pieces: Sequence[bytes],
    signer: Signer,
) -> bytes:
    """The pointer to these pieces, as bytes."""
    snapshot = pb.Snapshot(
        version=SNAPSHOT_VERSION,
        revision=revision,
        writer=writer,
        pieces=len(pieces),
        total_bytes=sum(map(len, pieces)),
        pieces_checksum=signer.sign(_PIECES, *pieces),
        writers=[pb.Writer(id=one, seq=seq) for one, seq in writers.items()],
    ).SerializeToString()
    checksum = signer.sign(POINTER, snapshot)
    return pb.Pointer(checksum=checksum, snapshot=snapshot).SerializeToString()


def read_pointer(data: bytes, signer: Signer) -> Pointer:
    """What `point` made. Raises BadRecord."""
    try:
        envelope = pb.Pointer.FromString(data)
        snapshot = pb.Snapshot.FromString(envelope.snapshot)
    except DecodeError:
        raise BadRecord("malformed") from None
    if not signer.signed(envelope.checksum, POINTER, envelope.snapshot):
        raise BadRecord("checksum")
    return Pointer(
        snapshot.revision,
        snapshot.writer,
        snapshot.pieces,
        snapshot.pieces_checksum,
        OrderedDict((one.id, one.seq) for one in snapshot.writers),
    )


def whole(pointer: Pointer, pieces: Sequence[bytes], signer: Signer) -> bool:
    """Whether these are the pieces that it points to."""
    return len(pieces) == pointer.pieces and signer.signed(pointer.checksum, _PIECES, *pieces)
