"""Where things lie in etcd (docs/log-format.md). Pure.

    /homing/<pool>/secret                             keys blocks and checksums
    /homing/<pool>/log/<writer>/<seq>                 records
    /homing/<pool>/log/snapshot                       points to the snapshot to start from
    /homing/<pool>/snapshot/<revision>.<writer>/<n>   its pieces
    /homing/<pool>/live/<writer>                      what a replica says of itself; leased
    /homing/<pool>/leader                             who writes snapshots; leased
    /homing/<pool>/readers/<writer>                   who can read engines' events; leased
    /homing/<pool>/instances/<name>                   what a sidecar says of its engine; leased

The pointer lies in the log, so that whoever follows that learns of a new snapshot in order.
"""

import re
from dataclasses import dataclass

POINTER = b"snapshot"
"""The pointer's name, after the log's prefix."""

_PLACE = re.compile(rb"([0-9a-f]{16})/([0-9a-f]{10})")


@dataclass(frozen=True, slots=True)
class Keys:
    """One pool's keys. prefix: that of all pools, without a slash at its end."""

    prefix: str
    pool: str

    @property
    def root(self) -> bytes:
        """Of all that belongs to the pool, with a slash at its end."""
        return f"{self.prefix}/{self.pool}/".encode()

    @property
    def secret(self) -> bytes:
        """The pool's secret."""
        return self.root + b"secret"

    @property
    def leader(self) -> bytes:
        """The lease of who leads."""
        return self.root + b"leader"

    @property
    def pointer(self) -> bytes:
        """The snapshot to start from."""
        return self.log + POINTER

    @property
    def log(self) -> bytes:
        """Prefix of all records."""
        return self.root + b"log/"

    @property
    def snapshots(self) -> bytes:
        """Prefix of all snapshots' pieces."""
        return self.root + b"snapshot/"

    @property
    def live(self) -> bytes:
        """Prefix of what replicas say of themselves."""
        return self.root + b"live/"

    @property
    def readers(self) -> bytes:
        """Prefix of those who can read engines' events."""
        return self.root + b"readers/"

    @property
    def instances(self) -> bytes:
        """Prefix of the instances that registered themselves."""
        return self.root + b"instances/"

    def reader(self, writer: int) -> bytes:
        """That this replica can."""
        return self.readers + f"{writer:016x}".encode()

    def record(self, writer: int, seq: int) -> bytes:
        """Of one record; a writer's sort by seq."""
        return self.log + place(writer, seq)

    def snapshot(self, revision: int, writer: int) -> bytes:
        """Prefix of one snapshot's pieces."""
        return self.snapshots + b"%020d.%016x/" % (revision, writer)

    def piece(self, revision: int, writer: int, number: int) -> bytes:
        """Of one piece; a snapshot's sort by number."""
        return self.snapshot(revision, writer) + b"%06d" % number

    def replica(self, writer: int) -> bytes:
        """What this replica says of itself."""
        return self.live + f"{writer:016x}".encode()


def place(writer: int, seq: int) -> bytes:
    """The part of a record's key that its checksum covers."""
    return b"%016x/%010x" % (writer, seq)


def read_place(place: bytes) -> tuple[int, int] | None:
    """Writer and seq; None where it is no record's."""
    found = _PLACE.fullmatch(place)
    return (int(found[1], 16), int(found[2], 16)) if found else None


def after(prefix: bytes) -> bytes:
    """The end of the range of all keys with this prefix, which ends with no 0xff."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))
