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
import zmq
import zmq.asyncio
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.engine import serving
from extproc.demo.stack import HOST, _free_ports
from tests.vllm.client import Answer, ask
from tests.vllm.conversations import Chat, Completion, Ids, Streamed, Tools, interleaved, talks
from tests.vllm.observer import Heard, Observer, observing
from tests.vllm.stack import BLOCK_SIZE, BLOCKS, MODEL, VllmStack, like_vllm

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

SEED = 11
CONVERSATIONS = 14
AT_ONCE = 5
PATIENCE_S = 20.0

KINDS = (Chat, Tools, Streamed, Completion, Ids)
"""What the simulated engine serves."""

NAME = "engine"

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

    metrics: before and after. replayed: the answer to a request for all messages again, frame by
    frame.
    """

    answers: list[Answer]
    heard: Heard
    metrics: tuple[Metrics, Metrics]
    replayed: list[list[bytes]]

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
        for event in self.heard.events:
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
            yield from [number] * due(answer)

    def grown(self) -> Metrics:
        """What was counted meanwhile."""
        before, after = self.metrics
        counters = [one for one in after if one[0].endswith("_total")]
        return {one: after[one] - before.get(one, 0) for one in counters}


def due(answer: Answer) -> int:
    """Blocks that a request stores: all full ones that were not found."""
    full = (answer.prompt_tokens + answer.output_tokens - 1) // BLOCK_SIZE
    return full - answer.cached_tokens // BLOCK_SIZE


async def play(url: str, events: str, replay: str) -> Played:
    """The conversations, on an engine whose cache is emptied before."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        observing({NAME: events}) as observer,
        aiohttp.ClientSession(timeout=timeout) as http,
    ):
        heard = observer.heard[NAME]
        await emptied(http, url, observer)
        before = await scraped(http, url)
        answers = []
        made = talks(CONVERSATIONS, SEED, kinds=KINDS, scripted=True)
        total = 0
        for talk in interleaved(made, SEED, AT_ONCE):
            answer = await ask(http, url, talk.path, talk.ask(MODEL.name))
            talk.hear(answer.text)
            answers.append(answer)
            total += due(answer)
            await observer.until(lambda: heard.stored >= total, PATIENCE_S)  # noqa: B023
            assert heard.stored == total, f"other blocks were stored than {answer} says"
        after = await scraped(http, url)
        replayed = await asked_again(replay, heard)
    return Played(answers, heard, (before, after), replayed)


async def emptied(http: aiohttp.ClientSession, url: str, observer: Observer) -> None:
    """Empty the cache until its event is heard: then the subscription is in place.

    vLLM says so at its next step only, so one is made, too short to fill a block.
    """
    heard = observer.heard[NAME]
    step = {"model": MODEL.name, "prompt": "x", "max_tokens": 1}
    for _ in range(100):
        async with http.post(f"{url}/reset_prefix_cache") as response:
            assert response.status == 200
        await ask(http, url, "/v1/completions", step)
        if await observer.until(lambda: bool(heard.events), 0.2):
            break
    assert {event["type"] for event in heard.events} == {"AllBlocksCleared"}


async def scraped(http: aiohttp.ClientSession, url: str) -> Metrics:
    async with http.get(f"{url}/metrics") as response:
        page = await response.text()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


async def asked_again(address: str, heard: Heard) -> list[list[bytes]]:
    """All that was heard, once more."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.DEALER)
    try:
        socket.connect(address)
        await socket.send_multipart([b"", heard.messages[0][1]])
        replayed = []
        async with asyncio.timeout(PATIENCE_S):
            while not replayed or replayed[-1][-1]:
                replayed.append(await socket.recv_multipart())
    finally:
        context.destroy(linger=0)
    return replayed


@pytest.fixture(scope="module")
def real(stack: VllmStack) -> Played:
    one = stack.engines["engine-2"]
    events, replay = (
        f"tcp://{HOST}:{port}" for port in (one.kv_events_port, one.kv_events_replay_port)
    )
    return asyncio.run(play(stack.engine_url(one.name), events, replay))


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
            return await play(running.url, f"tcp://{HOST}:{events}", f"tcp://{HOST}:{replay}")

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
    assert forms(simulated.heard) == forms(real.heard)


def forms(heard: Heard) -> dict[str, set[str]]:
    """Of topics, of batches and of each type of event: fields, and the types of their values."""
    found: dict[str, set[str]] = {"topic": set(), "batch": set()}
    for topic, _, payload in heard.messages:
        batch = msgspec.msgpack.decode(payload)
        found["topic"].add(topic.decode())
        found["batch"].add(" ".join(type(part).__name__ for part in batch))
        for event in batch[1]:
            fields = " ".join(f"{name}:{form(value)}" for name, value in sorted(event.items()))
            found.setdefault(event["type"], set()).add(fields)
    return found


def form(value: Any) -> str:
    if isinstance(value, list):
        return f"[{'|'.join(sorted({form(item) for item in value}))}]"
    return repr(value) if isinstance(value, str | None) else type(value).__name__


def test_messages_come_again_in_the_same_form(real: Played, simulated: Played) -> None:
    for played in (real, simulated):
        live = [(seq, payload) for _, seq, payload in played.heard.messages]
        assert [(frames[-2], frames[-1]) for frames in played.replayed[:-1]] == live
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
