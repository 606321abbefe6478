"""How fast instances prefill, learnt from what their engines count. No I/O, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from extproc.terms import InstanceId

MEMORY_S = 120.0
"""Seconds of prefill after which what was learnt before counts half."""

PRIOR_TOKENS, _PRIOR_REQUESTS = 200.0, 0.2
"""What is assumed beforehand counts like a fifth of a request of 1,000 tokens that was seen."""

_REQUEST_TOKENS = 256.0
"""A window's error is taken to grow with its work: its tokens, and so many for each request."""

_FASTEST, _SLOWEST = 1e7, 1.0
"""Tokens a second that an engine may have; a window beyond them is nonsense and left out."""

_LONGEST_S = 1e5
_MOST_OVERHEAD_S = 1.0

_MOST_SPARE_S = 60.0
"""Time without prefills that is kept for later ones: they are counted when their answers end."""


WARM_UP = 10
"""First requests of an engine that are left out: it compiles and allocates for them."""

CERTAIN = 30
"""Further requests before what was learnt of an engine is believed."""

FRESH_S = 30.0
"""So long it is believed without news. One that is thought slow gets no requests, and without them
nobody would ever learn that it is not: after a while it is given some again."""

SAME = 1.4
"""Up to this ratio an engine is as fast as the mean. An idle pool would otherwise send all to the
one of two that is a little faster, and fill its cache alone."""


class Speed(NamedTuple):
    """rate: uncached tokens a second. overhead_s: what a prefill takes beside its tokens."""

    rate: float
    overhead_s: float = 0.0

    def seconds(self, tokens: float) -> float:
        """What a prefill of so many uncached tokens takes."""
        return tokens / self.rate + self.overhead_s


@dataclass(slots=True)
class _Fit:
    """Sums of the least squares for `seconds = overhead·requests + tokens/rate`.

    Windows are weighed by their work, which does not depend on the speed: of an engine that has
    become slower, what was fast before does not outweigh what is seen now.

    spare_s: of the time up to `at`, what no prefill has been counted for. count: of its requests.
    """

    requests_requests: float = 0.0
    requests_tokens: float = 0.0
    tokens_tokens: float = 0.0
    requests_seconds: float = 0.0
    tokens_seconds: float = 0.0
    at: float | None = None
    spare_s: float = 0.0
    count: float = 0.0

    def possible(self, seconds: float, now: float) -> float:
        """So much of what was counted as can have been since it was looked at before."""
        passed_s = now - self.at if self.at is not None else seconds
        self.spare_s = min(self.spare_s + max(passed_s, 0.0), _MOST_SPARE_S)
        self.at = now
        possible = min(seconds, self.spare_s)
        self.spare_s -= possible
        return possible

    def add(self, seconds: float, requests: float, tokens: float) -> None:
        """A window. Older ones fade with the time that engines prefilled, not with idle time."""
        kept = 0.5 ** (seconds / MEMORY_S)
        weight = 1.0 / (tokens + _REQUEST_TOKENS * requests)
        self.requests_requests = kept * self.requests_requests + weight * requests * requests
        self.requests_tokens = kept * self.requests_tokens + weight * requests * tokens
        self.tokens_tokens = kept * self.tokens_tokens + weight * tokens * tokens
        self.requests_seconds = kept * self.requests_seconds + weight * requests * seconds
        self.tokens_seconds = kept * self.tokens_seconds + weight * tokens * seconds

    def speed(self, prior: Speed) -> Speed:
        """The least squares, with what is assumed beforehand as further windows."""
        nn = self.requests_requests + _PRIOR_REQUESTS / _REQUEST_TOKENS
        ns = self.requests_seconds + prior.overhead_s * _PRIOR_REQUESTS / _REQUEST_TOKENS
        tt = self.tokens_tokens + PRIOR_TOKENS
        ts = self.tokens_seconds + PRIOR_TOKENS / prior.rate
        nt = self.requests_tokens
        overhead = (ns * tt - ts * nt) / (nn * tt - nt * nt)
        overhead = min(max(overhead, 0.0), _MOST_OVERHEAD_S)
        per_token = (ts - overhead * nt) / tt
        rate = 1 / per_token if per_token > 1 / _FASTEST else _FASTEST
        return Speed(max(rate, _SLOWEST), overhead)


class Rates:
    """What a prefill takes at each instance of a pool: `seconds = overhead + tokens / rate`.

    An engine that counts prefill seconds, prefilled requests and computed tokens tells both, window
    by window (least squares that forgets; MEMORY_S). Where it counts nothing, or not enough, not
    lately, or not much else than the others (WARM_UP, CERTAIN, FRESH_S, SAME), an instance is taken
    to be like the mean of those that do, and without any like the prior.

    What an engine counts as prefill seconds runs from a request's first step to its first token, so
    requests that are prefilled in one batch count the same time twice, and decoding beside them
    counts too. But no engine prefills for longer than time has passed: what is counted beyond that
    is left out, so that of a busy engine the rate is what it gets done, however it batches.
    """

    def __init__(self, prior: Speed) -> None:
        self._prior = prior
        self._fits: dict[InstanceId, _Fit] = {}
        self._speeds: dict[InstanceId, Speed] = {}
        self._at = 0.0
        self.mean = prior

    def assume(self, prior: Speed) -> None:
        """Take another prior. O(instances)."""
        if prior != self._prior:
            self._prior = prior
            self._speeds = {name: self._fits[name].speed(prior) for name in self._speeds}
            self._note_mean()

    def observe(
        self,
        instance: InstanceId,
        seconds: float,
        requests: float,
        tokens: float,
        now: float | None = None,
    ) -> None:
        """An engine has counted so much more. What cannot be is left out. O(instances).

        now: when it was looked at; without it the seconds are taken to be its time alone.
        """
        if not (0 < seconds < _LONGEST_S and requests >= 1 and tokens >= 0):
            return
        fit = self._fits.get(instance) or _Fit()
        if now is not None:
            seconds = fit.possible(seconds, now)
            self._at = max(self._at, now)
        if seconds * _SLOWEST <= tokens + requests <= seconds * _FASTEST:
            self._fits[instance] = fit
            fit.count += requests
            if fit.count > WARM_UP:
                fit.add(seconds, requests, tokens)
            if fit.count > WARM_UP + CERTAIN:
                self._speeds[instance] = fit.speed(self._prior)
                self._note_mean()

    @property
    def are_learnt(self) -> bool:
        """Whether any engine has told enough to be believed."""
        return bool(self._speeds)

    def of(self, instance: InstanceId) -> Speed:
        """What is known of the instance."""
        speed = self._speeds.get(instance)
        if speed is None or 1 / SAME < speed.rate / self.mean.rate < SAME:
            return self.mean
        at = self._fits[instance].at
        return speed if at is None or self._at - at <= FRESH_S else self.mean

    def keep(self, instances: Iterable[InstanceId]) -> None:
        """Forget all others: one that comes back may be another machine."""
        there = frozenset(instances)
        if not self._fits.keys() <= there:
            self._fits = {name: fit for name, fit in self._fits.items() if name in there}
            self._speeds = {name: one for name, one in self._speeds.items() if name in there}
            self._note_mean()

    def _note_mean(self) -> None:
        speeds = self._speeds.values()
        count = len(speeds)
        self.mean = (
            Speed(sum(s.rate for s in speeds) / count, sum(s.overhead_s for s in speeds) / count)
            if speeds
            else self._prior
        )
