"""What a replay measured."""

from array import array
from dataclasses import dataclass

import numpy as np

from extproc.replay.engine import Job


@dataclass(frozen=True, slots=True)
class Summary:
    """A replay in numbers: seconds, and ratios of 0 to 1.

    hit: cached tokens of all prompt tokens. imbalance: the busiest engine's prefill time over the
    mean. decisions_per_s: picks a second of this machine's time in the router, its index included.
    utilisation: share of the time in which engines prefilled. over: mean of predicted minus
    real cached tokens over prompt tokens.
    """

    requests: int
    hit: float
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    ttft_p99: float
    within_2s: float
    within_5s: float
    imbalance: float
    utilisation: float
    predicted_over: float
    decisions_per_s: float


class Outcome:
    """Collects; 42 bytes a request, in the order of first tokens.

    at: arrival, seconds; ttft, prefill_s: seconds; engine: its number; prompt, cached: tokens;
    conversation: as the trace numbers them.
    """

    def __init__(self, engines: int) -> None:
        self.requests = 0
        self.at = array("d")
        self.ttft = array("d")
        self.prefill_s = array("d")
        self.engine = array("H")
        self.prompt = array("I")
        self.cached = array("I")
        self.conversation = array("q")
        self.deciding_s = 0.0
        self.picks = array("l", [0]) * engines
        self._predicted = 0
        self._end = 0.0
        self._busy: list[float] = []

    def placed(self, engine: int, now: float) -> None:
        """A request went to an engine."""
        self.requests += 1
        self.picks[engine] += 1

    def first_token(self, job: Job, engine: int, predicted: int) -> None:
        """Its prefill ended. predicted: cached tokens that the router believed in."""
        self.at.append(job.request.at)
        self.ttft.append(job.first_token - job.request.at)
        self.prefill_s.append(job.prefill_s)
        self.engine.append(engine)
        self.prompt.append(job.request.tokens)
        self.cached.append(job.cached)
        self.conversation.append(job.request.conversation)
        self._predicted += predicted

    def ended(self, job: Job, engine: int, now: float) -> None:
        """Its answer ended."""
        self._end = now

    def finish(self, busy_s: list[float]) -> None:
        """All is played. busy_s: prefill seconds of each engine."""
        self._busy = busy_s

    def summary(self) -> Summary:
        """The numbers."""
        ttft = np.frombuffer(self.ttft)
        p50, p90, p99 = (float(q) for q in np.quantile(ttft, (0.5, 0.9, 0.99)))
        mean_busy = sum(self._busy) / len(self._busy)
        prompt, cached = sum(self.prompt), sum(self.cached)
        return Summary(
            requests=self.requests,
            hit=cached / prompt,
            ttft_mean=float(ttft.mean()),
            ttft_p50=p50,
            ttft_p90=p90,
            ttft_p99=p99,
            within_2s=float((ttft <= 2).mean()),
            within_5s=float((ttft <= 5).mean()),
            imbalance=max(self._busy) / mean_busy if mean_busy else 1.0,
            utilisation=mean_busy / self._end if self._end else 0.0,
            predicted_over=(self._predicted - cached) / prompt,
            decisions_per_s=self.requests / self.deciding_s if self.deciding_s else 0.0,
        )
