"""What a request asks for beside its prompt: to be soon, or where the turn before was."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import ceil

from xxhash import xxh3_64_intdigest

from extproc import config
from extproc.errors import NoRoom, Saturated
from extproc.prompt import Chain
from extproc.routing import RETRY_S, Admission, Score
from extproc.terms import InstanceId

MOST_SESSIONS = 100_000
"""Sessions whose instance is remembered; those that were silent longest are forgotten."""


class Sessions:
    """Where the last turn of each session went. Session names are kept as keyed hashes only."""

    def __init__(self, secret: bytes) -> None:
        self._seed = int.from_bytes(secret[:8], "little")
        self._homes: OrderedDict[int, InstanceId] = OrderedDict()

    def home(self, session: str) -> InstanceId | None:
        """The instance that the session used last, if it is known."""
        return self._homes.get(self._key(session))

    def went(self, session: str, instance: InstanceId) -> None:
        """A turn of the session goes to the instance."""
        key = self._key(session)
        self._homes[key] = instance
        self._homes.move_to_end(key)
        if len(self._homes) > MOST_SESSIONS:
            self._homes.popitem(last=False)

    def _key(self, session: str) -> int:
        return xxh3_64_intdigest(session.encode(), seed=self._seed)


def session_of(pool: config.Pool, headers: Mapping[str, str]) -> str:
    """The session that a request names; empty where it does not, or none is asked for."""
    return headers.get(pool.session_header.lower(), "") if pool.session_header else ""


def wait_weight(pool: config.Pool, headers: Mapping[str, str]) -> float:
    """What a second of the request's own wait counts."""
    priority = pool.priority
    if priority is None:
        return 1.0
    return priority.weights.get(headers.get(priority.header.lower(), ""), 1.0)


def shed(pool: config.Pool, best: Score) -> None:
    """Raise Saturated where the request would wait for too long even where it is best off."""
    if pool.shed is None:
        return
    most = pool.shed.max_wait_s * best.wait_weight
    if best.wait_s > most:
        raise Saturated(
            f"pool {pool.name} is saturated: a request would wait {best.wait_s:.0f} s",
            ceil(best.wait_s - most),
        )


def admit(
    admission: Admission, chains: Sequence[Chain], capacity: int, utilisation: float, now: float
) -> None:
    """Note the conversations that a request goes on with; raise NoRoom for a new one too many.

    capacity: tokens that the pool's caches hold together.
    """
    for chain in chains:
        if not admission.admits(chain.keys, chain.tokens, capacity, utilisation, now):
            raise NoRoom("the caches are full of conversations that are going on", RETRY_S)
    for chain in chains:
        admission.placed(chain.keys, chain.tokens, now)
