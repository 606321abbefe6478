"""Instances that are lost and that come while a trace is played."""

import numpy as np
import pytest

from extproc.replay.baselines import BASELINES
from extproc.replay.formats import SharedPrefix
from extproc.replay.lab import Change, Setting, replay
from extproc.replay.outcome import Outcome
from extproc.replay.traffic import Request
from extproc.routing import POLICIES, Policy

EVERY = {**POLICIES, **BASELINES}


def play(policy: Policy, *changes: Change, rate: float = 10.0) -> Outcome:
    traffic = SharedPrefix(groups=12, requests=400, rate=rate, output=100, seed=1)
    return replay(traffic, policy, Setting(4, 200_000, changes=changes))


def arrivals(outcome: Outcome, engine: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.frombuffer(outcome.at)[np.array(outcome.engine) == engine]


@pytest.mark.parametrize("name", EVERY)
def test_a_lost_instance_gets_nothing_more_and_every_request_is_answered(name: str) -> None:
    outcome = play(EVERY[name](), Change(15.0, 2, False))
    here = np.array(outcome.engine) == 2
    first_tokens = (np.frombuffer(outcome.at) + np.frombuffer(outcome.ttft))[here]
    assert first_tokens.max(initial=0.0) <= 15.0
    assert len(set(outcome.conversation)) == 400


def test_what_waits_at_a_lost_instance_goes_elsewhere_and_its_wait_counts_from_its_arrival() -> (
    None
):
    quiet = play(BASELINES["session-hash"](), rate=40.0)
    lost = play(BASELINES["session-hash"](), Change(5.0, 2, False), rate=40.0)
    at = np.frombuffer(lost.at)
    moved = (at < 5.0) & (at + np.frombuffer(lost.ttft) > 5.0) & (np.array(lost.engine) != 2)
    stood = (np.frombuffer(quiet.at) < 5.0) & (np.array(quiet.engine) == 2)
    assert moved.sum() > 0
    assert stood.sum() > 0
    assert lost.requests > 400  # those that were under way were placed twice


def test_a_lost_instance_comes_back_cold() -> None:
    outcome = play(BASELINES["round-robin"](), Change(15.0, 0, False), Change(25.0, 0, True))
    at, here = np.frombuffer(outcome.at), np.array(outcome.engine) == 0
    back = np.flatnonzero(here & (at > 25.0))
    assert not (here & (at > 15.0) & (at < 25.0)).any()
    assert len(back)
    assert outcome.cached[back[0]] == 0
    assert outcome.summary().predicted_over == pytest.approx(0.0, abs=0.01)


def test_an_instance_that_comes_later_gets_nothing_before() -> None:
    outcome = play(
        BASELINES["least-tokens"](), Change(0.0, 3, False), Change(20.0, 3, True), rate=20.0
    )
    assert arrivals(outcome, 3).min() >= 19.0


def test_who_is_refused_comes_again_and_has_waited_since_the_first_time() -> None:
    refused: list[float] = []

    def door(request: Request, now: float) -> float:
        if now < 20.0:
            refused.append(now)
        return 3.0 if now < 20.0 else 0.0

    traffic = SharedPrefix(groups=12, requests=100, rate=10.0, output=100, seed=1)
    outcome = replay(traffic, POLICIES["priced"](), Setting(4, 200_000, door=door))
    waited = np.frombuffer(outcome.at) + np.frombuffer(outcome.ttft)
    assert len(outcome.ttft) == outcome.requests == 100
    assert len(refused) > 300
    assert min(outcome.at) < 1.0
    assert waited.min() >= 20.0


def test_a_pool_that_does_not_change_is_played_as_before() -> None:
    never = play(POLICIES["priced"](), Change(1e9, 2, False))
    assert never.ttft == play(POLICIES["priced"]()).ttft
