"""The simulated engine is like the real one: cache, events and metrics after the same requests.

Both play the same conversations, one request after the other, with small caches. What they answer
differs, so the blocks of answers have other contents; which blocks they are, and when they are
found, stored and removed, must not differ.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import zmq.asyncio
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.engine import EngineSettings, serving
from extproc.demo.stack import _free_ports
from tests.vllm.client import Answer, ask
from tests.vllm.conversations import Chat, Completion, Ids, Streamed, Tools, interleaved, talks
from tests.vllm.observer import Observer, history, observing
from tests.vllm.stack import BLOCK_SIZE, BLOCKS, MODEL, VllmStack, like_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SEED = 11
CONVERSATIONS = 14
AT_ONCE = 5
PATIENCE_S = 20.0

KINDS = (Chat, Tools, Streamed, Completion, Ids)
"""What the simulated engine serves."""

NAME = "engine"
CLEARED = {"type": "AllBlocksCleared"}

Metrics = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Samples by name and labels."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block that was stored: the number of the request, and its place in that one's tokens."""

    request: int
    place: int


@dataclass(slots=True)
class Played:
    """What an engine did.

    messages: of its events, topic, number and batch each. metrics: before and after. replayed: the
    same messages and all before, as asked for again, frame by frame.
    """

    answers: list[Answer]
    messages: list[list[bytes]]
    metrics: tuple[Metrics, Metrics]
    replayed: list[list[bytes]]

    def events(self) -> list[dict[str, Any]]:
        """Of all messages, in order."""
        return [event for batch in self.batches() for event in batch[1]]

    def batches(self) -> list[list[Any]]:
        """The decoded messages: time, events, rank."""
        return [msgspec.msgpack.decode(payload) for _, _, payload in self.messages]

    def counts(self) -> list[tuple[int, int, int]]:
        """Tokens of each request: of its prompt, of them cached, of its answer."""
        return [(a.prompt_tokens, a.cached_tokens, a.output_tokens) for a in self.answers]

    def stored(self) -> list[tuple[Block, list[int] | None]]:
        """Blocks in the order in which they were stored; with their tokens, if of a prompt."""
        return self._fold()[0]

    def removed(self) -> list[Block]:
        """Blocks in the order in which they were removed."""
        return self._fold()[1]

    def _fold(self) -> tuple[list[tuple[Block, list[int] | None]], list[Block]]:
        stored: list[tuple[Block, list[int] | None]] = []
        removed = []
        requests = self._requests()
        places: dict[Any, int] = {None: -1}
        copies: dict[Any, list[Block]] = {}
        for event in self.events():
            if event["type"] == "BlockRemoved":
                removed += [copies[one].pop(0) for one in event["block_hashes"]]
            elif event["type"] == "BlockStored":
                parent, ids = event["parent_block_hash"], event["token_ids"]
                assert len(ids) == BLOCK_SIZE * len(event["block_hashes"])
                for number, one in enumerate(event["block_hashes"]):
                    place = places[one] = places[parent] + 1
                    request = next(requests)
                    prompt = (place + 1) * BLOCK_SIZE <= self.answers[request].prompt_tokens
                    tokens = ids[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
                    block = Block(request, place)
                    copies.setdefault(one, []).append(block)
                    stored.append((block, tokens if prompt else None))
                    parent = one
        return stored, removed

    def _requests(self) -> Iterator[int]:
        """The request of each block that was stored."""
        for number, answer in enumerate(self.answers):
            yield from [number] * stored_by(answer)

    def grown(self) -> Metrics:
        """What was counted meanwhile."""
        before, after = self.metrics
        counters = [one for one in after if one[0].endswith("_total")]
        return {one: after[one] - before.get(one, 0) for one in counters}


async def play(url: str, engine: EngineSettings) -> Played:
    """The conversations, on an engine whose cache is emptied before."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        observing({NAME: engine}) as observer,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        heard = observer.heard[NAME]
        await emptied(http, url, observer)
        before = await scraped(http, url)
        first, due = len(heard.messages) - 1, heard.stored
        answers = []
        made = talks(CONVERSATIONS, SEED, kinds=KINDS, scripted=True)
        for talk in interleaved(made, SEED, AT_ONCE):
            answer = await ask(http, url, talk.path, talk.ask(MODEL.name))
            talk.hear(answer.text)
            answers.append(answer)
            due += stored_by(answer)
            await observer.until(lambda: heard.stored >= due, PATIENCE_S)  # noqa: B023
            assert heard.stored == due, f"other blocks were stored than {answer} says"
        after = await scraped(http, url)
    context = zmq.asyncio.Context()
    replayed = await history(context, engine)
    context.destroy(linger=0)
    return Played(answers, heard.messages[first:], (before, after), replayed)


def stored_by(answer: Answer) -> int:
    """Blocks that a request stores: all full ones that were not found."""
    full = (answer.prompt_tokens + answer.output_tokens - 1) // BLOCK_SIZE
    return full - answer.cached_tokens // BLOCK_SIZE


async def emptied(http: aiohttp.ClientSession, url: str, observer: Observer) -> None:
    """Empty the cache until its event is heard: then the subscription is in place.

    vLLM says so at its next step only, so one is made, too short to fill a block.
    """
    heard = observer.heard[NAME]
    first = len(heard.messages)
    step = {"model": MODEL.name, "prompt": "x", "max_tokens": 1}
    for _ in range(100):
        async with http.post(f"{url}/reset_prefix_cache") as response:
            assert response.status == 200
        await ask(http, url, "/v1/completions", step)
        if await observer.until(lambda: len(heard.messages) > first, 0.2):
            assert heard.events[-1] == CLEARED
            return
    raise AssertionError("no event came")


async def scraped(http: aiohttp.ClientSession, url: str) -> Metrics:
    async with http.get(f"{url}/metrics") as response:
        page = await response.text()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def real(stack: VllmStack) -> Played:
    return asyncio.run(play(stack.engine_url("engine-2"), stack.engines["engine-2"]))


@pytest.fixture(scope="module")
def simulated(model_folder: Path) -> Played:
    events, replay = _free_ports(2)
    settings = like_vllm(
        model_folder,
        port=0,
        prefill_tokens_per_s=1e9,
        request_ms=0,
        decode_ms=0.1,
        kv_events_port=events,
        kv_events_replay_port=replay,
    )

    async def played() -> Played:
        async with serving(settings) as running:
            return await play(running.url, settings)

    return asyncio.run(played())


def test_each_request_finds_as_much_in_both_caches(real: Played, simulated: Played) -> None:
    assert simulated.counts() == real.counts()
    assert sum(answer.cached_tokens for answer in real.answers) > 0


def test_both_store_the_same_blocks_in_the_same_order(real: Played, simulated: Played) -> None:
    assert simulated.stored() == real.stored()


def test_both_remove_the_same_blocks_in_the_same_order(real: Played, simulated: Played) -> None:
    assert simulated.removed() == real.removed()
    assert len(real.removed()) > BLOCKS


def test_events_have_the_same_form(real: Played, simulated: Played) -> None:
    assert forms(simulated) == forms(real)
    assert {topic for topic, _, _ in simulated.messages} == {topic for topic, _, _ in real.messages}


def forms(played: Played) -> dict[str, set[str]]:
    """Of batches and of each type of event: fields, and the types of their values."""
    found = {"batch": {" ".join(type(p).__name__ for p in batch) for batch in played.batches()}}
    for event in played.events():
        fields = " ".join(f"{name}:{form(value)}" for name, value in sorted(event.items()))
        found.setdefault(event["type"], set()).add(fields)
    return found


def form(value: Any) -> str:
    if isinstance(value, list):
        return f"[{'|'.join(sorted({form(item) for item in value}))}]"
    return repr(value) if isinstance(value, str | None) else type(value).__name__


def test_messages_come_again_in_the_same_form(real: Played, simulated: Played) -> None:
    for played in (real, simulated):
        again = [frames[-3:] for frames in played.replayed[:-1]]
        assert again[-len(played.messages) :] == played.messages
    assert envelopes(simulated) == envelopes(real)


def envelopes(played: Played) -> Counter[tuple[bytes, ...]]:
    """Replayed messages without what they carry: all frames but the last two."""
    *messages, end = played.replayed
    return Counter({tuple(frames[:-2]): 1 for frames in messages} | {tuple(end): 1})


def test_both_count_the_same(real: Played, simulated: Played) -> None:
    theirs = real.grown()
    ours = {one: value for one, value in simulated.grown().items() if one[0].startswith("vllm:")}
    assert ours.keys() <= theirs.keys()
    assert ours == {one: theirs[one] for one in ours}
    assert sum(ours.values()) > 0


def test_metrics_have_the_same_names_and_labels(real: Played, simulated: Played) -> None:
    ours, theirs = labels(simulated), labels(real)
    assert ours.keys() <= theirs.keys()
    for name in ours.keys() - {"vllm:cache_config_info"}:
        assert ours[name] == theirs[name], name
    assert ours["vllm:cache_config_info"] <= theirs["vllm:cache_config_info"]


def labels(played: Played) -> dict[str, frozenset[str]]:
    """Names of the labels of each metric of vLLM's."""
    return {
        name: frozenset(label for label, _ in listed)
        for name, listed in played.metrics[1]
        if name.startswith("vllm:")
    }
