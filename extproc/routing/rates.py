"""How fast instances prefill, learnt from what their engines count. No I/O, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp2
from typing import NamedTuple

from extproc.terms import InstanceId

MEMORY_S = 120.0
"""Seconds of prefill, a mean instance's, after which what was learnt before counts half."""

PRIOR_TOKENS, _PRIOR_REQUESTS = 200.0, 0.2
"""What is assumed beforehand counts like a fifth of a request of 1,000 tokens that was seen."""

_REQUEST_TOKENS = 256.0
"""A window's error is taken to grow with its work: its tokens, and so many for each request."""

_FASTEST, _SLOWEST = 1e7, 1.0
"""Tokens a second that an engine may have; a window beyond them is nonsense and left out."""

_LONGEST_S = 1e5
_MOST_OVERHEAD_S = 1.0

_NOTHING = 1e-3
"""Requests, where older ones have faded, that say nothing."""

_MOST_SPARE_S = 60.0
"""Time without prefills that is kept for later ones: they are counted when their answers end."""


WARM_UP = 10
"""First requests of an engine that are left out: it compiles and allocates for them."""

CERTAIN = 30
"""Further requests before what was learnt is believed."""

ALIKE_S = 2.0
"""That an engine is like the others counts as much as so many seconds of its own prefills. In an
idle pool little is seen, and little is to be gained: a cache that is filled alone costs more than a
slower prefill."""

STALL, _LEAST_STALL_S = 4.0, 0.1
"""A window that took more than so many times what was expected, and more than that, counts no
longer: an engine that is slow is so again, and one that has stalled once is not slow."""

OWN_MEMORY_S = 30.0
"""Seconds after which what an engine has shown of itself counts half. One that is thought slow gets
few requests, and without them nobody would ever learn that it is not."""

SAME = 1.4
"""Up to this ratio an engine is as fast as the others. An idle pool would otherwise send all to the
one of two that is a little faster, and fill its cache alone."""


class Speed(NamedTuple):
    """rate: uncached tokens a second. overhead_s: what a prefill takes beside its tokens."""

    rate: float
    overhead_s: float = 0.0

    def seconds(self, tokens: float, requests: float = 1.0) -> float:
        """What prefills of so many uncached tokens take."""
        return tokens / self.rate + self.overhead_s * requests

    def times(self, slowness: float) -> "Speed":
        """Of an engine that takes so many times longer for everything."""
        rate = min(max(self.rate / slowness, _SLOWEST), _FASTEST)
        return Speed(rate, min(self.overhead_s * slowness, _MOST_OVERHEAD_S))


@dataclass(slots=True)
class _Fit:
    """Sums of the least squares for `seconds = overhead·requests + tokens/rate`.

    Windows are weighed by their work, which does not depend on the speed: of an engine that has
    become slower, what was fast before does not outweigh what is seen now.

    count: of requests.
    """

    requests_requests: float = 0.0
    requests_tokens: float = 0.0
    tokens_tokens: float = 0.0
    requests_seconds: float = 0.0
    tokens_seconds: float = 0.0
    count: float = 0.0

    def add(self, seconds: float, requests: float, tokens: float, memory_s: float) -> None:
        """A window. Older ones fade with the time that engines prefilled, not with idle time."""
        kept = 0.5 ** (seconds / memory_s)
        weight = 1.0 / (tokens + _REQUEST_TOKENS * requests)
        self.requests_requests = kept * self.requests_requests + weight * requests * requests
        self.requests_tokens = kept * self.requests_tokens + weight * requests * tokens
        self.tokens_tokens = kept * self.tokens_tokens + weight * tokens * tokens
        self.requests_seconds = kept * self.requests_seconds + weight * requests * seconds
        self.tokens_seconds = kept * self.tokens_seconds + weight * tokens * seconds
        self.count += requests

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


@dataclass(slots=True)
class _Own:
    """What one engine has counted of late.

    spare_s: of the time up to `at`, what no prefill has been counted for. count: of all its
    requests.
    """

    at: float | None = None
    spare_s: float = 0.0
    count: float = 0.0
    requests: float = 0.0
    tokens: float = 0.0
    seconds: float = 0.0

    def possible(self, seconds: float, now: float) -> float:
        """So much of what was counted as can have been since it was looked at before."""
        passed_s = now - self.at if self.at is not None else seconds
        self.spare_s = min(self.spare_s + max(passed_s, 0.0), _MOST_SPARE_S)
        self.fade(passed_s)
        self.at = now
        possible = min(seconds, self.spare_s)
        self.spare_s -= possible
        return possible

    def add(self, seconds: float, requests: float, tokens: float, usual: Speed) -> None:
        """A window."""
        before_s = usual.seconds(self.tokens, self.requests)
        ratio = max(self.seconds / before_s, 1.0) if before_s > 0 else 1.0
        self.requests += requests
        self.tokens += tokens
        self.seconds += _without_stall(seconds, ratio * usual.seconds(tokens, requests))

    def slowness(self, usual: Speed, now: float) -> float:
        """How many times longer than usual it takes."""
        expected_s = usual.seconds(self.tokens, self.requests)
        if self.requests < _NOTHING or expected_s <= 0:
            return 1.0
        seen_s = self.seconds if self.at is None else self.seconds * _kept(now - self.at)
        return float((self.seconds / expected_s) ** (seen_s / (seen_s + ALIKE_S)))

    def fade(self, passed_s: float) -> None:
        """So much time has passed."""
        kept = _kept(passed_s)
        self.requests *= kept
        self.tokens *= kept
        self.seconds *= kept


