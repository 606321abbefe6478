"""The simulated engine in virtual time, against what queueing theory says of such a queue."""

import random

import pytest

from extproc.replay.engine import Engine, EngineModel, Job
from extproc.replay.traffic import Request, packed
from extproc.terms import PackedKeys
from tests.replay.ids import ids

BLOCK = 16


def request(at: float, tokens: int, output: int = 1, keys: PackedKeys | None = None) -> Request:
    whole = keys if keys is not None else PackedKeys(b"")
    return Request(at, 0, 0, whole, tokens, output, whole)


def play(engine: Engine, jobs: list[Job]) -> dict[int, float]:
    """Submits the jobs at their times; when each answer ended, by identity."""
    ended: dict[int, float] = {}
    waiting = sorted(jobs, key=lambda job: job.at, reverse=True)
    while waiting or engine.next_event < float("inf"):
        at = waiting[-1].at if waiting else float("inf")
        now = min(at, engine.next_event)
        for job in engine.advance(now)[1]:
            ended[id(job)] = now
        if waiting and at <= now:
            engine.submit(waiting.pop())
    return ended


def test_a_prefill_takes_its_uncached_tokens_and_the_overhead() -> None:
    engine = Engine(EngineModel(prefill_rate=1000, overhead_s=0.5), 100, BLOCK)
    job = Job(request(0.0, 2000), 0.0)
    play(engine, [job])
    assert job.first_token == pytest.approx(2.5)


def test_prefills_wait_for_those_that_came_before() -> None:
    engine = Engine(EngineModel(prefill_rate=1000, overhead_s=0.0), 100, BLOCK)
    jobs = [Job(request(at, 1000), at) for at in (0.0, 0.5, 0.6)]
    play(engine, jobs)
    assert [job.first_token for job in jobs] == pytest.approx([1.0, 2.0, 3.0])


def test_whole_blocks_hit_and_the_last_token_is_computed() -> None:
    engine = Engine(EngineModel(), 100, BLOCK)
    keys = packed(ids(4))
    first, again, longer = (
        Job(request(at, tokens, keys=keys), at) for at, tokens in ((0, 64), (1, 64), (2, 70))
    )
    play(engine, [first, again, longer])
    assert [job.cached for job in (first, again, longer)] == [0, 48, 64]


def test_a_cache_that_is_full_evicts_the_tail_of_what_was_used_longest_ago() -> None:
    engine = Engine(EngineModel(), 6, BLOCK)
    old, new = packed(ids(4)), packed(ids(4, start=100))
    jobs = [
        Job(request(at, 65, keys=keys), at) for at, keys in ((0, old), (1, new), (2, old), (3, old))
    ]
    play(engine, jobs)
    assert [job.cached for job in jobs] == [0, 0, 2 * BLOCK, 4 * BLOCK]


def test_answers_are_decoded_together_and_slow_each_other() -> None:
    model = EngineModel(overhead_s=0.0, prefill_rate=1e9, decode_s=1.0, decode_running_s=1.0)
    engine = Engine(model, 100, BLOCK)
    alone = Job(request(0.0, 1, output=1), 0.0)
    ended = play(engine, [alone])
    assert ended[id(alone)] == pytest.approx(2.0)
    engine = Engine(model, 100, BLOCK)
    two = [Job(request(0.0, 1, output=1), 0.0) for _ in range(2)]
    ended = play(engine, two)
    # The second's prefill takes no time, so both share nearly all of it: 3 s a token.
    assert max(ended.values()) == pytest.approx(3.0, rel=1e-6)


def test_decode_and_attention_lengthen_prefills_where_the_model_says_so() -> None:
    model = EngineModel(overhead_s=0.0, prefill_rate=1000, attention_s=1e-6, decode_slows=0.1)
    assert model.prefill_s(2000, 0, 0) == pytest.approx(2.0 + 2000 * 2000 / 2 * 1e-6)
    assert model.prefill_s(2000, 0, 5) == pytest.approx((2.0 + 2.0) * 1.5)
    # What is cached is attended to, not computed.
    assert model.prefill_s(2000, 1000, 0) == pytest.approx(1.0 + 1000 * 1500 * 1e-6)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_the_mean_wait_is_that_of_an_m_d_1_queue(load: float) -> None:
    """Pollaczek and Khinchine: W = ρ·s / 2(1-ρ) where every service takes s."""
    chance = random.Random(7)
    service, count = 1.0, 60_000
    engine = Engine(EngineModel(prefill_rate=1000, overhead_s=0.0), 10, BLOCK)
    at, jobs = 0.0, []
    for _ in range(count):
        at += chance.expovariate(load / service)
        jobs.append(Job(request(at, 1000), at))
    play(engine, jobs)
    waited = sum(job.first_token - job.at - service for job in jobs) / count
    assert waited == pytest.approx(load * service / (2 * (1 - load)), rel=0.05)
    assert engine.busy_s == pytest.approx(count * service)
