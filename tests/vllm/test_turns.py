"""Conversations through Envoy and Homing on two real engines: what is predicted is what is found.

The engines' caches are small, so that conversations push out each other's blocks; one engine is
killed and started again while they go on. `build/vllm-report.json` has the numbers.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import aiohttp
import pytest

from tests.vllm.conversations import KINDS, Talk, interleaved, talks
from tests.vllm.observer import observing
from tests.vllm.player import Player, Turn
from tests.vllm.stack import BLOCKS, VllmStack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

SEED = 3
CONVERSATIONS = 42
AT_ONCE = 6
BEFORE, WHILE_DOWN = 160, 8
"""Turns before an engine is killed, and until it is started again."""

VICTIM = "engine-1"


@dataclass(frozen=True, slots=True)
class Played:
    """What happened.

    turns: whose predictions count. down: those while the engine was away, which do not: the first
    of them were picked for it, and another served them.
    held_before, held_after: blocks that Homing knew of the engine before it was killed, and of the
    one that was started in its place, before that had served anything.
    """

    turns: list[Turn]
    down: list[Turn]
    after: list[Turn]
    held_before: int
    held_after: int
    stored: dict[str, int]
    removed: dict[str, int]

    def report(self) -> dict[str, Any]:
        """For `build/vllm-report.json`."""
        over = Counter(turn.over_blocks for turn in self.turns)
        later = [turn for turn in self.turns if turn.before is not None]
        return {
            "turns": len(self.turns),
            "equal_share": sum(t.predicted == t.cached for t in self.turns) / len(self.turns),
            "over_max_blocks": max(over),
            "over_blocks": {str(blocks): over[blocks] for blocks in sorted(over)},
            "later_turns": len(later),
            "came_home_share": sum(turn.served == turn.before for turn in later) / len(later),
            "conversations": CONVERSATIONS,
            "prompt_tokens": sum(turn.prompt_tokens for turn in self.turns),
            "cached_tokens": sum(turn.cached for turn in self.turns),
            "turns_while_an_engine_was_down": len(self.down),
            "turns_after_its_restart": len(self.after),
            "blocks_known_of_it_before": self.held_before,
            "blocks_known_of_it_after": self.held_after,
            "blocks_stored": self.stored,
            "blocks_removed": self.removed,
        }


@pytest.fixture(scope="module")
def played(stack: VllmStack, report: dict[str, Any]) -> Played:
    """All conversations, played once."""
    played = asyncio.run(play(stack))
    report |= played.report()
    return played


async def play(stack: VllmStack) -> Played:
    order: Iterator[Talk] = interleaved(talks(CONVERSATIONS, SEED), SEED, AT_ONCE)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as http, observing(stack.engines) as observer:
        player = Player(http, stack, observer)
        before = await player.play(islice(order, BEFORE))
        held_before = await held_blocks(http, stack, VICTIM)
        stack.kill(VICTIM)
        down = await player.play(islice(order, WHILE_DOWN))
        await asyncio.to_thread(stack.start, VICTIM)
        held_after = await cleared(http, stack, VICTIM)
        player.forget_home(VICTIM)
        after = await player.play(order)
        return Played(
            turns=before + after,
            down=down,
            after=after,
            held_before=held_before,
            held_after=held_after,
            stored={name: heard.stored for name, heard in observer.heard.items()},
            removed={name: heard.removed for name, heard in observer.heard.items()},
        )


async def held_blocks(http: aiohttp.ClientSession, stack: VllmStack, name: str) -> int:
    """Blocks that Homing believes an engine to hold."""
    async with http.get(f"{stack.admin_url}/pools") as response:
        (pool,) = await response.json()
    (blocks,) = (one["blocks"] for one in pool["instances"] if one["name"] == name)
    return int(blocks)


async def cleared(http: aiohttp.ClientSession, stack: VllmStack, name: str) -> int:
    """What Homing knows of an engine once that is nothing, or after a while."""
    for _ in range(200):
        held = await held_blocks(http, stack, name)
        if not held:
            break
        await asyncio.sleep(0.1)
    return held


def test_predicted_cached_tokens_are_those_that_the_engines_report(played: Played) -> None:
    report = played.report()
    wrong = [turn for turn in played.turns if turn.predicted != turn.cached]
    assert report["turns"] >= 150
    assert report["equal_share"] >= 0.99, wrong
    assert report["over_max_blocks"] <= 1, wrong


def test_every_kind_of_conversation_finds_what_was_said_before(played: Played) -> None:
    cached = Counter[str]()
    for turn in played.turns:
        cached[turn.talk.split()[0]] += turn.cached
    assert all(cached[kind.__name__.lower()] for kind in KINDS), cached


def test_turns_come_home(played: Played) -> None:
    assert played.report()["came_home_share"] >= 0.95
    assert len({turn.served for turn in played.turns}) == 2


def test_conversations_push_each_other_out(played: Played) -> None:
    """Without evictions there would be little to predict.

    How many each engine has is a matter of how busy this machine was while either prefilled.
    """
    assert sum(played.removed.values()) > 4 * BLOCKS
    assert all(played.removed.values())


def test_no_turn_is_lost_while_an_engine_is_down(played: Played) -> None:
    assert len(played.down) == WHILE_DOWN
    assert VICTIM not in {turn.served for turn in played.down}


def test_an_engine_that_was_killed_and_started_again_is_noticed(played: Played) -> None:
    assert played.held_before > BLOCKS // 2
    assert played.held_after == 0
    assert VICTIM in {turn.served for turn in played.after}
    assert all(turn.predicted == turn.cached for turn in played.after if turn.served == VICTIM)
