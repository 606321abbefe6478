"""What the parts of one pool's log share. No I/O of its own."""

import asyncio
import secrets
from collections.abc import Sequence
from time import monotonic

from extproc.index import Fact
from extproc.log.etcd.fold import Fold
from extproc.log.etcd.keys import Keys
from extproc.log.etcd.outbox import Outbox
from extproc.log.etcd.size import LogSize
from extproc.log.interface import Apply, Overhear, Reload, Snapshots
from extproc.log.records import RECORD_VERSION, Signer
from extproc.telemetry import Metrics

SECRET_BYTES = 32


class PoolState:
    """One pool: where it lies, how far it was read, what is to be written.

    secret: the pool's; None until it was read. warm: set once everything that was there was given
    to the subscribers. whole: whether that included the snapshot that there was; partial_since:
    when it last did not. epoch: counts how often the log was read from its start; 0 while that is
    to be done. version: what records are written in, once the others are known. snapshot: revision
    of the newest snapshot that was seen.
    """

    def __init__(self, keys: Keys, writer: int, wanted_bytes: int, backlog_bytes: int) -> None:
        self.keys = keys
        self.outbox = Outbox(writer, backlog_bytes)
        self.size = LogSize(wanted_bytes)
        self.offered_secret = secrets.token_bytes(SECRET_BYTES)
        self.secret: bytes | None = None
        self.signer = Signer(self.offered_secret)
        self.fold = Fold(self.signer, self.outbox)
        self.version = RECORD_VERSION
        self.snapshot = 0
        self.whole = True
        self.partial_since = 0.0
        self.epoch = 0
        self._epochs = 0
        self.warm = asyncio.Event()
        self.secret_known = asyncio.Event()
        self.others_known = asyncio.Event()
        self.appended = asyncio.Event()
        self.subscribers: list[Apply] = []
        self.overhearing: list[Overhear] = []
        self.reloads: list[Reload] = []
        self.snapshots: Snapshots | None = None

    def take_secret(self, secret: bytes) -> None:
        """The pool's secret was read. Another one than before makes all that was hashed void."""
        if secret == self.secret:
            return
        if self.secret is not None:
            self.outbox.clear()
        self.secret = self.offered_secret = secret
        self.signer = Signer(secret)
        self.fold = Fold(self.signer, self.outbox)
        self.secret_known.set()

    def read_anew(self, done: bool) -> None:
        """The log is to be read from its start, or was."""
        self._epochs += done
        self.epoch = self._epochs if done else 0

    def overhear(self, facts: Sequence[Fact]) -> None:
        """Another replica wrote these, which were given."""
        for heard in self.overhearing:
            heard(facts)

    def give(self, revision: int, fact: Fact) -> None:
        """Hand a fact to all who fold."""
        for apply in self.subscribers:
            apply(revision, fact)

    def forget(self) -> None:
        """Let all who fold start over."""
        for reload in self.reloads:
            reload()


class PoolMetrics:
    """One pool's numbers, with their labels looked up once."""

    def __init__(self, metrics: Metrics, pool: str) -> None:
        self._metrics = metrics
        self._pool = pool
        self.puts = metrics.log_puts.labels(pool)
        self.put_bytes = metrics.log_put_bytes.labels(pool)
        self.applied = metrics.log_facts.labels(pool)
        self._lag = metrics.log_lag_seconds.labels(pool)

    def returned(self, since: float) -> None:
        """A record of ours came back whose first fact was appended at this time."""
        self._lag.observe(monotonic() - since)

    def failed(self, reason: str) -> None:
        """Etcd did not do what it was asked."""
        self._metrics.log_failures.labels(self._pool, reason).inc()

    def reloaded(self, why: str) -> None:
        """The log is read from the start again."""
        self._metrics.log_reloads.labels(self._pool, why).inc()

    def snapshot(self, result: str) -> None:
        """A snapshot was `written`, `failed` to be, or `refused` when it was read."""
        self._metrics.log_snapshots.labels(self._pool, result).inc()