def _kept(passed_s: float) -> float:
    return exp2(-max(passed_s, 0.0) / OWN_MEMORY_S)


class Rates:
    """What a prefill takes at each instance of a pool: `seconds = overhead + tokens / rate`.

    Engines that count prefill seconds, prefilled requests and computed tokens tell both, window by
    window (least squares over all of them that forgets; MEMORY_S). What one of them takes for its
    own work, against what all would in the mean, says how many times slower it is: one number,
    since rate and overhead of one engine alone are told apart by chance as much as by what it is.
    One of which nothing is known, or not much else than of the others (SAME), counts as they do,
    and all count as the prior until enough was counted (WARM_UP, CERTAIN).

    What an engine counts as prefill seconds runs from a request's first step to its first token, so
    requests that are prefilled in one batch count the same time twice, and decoding beside them
    counts too. But no engine prefills for longer than time has passed: what is counted beyond that
    is left out, so that of a busy engine the rate is what it gets done, however it batches.
    """

    def __init__(self, prior: Speed) -> None:
        self._prior = prior
        self._fit = _Fit()
        self._own: dict[InstanceId, _Own] = {}
        self._others: dict[InstanceId, _Own] = {}
        """Those of them that are not as the rest."""
        self._at = 0.0
        self.mean = prior

    def assume(self, prior: Speed) -> None:
        """Take another prior."""
        self._prior = prior
        self._note_mean()

    def observe(
        self,
        instance: InstanceId,
        seconds: float,
        requests: float,
        tokens: float,
        now: float | None = None,
    ) -> None:
        """An engine has counted so much more. What cannot be is left out.

        now: when it was looked at; without it the seconds are taken to be its time alone.
        """
        if not (0 < seconds < _LONGEST_S and requests >= 1 and tokens >= 0):
            return
        own = self._own.get(instance) or _Own()
        if now is None:
            own.fade(seconds)
        else:
            seconds = own.possible(seconds, now)
            self._at = max(self._at, now)
        if not seconds * _SLOWEST <= tokens + requests <= seconds * _FASTEST:
            return
        self._own[instance] = own
        own.count += requests
        if own.count > WARM_UP:
            counted_s = seconds
            if self.are_learnt:
                counted_s = _without_stall(seconds, self.mean.seconds(tokens, requests))
            self._fit.add(counted_s, requests, tokens, MEMORY_S * len(self._own))
            self._note_mean()
            own.add(seconds, requests, tokens, self.mean)
            if self.are_learnt and not is_same(own.slowness(self.mean, self._at)):
                self._others[instance] = own
            else:
                self._others.pop(instance, None)

    def restarted(self, instance: InstanceId) -> None:
        """Another process is there now, which warms up."""
        self._own.pop(instance, None)
        self._others.pop(instance, None)

    @property
    def are_learnt(self) -> bool:
        """Whether engines have told enough to be believed."""
        return self._fit.count > CERTAIN

    def of(self, instance: InstanceId) -> Speed:
        """What is known of the instance."""
        own = self._others.get(instance)
        if own is None:
            return self.mean
        slowness = own.slowness(self.mean, self._at)
        return self.mean if is_same(slowness) else self.mean.times(slowness)

    def keep(self, instances: Iterable[InstanceId]) -> None:
        """Forget all others: one that comes back may be another machine."""
        there = frozenset(instances)
        if not self._own.keys() <= there:
            self._own = {name: own for name, own in self._own.items() if name in there}
            self._others = {name: own for name, own in self._others.items() if name in there}
            if not self._own:
                self._fit = _Fit()
                self._note_mean()

    def _note_mean(self) -> None:
        self.mean = self._fit.speed(self._prior) if self.are_learnt else self._prior


def _without_stall(seconds: float, expected_s: float) -> float:
    """What counts of a window that took so long."""
    return min(seconds, max(STALL * expected_s, _LEAST_STALL_S))


def is_same(slowness: float) -> bool:
    """Whether an engine that takes so many times longer than usual counts as the others do."""
    return 1 / SAME < slowness < SAME
