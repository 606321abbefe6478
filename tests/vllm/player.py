"""Plays conversations through Envoy and Homing, turn by turn, and notes what was predicted.

A turn is sent when all that the turns before it did to the engines' caches is known to Homing. What
that is, is known beforehand: an engine stores the blocks of a prompt and its answer, without the
last token of it, that it has not found in its cache.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp

from extproc.demo.stack import HOST, Stack
from tests.e2e.client import samples
from tests.vllm.client import Answer, ask
from tests.vllm.conversations import Talk
from tests.vllm.observer import Observer
from tests.vllm.stack import BLOCK_SIZE

PATIENCE_S = 20.0
"""Longest wait for events; on a busy machine they come up to seconds after the answer."""

_PREDICTED = re.compile(r"cached=(\d+)/(\d+)")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn. served, before: the engines that answered it and the turn before (None: the first).

    predicted: cached tokens by Homing on the engine that it picked; cached: as the engine reports.
    """

    talk: str
    number: int
    served: str
    before: str | None
    prompt_tokens: int
    predicted: int
    cached: int
    why: str

    @property
    def over_blocks(self) -> int:
        """Blocks that were predicted and not found; below zero, found and not predicted."""
        return (self.predicted - self.cached) // BLOCK_SIZE


class Player:
    """One client, one request at a time."""

    def __init__(self, http: aiohttp.ClientSession, stack: Stack, observer: Observer) -> None:
        self._http = http
        self._stack = stack
        self._observer = observer
        self._names = {f"{HOST}:{one.port}": name for name, one in stack.engines.items()}
        self._homes: dict[str, str] = {}
        self._numbers = Counter[str]()

    async def play(self, order: Iterable[Talk]) -> list[Turn]:
        """The next turn of each of these, one after the other."""
        turns = []
        for talk in order:
            answer = await self._ask(talk.path, talk.ask(self._stack.model))
            talk.hear(answer.text)
            turns.append(self._turn(talk, answer))
        return turns

    def forget_home(self, engine: str) -> None:
        """The conversations of this engine have no home any more."""
        self._homes = {talk: home for talk, home in self._homes.items() if home != engine}

    async def _ask(self, path: str, body: dict[str, Any]) -> Answer:
        stored = {name: heard.stored for name, heard in self._observer.heard.items()}
        answer = await ask(self._http, self._stack.url, path, body)
        engine = self._names[answer.served]
        full = (answer.prompt_tokens + answer.output_tokens - 1) // BLOCK_SIZE
        due = stored[engine] + full - answer.cached_tokens // BLOCK_SIZE
        heard = self._observer.heard[engine]
        await self._observer.until(lambda: heard.stored >= due, PATIENCE_S)
        assert heard.stored == due, f"{path}: {engine} has stored other blocks than {answer}"
        await self._settle()
        return answer

    async def _settle(self) -> None:
        """Wait until Homing has taken in all events that the observer has heard."""
        clock = asyncio.get_running_loop().time
        until = clock() + PATIENCE_S
        while (known := await _taken_in(self._http, self._stack)) != (due := self._due()):
            assert clock() < until, f"Homing knows of {known} blocks stored and removed, not {due}"
            await asyncio.sleep(0.02)

    def _due(self) -> tuple[int, int]:
        heard = self._observer.heard.values()
        return sum(one.stored for one in heard), sum(one.removed for one in heard)

    def _turn(self, talk: Talk, answer: Answer) -> Turn:
        served = self._names[answer.served]
        found = _PREDICTED.search(answer.why)
        assert found, f"no prediction in {answer.why!r}"
        predicted, tokens = map(int, found.groups())
        assert tokens == answer.prompt_tokens, f"{talk.name}: another prompt than the engine's"
        self._numbers[talk.name] += 1
        before = self._homes.get(talk.name)
        self._homes[talk.name] = served
        return Turn(
            talk=talk.name,
            number=self._numbers[talk.name],
            served=served,
            before=before,
            prompt_tokens=tokens,
            predicted=predicted,
            cached=answer.cached_tokens,
            why=answer.why,
        )


async def _taken_in(http: aiohttp.ClientSession, stack: Stack) -> tuple[int, int]:
    """Blocks that Homing has heard of as stored and as removed, in all."""
    blocks = await samples(http, stack.admin_url, "homing_event_blocks_total", "what")
    return int(blocks.get("stored", 0)), int(blocks.get("removed", 0))
