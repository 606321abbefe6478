"""When a conversation comes back: what a request says of it, or how its turns came before."""

from collections.abc import Sequence
from time import monotonic

from extproc.prompt import Chain
from extproc.routing import CERTAIN_S
from extproc.serve.choice import Asked
from extproc.serve.pool import Pool
from extproc.serve.tool_calls import ToolCallReader
from extproc.serve.wishes import MOST_ERROR_S, Told, told
from extproc.telemetry import Metrics
from extproc.terms import KEY_BYTES, InstanceId

MOST_NEW_BLOCKS = 2_048
"""Blocks, from a prompt's end, among which the last one of the prompt before it is looked for."""


class Hint:
    """Of one request; it is used when the answer has ended."""

    __slots__ = ("_client", "_metrics", "_pool", "_told", "_turn", "answer")

    def __init__(
        self, pool: Pool, metrics: Metrics, told_: Told | None, client: int | None, turn: bytes
    ) -> None:
        hints = pool.config.hints
        reads = client is not None and hints is not None and hints.tool_calls
        self.answer = ToolCallReader() if reads else None
        """Reads the answer's body, where it is to be read and shown."""
        self._turn = turn
        self._pool = pool
        self._metrics = metrics
        self._told = told_
        self._client = client

    def ended(self, instance: InstanceId) -> None:
        """The answer has ended, and the prompt is cached there."""
        now, source = monotonic(), "told"
        hint, learnt = self._told, None
        if self._client is not None:
            calls_tool = self.answer is not None and self.answer.found
            learnt = self._pool.gaps.ended(self._client, now, calls_tool)
        if hint is None and learnt is not None:
            hint, source = Told(learnt, CERTAIN_S), "learnt"
        if hint is None:
            return
        if hint.error_s > MOST_ERROR_S:
            source = "vague"
        else:
            returns = self._pool.outlook.returns
            returns.expect(self._turn, instance, now + hint.seconds, hint.error_s)
        self._metrics.hints.labels(self._pool.name, source).inc()


def hint_of(asked: Asked, session: str, metrics: Metrics) -> Hint | None:
    """What the request tells; its session has come back. None where nothing is to be learnt."""
    pool, headers, encoded = asked.pool, asked.request.headers, asked.encoded
    hints = pool.config.hints
    if hints is None or encoded is None or not encoded.chains:
        return None
    keys = encoded.chains[0].keys
    if not keys:
        return None
    said = None
    text = headers.get(hints.header.lower()) if hints.header is not None else None
    if text is None:
        text = encoded.hint
    if text is not None:
        said = told(text)
        if said is None:
            metrics.hints.labels(pool.name, "bad").inc()
    client = pool.sessions.key(session) if session and hints.learn else None
    if client is not None:
        pool.gaps.came(client, asked.at)
    if said is None and client is None:
        return None
    return Hint(pool, metrics, said, client, bytes(keys[-KEY_BYTES:]))


def came_back(pool: Pool, chains: Sequence[Chain]) -> None:
    """A turn that was expected is here: it does not have to be waited for by itself.

    It is known by the last block of the prompt before it, which its own goes on from.
    """
    returns = pool.outlook.returns
    if not returns:
        return
    for chain in chains:
        keys = chain.keys
        for end in range(len(keys), max(len(keys) - MOST_NEW_BLOCKS * KEY_BYTES, 0), -KEY_BYTES):
            if returns.came(bytes(keys[end - KEY_BYTES : end])):
                break
