"""What the lab's routers do not know, or know late."""

from collections.abc import Iterator
from dataclasses import replace
from heapq import merge

import numpy as np
import pytest

from extproc.engines.conditions import LATE_S
from extproc.replay.engine import Engine, EngineModel, Job
from extproc.replay.fleet import Blur, Fleet
from extproc.replay.formats import SharedPrefix
from extproc.replay.lab import Setting, replay
from extproc.replay.router import Placement, Router
from extproc.replay.traffic import Request, packed
from extproc.routing import PricedTTFT, Speed

BLOCK = 16
UP = [0, 1]


def fleet(blur: Blur) -> tuple[Fleet, list[Router]]:
    routers = [Router(PricedTTFT(), 2, 1_000, BLOCK, Speed(1_000.0)) for _ in range(blur.replicas)]
    return Fleet(routers, blur), routers


def request(at: float, conversation: int = 1) -> Request:
    keys = packed(np.arange(10, dtype="<u8") + np.uint64(conversation << 20))
    return Request(at, conversation, 0, keys, 10 * BLOCK, 5, keys)


def cached(placement: Placement | None) -> int:
    assert placement is not None
    return placement.score.cached_tokens


def test_facts_that_are_late_are_not_found_before() -> None:
    late, _ = fleet(Blur(stale_s=0.5))
    late.place(request(0.0), 0.0, [0])
    assert cached(late.place(request(0.4), 0.4, [0])) == 0
    assert cached(late.place(request(0.6), 0.6, [0])) > 0


def test_replicas_learn_of_each_others_picks_and_load_after_a_while() -> None:
    several, routers = fleet(Blur(replicas=2, late_s=0.2))
    several.place(request(0.0), 0.0, [0])
    assert cached(several.place(request(0.1, 2), 0.1, [0])) == 0
    assert routers[1].outlook.ledger.elsewhere(0.1) == 0
    several.place(request(0.3, 3), 0.3, [1])
    several.place(request(0.6, 1), 0.6, [0])
    assert routers[1].outlook.ledger.elsewhere(0.6) > 0
    assert len(routers[1].index.match(request(0.0).keys)) == 1


def test_an_unknown_prompt_is_neither_found_nor_remembered() -> None:
    blind, routers = fleet(Blur(unknown_share=1.0))
    for at in (0.0, 0.1):
        assert cached(blind.place(request(at), at, UP)) == 0
    assert not routers[0].index.match(request(0.0).keys)


def test_wrong_speeds_are_wrong_by_no_more_than_was_asked_for() -> None:
    _, (router,) = fleet(Blur(speed_error=0.5))
    rates = [router.outlook.rate(name) for name in router.names]
    assert all(1_000 / 1.5 <= rate <= 1_000 / 0.5 for rate in rates)
    assert max(rates) > 1.2 * min(rates)


def test_the_speeds_of_unequal_engines_are_learnt_and_pay() -> None:
    """One engine of four is ten times slower; who learns it waits less than who believes."""
    slow = {2: EngineModel(prefill_rate=1_600.0)}
    unseen = Setting(4, 300_000, sees_first_token=False, others=slow)
    means = [
        replay(
            SharedPrefix(prefix=500, question=1_500, rate=20.0, requests=1_500, seed=3),
            PricedTTFT(),
            replace(unseen, blur=Blur(learns_speed=learns)),
        )
        .summary()
        .ttft_mean
        for learns in (True, False)
    ]
    assert means[0] < 0.8 * means[1]


def test_all_requests_are_served_whatever_is_not_known() -> None:
    blur = Blur(0.5, 0.5, 0.3, 3, 0.2, learns_speed=True)
    setting = Setting(4, 300_000, sees_first_token=False, blur=blur)
    summary = replay(SharedPrefix(requests=400, rate=10, seed=1), PricedTTFT(), setting).summary()
    assert summary.requests == 400
    assert 0 < summary.hit < 1


def test_a_queue_at_an_engine_that_is_slower_than_believed_is_seen() -> None:
    """Predicted to be done, and not begun there: the engine's own count of who waits says so."""
    one, (router,) = fleet(Blur())
    engine = Engine(EngineModel(prefill_rate=1.0), 100, BLOCK)
    for number in range(4):
        engine.submit(Job(request(0.0, number), 0.0))
        one.place(request(0.0, number), 0.0, [0])
    engine.computed_tokens, engine.prefilled = 10_000, 10
    one.look([engine], 50.0)
    assert router.outlook.loads([router.names[0]], 50.0)[0].waiting == 0
    assert router.beyond[0] == 3 * 1_000 - LATE_S * 1_000


def test_requests_that_wait_at_the_router_are_placed_shortest_first_and_all_of_them() -> None:
    """Prefills of two sizes on one engine: the short ones wait less, none is lost."""
    traffic = SharedPrefix(40, 40, 0, 2_000, 100, rate=6.0, requests=600, seed=3)
    mixed = SharedPrefix(40, 40, 0, 200, 100, rate=6.0, requests=600, seed=4)
    at_once, waiting = (
        replay(_Both(traffic, mixed), PricedTTFT(), Setting(1, 100_000, max_wait_s=most)).summary()
        for most in (0.0, 5.0)
    )
    assert waiting.requests == at_once.requests == 1_200
    assert waiting.ttft_p50 < 0.9 * at_once.ttft_p50
    assert waiting.ttft_mean < 0.95 * at_once.ttft_mean
    assert waiting.utilisation == pytest.approx(at_once.utilisation, rel=0.02)


class _Both:
    """Two open loops at once."""

    block_size = SharedPrefix.block_size

    def __init__(self, one: SharedPrefix, other: SharedPrefix) -> None:
        self._both = one, other

    def arrivals(self) -> Iterator[Request]:
        return merge(*(each.arrivals() for each in self._both), key=lambda request: request.at)

    def following(self, request: Request, ended: float) -> Request | None:
        return None
