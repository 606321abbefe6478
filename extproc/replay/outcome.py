"""What a replay measured."""

from array import array
from dataclasses import dataclass

import numpy as np

from extproc.replay.engine import Job


@dataclass(frozen=True, slots=True)
class Summary:
    """A replay in numbers: seconds, and ratios of 0 to 1.

    hit: cached tokens of all prompt tokens. imbalance: the busiest engine's prefill time over the
    mean. utilisation: share of the time in which engines prefilled. over: mean of predicted minus
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


class Outcome:
    """Collects; a few bytes a request."""

    def __init__(self, engines: int) -> None:
        self.requests = 0
        self.ttft = array("d")
        self.at = array("d")
        self.picks = array("l", [0]) * engines
        self._prompt = 0
        self._cached = 0
        self._predicted = 0
        self._end = 0.0
        self._busy: list[float] = []

    def placed(self, engine: int, now: float) -> None:
        """A request went to an engine."""
        self.requests += 1
        self.picks[engine] += 1

    def first_token(self, job: Job, predicted: int) -> None:
        """Its prefill ended. predicted: cached tokens that the router believed in."""
        self.ttft.append(job.first_token - job.request.at)
        self.at.append(job.request.at)
        self._prompt += job.request.tokens
        self._cached += job.cached
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
        return Summary(
            requests=self.requests,
            hit=self._cached / self._prompt,
            ttft_mean=float(ttft.mean()),
            ttft_p50=p50,
            ttft_p90=p90,
            ttft_p99=p99,
            within_2s=float((ttft <= 2).mean()),
            within_5s=float((ttft <= 5).mean()),
            imbalance=max(self._busy) / mean_busy if mean_busy else 1.0,
            utilisation=mean_busy / self._end if self._end else 0.0,
            predicted_over=(self._predicted - self._cached) / self._prompt,
        )
