"""What a policy sees and what it says: plain data (DESIGN.md, step 6)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from extproc.terms import Endpoint, InstanceId


@dataclass(frozen=True, slots=True)
class Turn:
    """The request to be placed.

    tokens: prompt tokens; None where they are not known.
    tiebreak: any number that differs from request to request; equal costs rotate with it.
    wait_weight: what a second of its own wait counts; less for one that is in no hurry.
    """

    tokens: int | None
    tiebreak: int = 0
    wait_weight: float = 1.0


class Due(NamedTuple):
    """A turn that will come home. at: seconds. share: of it; the rest comes at other times."""

    at: float
    share: float


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as it stands for this request.

    cached_tokens: leading tokens of this prompt that it holds; 0 where the prompt is unknown.
    waiting_tokens: uncached tokens assigned to it whose prefill has not ended.
    in_flight: requests routed there and not ended.
    prefill_rate: uncached tokens a second that it computes.
    reload_tokens: what it costs to read back those of the cached tokens that are on a slower tier,
        in uncached tokens that take as long.
    overhead_s: what a prefill takes there beside its tokens.
    due: turns to come whose prompts are cached there, as far as is known, in seconds from now;
        soonest first.
    """

    instance: InstanceId
    endpoint: Endpoint
    cached_tokens: int
    waiting_tokens: float
    in_flight: int
    prefill_rate: float
    reload_tokens: float = 0.0
    overhead_s: float = 0.0
    due: Sequence[Due] = ()


@dataclass(frozen=True, slots=True)
class PoolView:
    """The eligible instances and what holds for all of them.

    prefill_rate: the pool's mean, tokens a second.
    utilisation: share of the pool's prefill time in use, 0 to below 1.
    arrival_rate: requests a second, for each instance of the pool.
    overhead_s: the pool's mean.
    waited_s: what turns with this prompt's longest cached prefix have waited of late at its holders
        and not elsewhere.
    """

    instances: Sequence[InstanceView]
    prefill_rate: float
    utilisation: float
    arrival_rate: float = 0.0
    overhead_s: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Score:
    """Why an instance stands where it stands: seconds each; `cost_s` is their weighed sum.

    price_s: what others wait for it; below zero where they gain more by another holder.
    """

    instance: InstanceId
    endpoint: Endpoint
    cached_tokens: int
    wait_s: float
    prefill_s: float
    price_s: float
    wait_weight: float = 1.0

    @property
    def cost_s(self) -> float:
        """What picking this instance costs: lowest wins."""
        return self.wait_weight * self.wait_s + self.prefill_s + self.price_s


@dataclass(frozen=True, slots=True)
class Ranking:
    """The eligible instances, best first; never empty."""

    scores: tuple[Score, ...]

    @property
    def best(self) -> Score:
        """The instance to send the turn to."""
        return self.scores[0]

    @property
    def why(self) -> str:
        """One word for people and metrics.

        `home`: the best holds the longest known prefix. `moved`: another holds more, but waiting
        there costs more than it saves. `new`: nobody holds any of it.
        """
        most = max(score.cached_tokens for score in self.scores)
        if most == 0:
            return "new"
        return "home" if self.best.cached_tokens == most else "moved"
