"""The lab against queueing theory: many servers, one queue, exponential work (M/M/c).

Dispatch by least work to queues that are served in order *is* one common queue: whoever arrives
begins when the first server is free for it. So the mean wait must be Erlang's.
"""

import random
from collections.abc import Iterator
from math import factorial
from statistics import fmean, stdev

import numpy as np
import pytest

from extproc.replay.baselines import BASELINES
from extproc.replay.engine import EngineModel
from extproc.replay.lab import Setting, replay
from extproc.replay.traffic import Request
from extproc.terms import PackedKeys

RATE = 16_000.0
REQUESTS = 40_000
BATCHES = 40
NOTHING = PackedKeys(b"")


class Exponential:
    """Poisson arrivals of prompts that nobody caches, each an exponential second of work."""

    block_size = 16

    def __init__(self, rate: float, seed: int) -> None:
        self._rate = rate
        self._seed = seed

    def arrivals(self) -> Iterator[Request]:
        chance, at = random.Random(self._seed), 0.0
        for number in range(REQUESTS):
            at += chance.expovariate(self._rate)
            tokens = max(round(chance.expovariate(1.0) * RATE), 1)
            yield Request(at, number, 0, NOTHING, tokens, 1, NOTHING)

    def following(self, request: Request, ended: float) -> Request | None:
        return None


def erlang_wait(servers: int, load: float) -> float:
    """Mean wait of M/M/c in service times. load: erlangs, below `servers`."""
    busy = load**servers / factorial(servers) * servers / (servers - load)
    waits = busy / (sum(load**k / factorial(k) for k in range(servers)) + busy)
    return waits / (servers - load)


def test_erlangs_formula_is_that_of_one_server_where_there_is_one() -> None:
    assert erlang_wait(1, 0.8) == pytest.approx(0.8 / (1 - 0.8))


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.7), (2, 0.8), (8, 0.75)])
def test_the_mean_wait_is_erlangs(servers: int, utilisation: float) -> None:
    load = servers * utilisation
    setting = Setting(servers, 16_000, EngineModel(prefill_rate=RATE, overhead_s=0.0))
    outcome = replay(Exponential(load, seed=7), BASELINES["least-tokens"](), setting)
    waits = np.frombuffer(outcome.ttft) - np.frombuffer(outcome.prefill_s)
    # Waits that follow each other are alike: the error of the mean is that of long batches'.
    means = [float(batch.mean()) for batch in np.array_split(waits, BATCHES)]
    error = stdev(means) / BATCHES**0.5
    assert error < 0.15 * erlang_wait(servers, load), "the run is too short to tell"
    assert abs(fmean(means) - erlang_wait(servers, load)) < 3 * error
