"""From what a request asks for to a ranking of the instances: match, then choose. Changes nothing.

A request that waits is chosen for anew when it may be its turn, by what is known then.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from extproc.index import Depths
from extproc.prompt import Chain
from extproc.routing import PoolView, Ranking, Turn, last_of
from extproc.serve.conformance import chosen
from extproc.serve.encoder import Encoded
from extproc.serve.overrides import NOTHING as NO_OVERRIDE
from extproc.serve.overrides import Override
from extproc.serve.pool import NOTHING, Cached, Pool
from extproc.serve.responses import Answerer
from extproc.serve.subset import eligible
from extproc.serve.wishes import session_of, wait_weight
from extproc.stages import Stages
from extproc.stream import Request
from extproc.terms import BlockKey, InstanceId

BYTES_PER_TOKEN = 4
"""A guess for the load of a prompt whose tokens are unknown; never used for a price."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is to be placed, and what has been found out about it.

    encoded: its prompt; None where it is placed by load, for the `reason`. answerer: who alone can
    go on with it, if that is known. number: differs from request to request. at: when it came,
    by the monotonic clock. override: what an
    operator asks of the pick.
    """

    request: Request
    pool: Pool
    encoded: Encoded | None
    reason: str
    answerer: Answerer | None
    number: int
    at: float
    is_conformance: bool
    override: Override

    @property
    def tokens(self) -> int | None:
        """Of the prompt, where they are known."""
        return self.encoded.tokens if self.encoded else None


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a request would go at this moment, and by what.

    known: blocks of each chain that each instance holds, by the index alone. prefix: the last block
    of the longest cached prefix. session: that the request names; empty for none. guess: tokens of
    a prompt whose tokens are not known. view: what was chosen by.
    """

    known: Sequence[Mapping[InstanceId, Depths]]
    prefix: BlockKey | None
    session: str
    guess: int
    view: PoolView
    ranking: Ranking


def choose(asked: Asked, stages: Stages, now: float) -> Choice:
    """Rank the instances for it. Raises NoEndpoint where none may be picked."""
    request, pool, encoded = asked.request, asked.pool, asked.encoded
    candidates = pool.usable(eligible(pool.instances, request.subset), now)
    if asked.is_conformance:
        candidates = chosen(candidates, request.headers)
    override = asked.override
    if override is not NO_OVERRIDE:
        candidates = override.narrowed(candidates)
    if asked.answerer:
        candidates = [c for c in candidates if c.id == asked.answerer.instance] or candidates
    with stages.stage("match"):
        chains: tuple[Chain, ...] = encoded.chains if encoded else ()
        known = [pool.index.match(chain.keys) for chain in chains]
        depths = [
            pool.deepen(chain.keys, found) for chain, found in zip(chains, known, strict=True)
        ]
        cached = _cached_tokens(encoded, depths) if encoded else {}
    with stages.stage("choose"):
        session = session_of(pool.config, request.headers)
        tokens = encoded.tokens if encoded else None
        guess = len(request.body or b"") // BYTES_PER_TOKEN
        if encoded is None and session and (home := pool.sessions.home(session)):
            # It is taken to be cached where the turn before was.
            tokens, cached = guess, {home: Cached(guess, 0)}
        prefix = _longest(encoded, cached) if encoded else None
        view = pool.view(candidates, cached, now, prefix)
        weight = override.wait_weight or wait_weight(pool.config, request.headers)
        ranking = pool.policy.rank(Turn(tokens, asked.number, weight), view)
    return Choice(known, prefix, session, guess, view, ranking)


def _cached_tokens(
    encoded: Encoded, depths: Sequence[dict[InstanceId, Depths]]
) -> dict[InstanceId, Cached]:
    """Tokens of the prompt that each instance holds in any tier; absent: none.

    An engine always computes the last token, so a prompt of whole blocks hits one block less
    (vLLM 0.32, `get_computed_blocks`).
    """
    size = encoded.pool.config.block_size
    cached: dict[InstanceId, Cached] = {}
    for chain, depth in zip(encoded.chains, depths, strict=True):
        most = (chain.tokens - 1) // size
        for instance, held in depth.items():
            tokens, slow = cached.get(instance, NOTHING)
            deepest = min(held.any, most)
            on_gpu = min(held.gpu, deepest)
            cached[instance] = Cached(tokens + deepest * size, slow + (deepest - on_gpu) * size)
    return cached


def _longest(encoded: Encoded, cached: dict[InstanceId, Cached]) -> BlockKey | None:
    """The last block of the longest cached prefix; None without one, or of several prompts."""
    if len(encoded.chains) != 1:
        return None
    tokens = max((held.tokens for held in cached.values()), default=0)
    return last_of(encoded.chains[0].keys, tokens // encoded.pool.config.block_size)
