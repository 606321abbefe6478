"""What a request asks for beside its prompt: to be soon, or where the turn before was."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import ceil
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from extproc import config
from extproc.errors import NoRoom, Saturated
from extproc.prompt import Chain
from extproc.routing import LONGEST_S, RETRY_S, Admission, Score
from extproc.terms import InstanceId

HINT_ERROR = 0.1
"""How far a hint is taken to be off that does not say it, as a share of its time."""

MOST_ERROR_S = 1.0
"""A hint that is further off is left alone: prefills take no longer (docs/policy.md)."""

MOST_SESSIONS = 100_000
"""Sessions whose instance is remembered; those that were silent longest are forgotten."""


class Sessions:
    """Where the last turn of each session went. Session names are kept as keyed hashes only."""

    def __init__(self, secret: bytes) -> None:
        self._seed = int.from_bytes(secret[:8], "little")
        self._homes: OrderedDict[int, InstanceId] = OrderedDict()

    def home(self, session: str) -> InstanceId | None:
        """The instance that the session used last, if it is known."""
        return self._homes.get(self.key(session))

    def went(self, session: str, instance: InstanceId) -> None:
        """A turn of the session goes to the instance."""
        key = self.key(session)
        self._homes[key] = instance
        self._homes.move_to_end(key)
        if len(self._homes) > MOST_SESSIONS:
            self._homes.popitem(last=False)

    def key(self, session: str) -> int:
        """What stands for a session's name."""
        return xxh3_64_intdigest(session.encode(), seed=self._seed)


def session_of(pool: config.Pool, headers: Mapping[str, str]) -> str:
    """The session that a request names; empty where it does not, or none is asked for."""
    return headers.get(pool.session_header.lower(), "") if pool.session_header else ""


_LONGEST_HINT = 64
"""Characters."""


class Told(NamedTuple):
    """When a conversation comes back: seconds after this answer's end, and how far that is off."""

    seconds: float
    error_s: float


def hint_in(pool: config.Pool, metadata: Mapping[str, object]) -> str | None:
    """What the body's metadata tells, as the header would; None where it tells nothing."""
    key = pool.hints.metadata if pool.hints else None
    if key is None or (value := metadata.get(key)) is None:
        return None
    if isinstance(value, str):
        # It is kept as long as the request; a text of many megabytes is none that says something.
        return value if len(value) <= _LONGEST_HINT else ""
    # OpenAI's metadata has texts only, but whoever writes a number means it. All else is nonsense.
    is_number = isinstance(value, float) or (type(value) is int and abs(value) <= LONGEST_S)
    return str(value) if is_number else ""


def told(text: str) -> Told | None:
    """A hint as it is written, `1.5` or `30;error=0.5`; None where it says no such thing."""
    value, _, parameter = text.partition(";")
    name, _, error = parameter.partition("=")
    try:
        seconds = float(value)
        error_s = float(error) if name.strip() == "error" else HINT_ERROR * seconds
    except ValueError:
        return None
    fits = 0 <= seconds <= LONGEST_S and 0 <= error_s <= LONGEST_S
    is_known = not parameter or name.strip() == "error"
    return Told(seconds, error_s) if fits and is_known else None


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
