"""Replays as a whole: every request is answered, the same seed gives the same, locality pays."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from extproc.cli import main
from extproc.replay.baselines import BASELINES
from extproc.replay.foretold import Foretold
from extproc.replay.formats import SharedPrefix, Turns, lengths
from extproc.replay.lab import Setting, replay
from extproc.replay.traffic import Request, Traffic
from extproc.routing import POLICIES, Policy
from extproc.terms import PackedKeys

SMALL = Setting(instances=4, capacity_tokens=100_000)


def shared(seed: int = 1) -> SharedPrefix:
    return SharedPrefix(groups=12, requests=300, rate=10.0, seed=seed)


def every_policy() -> dict[str, Policy]:
    return {name: make() for name, make in {**POLICIES, **BASELINES}.items()}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "turns.jsonl"
    path.write_text("\n".join(json.dumps([[200 + n, 60], [40, 30], [20, 10]]) for n in range(60)))
    return path


@pytest.mark.parametrize("name", every_policy())
def test_every_turn_of_every_conversation_is_answered(name: str, trace: Path) -> None:
    outcome = replay(Turns(lengths(trace), rate=5.0, seed=1), every_policy()[name], SMALL)
    summary = outcome.summary()
    assert summary.requests == len(outcome.ttft) == 180
    assert sum(outcome.picks) == 180
    assert min(outcome.ttft) > 0


@pytest.mark.parametrize("name", every_policy())
def test_the_same_seed_gives_the_same_times(name: str) -> None:
    first, again = (replay(shared(), every_policy()[name], SMALL).ttft for _ in range(2))
    assert first == again
    assert first != replay(shared(seed=2), every_policy()[name], SMALL).ttft


def test_round_robin_gives_every_engine_the_same_number() -> None:
    assert list(replay(shared(), BASELINES["round-robin"](), SMALL).picks) == [75] * 4


def test_turns_of_a_session_stay_together_by_its_hash(trace: Path) -> None:
    outcome = replay(Turns(lengths(trace), rate=5.0, seed=1), BASELINES["session-hash"](), SMALL)
    # First turns miss; later ones find all whole blocks of what was said before.
    assert outcome.summary().hit > 0.5
    assert all(count % 3 == 0 for count in outcome.picks)


def test_the_priced_policy_finds_shared_prefixes_and_round_robin_does_not() -> None:
    priced = replay(shared(), POLICIES["priced"](), SMALL).summary()
    spread = replay(shared(), BASELINES["round-robin"](), SMALL).summary()
    assert priced.hit > spread.hit + 0.1
    assert priced.ttft_mean < spread.ttft_mean


def test_what_the_router_believes_of_an_engine_is_what_the_engine_has(trace: Path) -> None:
    """The index folds the same requests as the engines' caches, in nearly the same order."""
    summary = replay(Turns(lengths(trace), rate=5.0, seed=1), POLICIES["priced"](), SMALL).summary()
    assert summary.predicted_over == 0


def test_engines_that_are_told_nothing_of_first_tokens_are_still_balanced() -> None:
    blind = Setting(instances=4, capacity_tokens=100_000, sees_first_token=False)
    summary = replay(shared(), POLICIES["priced"](), blind).summary()
    assert summary.imbalance < 2


def test_the_command_prints_one_object_a_policy(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["replay", str(trace), "--policy", "priced", "--policy", "round-robin", "--json"]
    assert main([*arguments, "--instances", "4", "--rate", "5", "--seeds", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == ["priced", "round-robin"]
    assert rows[0]["hit"] > rows[1]["hit"]
    assert {"ttft_mean", "ttft_p50", "ttft_p90", "ttft_p99", "within_2s", "within_5s"} <= set(
        rows[0]
    )


def test_the_command_prints_a_table(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(trace), "--policy", "priced", "--rate", "5"]) == 0
    assert "priced" in capsys.readouterr().out


def test_a_policy_that_is_not_there_is_named(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(trace), "--policy", "best"]) == 2
    assert "no policy is called best; there are: priced, least-tokens" in capsys.readouterr().err


def test_the_command_plays_the_shared_prefix_generator_as_wide_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["replay", "shared-prefix", "--requests", "200", "--groups", "3", "--rate", "5"]
    assert main([*arguments, "--policy", "priced", "--policy", "least-tokens"]) == 0
    table = capsys.readouterr().out
    assert "picks/s" in table
    assert "…" not in table, "nothing is cut where stdout is no terminal"
    assert main([*arguments, "--policy", "priced", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["requests"] == 200
    assert row["decisions_per_s"] > 0
    assert row["hit"] > 0.5


def test_the_command_plays_a_log_of_chats(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "The ships bring spice and salt to the harbour. " * 60
    said: list[dict[str, str]] = []
    with (tmp_path / "log.jsonl").open("w") as log:
        for turn in range(4):
            said.append({"role": "user", "content": f"{turn}: {words}"})
            line = {"time": turn * 30.0, "messages": said, "output_tokens": 20}
            print(json.dumps(line), file=log)
            said.append({"role": "assistant", "content": "So they do."})
    names = ("priced", "oracle", "round-robin")
    policies = [word for name in names for word in ("--policy", name)]
    assert main(["replay", str(tmp_path / "log.jsonl"), *policies, "--json"]) == 0
    rows = {row["policy"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["priced"]["hit"] > 0.5
    assert rows["oracle"]["hit"] >= rows["priced"]["hit"] > rows["round-robin"]["hit"]


def test_what_is_foretold_is_when_each_conversation_comes_back() -> None:
    def chats() -> Traffic:
        return Recorded(
            [request(at, chat) for at, chat in ((0.0, 1), (1.0, 2), (4.0, 1), (9.0, 1), (9.5, 2))]
        )

    told = [one.next_at for one in Foretold(chats(), chats()).arrivals()]
    assert told == [4.0, 9.5, 9.0, None, None]


def request(at: float, chat: int) -> Request:
    nothing = PackedKeys(b"")
    return Request(at, chat, 0, nothing, 16, 1, nothing)


class Recorded:
    """An open loop."""

    block_size = 16

    def __init__(self, requests: list[Request]) -> None:
        self._requests = requests

    def arrivals(self) -> Iterator[Request]:
        return iter(self._requests)

    def following(self, request: Request, ended: float) -> Request | None:
        return None
