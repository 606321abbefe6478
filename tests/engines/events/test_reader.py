"""Event streams over real ZeroMQ, from the simulated engine's publisher."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import zmq
import zmq.asyncio

from extproc.demo.kv_events import publishing
from extproc.demo.prefix_cache import PrefixCache, TokenChain, chain_root
from extproc.demo.stack import _free_ports
from extproc.engines.events import Address, EventReader, Fold, Stream, Subscription
from extproc.index import Fact
from extproc.prompt import pack_ids
from extproc.terms import Endpoint
from tests.engines.events.engine import payload, stored
from tests.engines.events.model import BLOCK, ENGINE, Told, root

A = list(range(100, 100 + 4 * BLOCK))
B = list(range(500, 500 + 4 * BLOCK))


async def until(true: Callable[[], bool]) -> None:
    """What comes over a socket comes when it comes."""
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


def compute(cache: PrefixCache, ids: Sequence[int]) -> None:
    """A request with this prompt, as the engine's cache sees it."""
    chain = TokenChain(pack_ids(ids), chain_root("m", ""), BLOCK)
    lease = cache.acquire(chain, len(ids), len(ids))
    assert lease is not None
    cache.commit(lease, len(ids))
    cache.release(lease)


class Reading:
    """A reader with one subscription, whose facts go to an index."""

    def __init__(self, reader: EventReader, address: Address) -> None:
        self.reader = reader
        self.told = Told()
        self.facts: list[Fact] = []
        self.stream = Stream(Fold(ENGINE, BLOCK, root), address.replay is not None)
        self.subscription: Subscription = reader.subscribe(address, self.stream, self.append)

    def append(self, facts: Sequence[Fact]) -> None:
        self.facts += facts
        for fact in facts:
            self.told.index.apply(fact)


@asynccontextmanager
async def reading(address: Address) -> AsyncIterator[Reading]:
    reader = EventReader()
    try:
        yield Reading(reader, address)
    finally:
        await reader.close()


def ports(replay: bool = True) -> tuple[int, int | None, Address]:
    """Two free ports and the address of who publishes there."""
    events, history = _free_ports(2)
    endpoint = Endpoint("127.0.0.1:8000")
    return events, history, Address.beside(endpoint, events, history if replay else None)


async def test_history_and_live_events_of_an_engine_come_to_the_index() -> None:
    events, history, address = ports()
    async with reading(address) as one, publishing("127.0.0.1", events, history, BLOCK) as publish:
        cache = PrefixCache(64, BLOCK, publish)
        compute(cache, A)
        await until(lambda: one.stream.live)
        assert one.told.depth(A) == (4, 4)
        compute(cache, B)
        await until(lambda: one.told.depth(B) == (4, 4))


async def test_an_engine_that_is_started_again_is_empty_before_it_says_anything() -> None:
    events, history, address = ports()
    async with reading(address) as one:
        async with publishing("127.0.0.1", events, history, BLOCK) as publish:
            compute(PrefixCache(64, BLOCK, publish), A)
            await until(lambda: one.stream.live and one.told.depth(A) == (4, 4))
        await until(lambda: one.stream.state == "down")
        assert one.told.depth(A) == (4, 4)
        async with publishing("127.0.0.1", events, history, BLOCK):
            await until(lambda: one.stream.live)
            assert one.told.depth(A) == (0, 0)
            assert one.stream.counts["restarts"] == 1


async def test_messages_that_are_lost_on_the_way_are_fetched() -> None:
    events, history, address = ports()
    async with reading(address) as one, publishing("127.0.0.1", events, history, BLOCK) as publish:
        cache = PrefixCache(64, BLOCK, publish)
        await until(lambda: one.stream.live)
        publish._publisher, real = cast(Any, _Deaf()), publish._publisher
        compute(cache, A)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        publish._publisher = real
        compute(cache, B)
        await until(lambda: one.told.depth(B) == (4, 4))
        assert (one.told.depth(A), one.stream.counts) == ((4, 4), {"gaps": 1})


class _Deaf:
    """A socket whose messages get lost."""

    def send_multipart(self, frames: object, flags: int) -> None:
        pass


async def test_without_a_replay_port_what_comes_from_now_on_counts() -> None:
    events, _, address = ports(replay=False)
    async with reading(address) as one, publishing("127.0.0.1", events, None, BLOCK) as publish:
        cache = PrefixCache(64, BLOCK, publish)
        await until(lambda: one.stream.state == "partial")
        compute(cache, A)
        await until(lambda: one.told.depth(A) == (4, 4))


async def test_a_subscription_that_ended_says_nothing_more() -> None:
    events, history, address = ports()
    async with reading(address) as one, publishing("127.0.0.1", events, history, BLOCK) as publish:
        await until(lambda: one.stream.live)
        another = Reading(one.reader, address)
        await until(lambda: another.stream.live)
        one.reader.unsubscribe(one.subscription)
        compute(PrefixCache(64, BLOCK, publish), A)
        await until(lambda: another.told.depth(A) == (4, 4))
        assert (one.facts, one.told.depth(A)) == ([], (0, 0))


async def test_a_burst_is_taken_in_a_slice_at_a_time_and_others_come_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("extproc.engines.events.reader.SLICE_S", 0.0)
    monkeypatch.setattr("extproc.engines.events.reader.MOST_QUEUED", 4)
    events, history, address = ports()
    async with reading(address) as one, publishing("127.0.0.1", events, history, BLOCK) as publish:
        await until(lambda: one.stream.live)
        turn, most = 0, 0
        turns: Counter[int] = Counter()

        def append(facts: Sequence[Fact]) -> None:
            nonlocal most
            turns[turn] += 1
            most = max(most, one.reader._queued)
            one.append(facts)

        one.subscription.append = append
        cache = PrefixCache(4000, BLOCK, publish)
        for number in range(40):
            compute(cache, [number] * (64 * BLOCK))
            turn += 1
            await asyncio.sleep(0)
        while one.told.index.held_blocks(ENGINE) < 40 * 64:
            turn += 1
            await asyncio.sleep(0)
        assert sum(turns.values()) >= 40
        assert max(turns.values()) == 1
        assert most <= 4


@pytest.mark.parametrize("topics", [True, False])
async def test_replays_of_both_engines_are_read(topics: bool) -> None:
    """vLLM repeats the topic in a replay's answer, SGLang does not."""
    events, history, address = ports()
    context = zmq.asyncio.Context()
    router = context.socket(zmq.ROUTER)
    router.bind(f"tcp://127.0.0.1:{history}")
    publisher = context.socket(zmq.PUB)
    publisher.bind(f"tcp://127.0.0.1:{events}")
    try:
        async with reading(address) as one:
            client, empty, start = await router.recv_multipart()
            assert (empty, start) == (b"", bytes(8))
            topic = [b"kv"] if topics else []
            message = payload(stored([1, 2], A[: 2 * BLOCK]))
            await router.send_multipart([client, b"", *topic, bytes(8), message])
            await router.send_multipart([client, b"", *topic, b"\xff" * 8, b""])
            await until(lambda: one.stream.live)
            assert one.told.depth(A) == (2, 2)
    finally:
        context.destroy(linger=0)


async def test_junk_on_the_socket_is_counted() -> None:
    events, _, address = ports(replay=False)
    context = zmq.asyncio.Context()
    publisher = context.socket(zmq.XPUB)
    publisher.bind(f"tcp://127.0.0.1:{events}")
    try:
        async with reading(address) as one:
            await publisher.recv()  # the subscription
            await publisher.send_multipart([b"", b"short", b""])
            await publisher.send_multipart([b"", bytes(8), payload(stored([1], A[:BLOCK]))])
            await until(lambda: one.told.depth(A) == (1, 1))
            assert one.stream.counts == {"bad_frames": 1}
    finally:
        context.destroy(linger=0)


def test_a_rank_of_a_data_parallel_group_has_ports_of_its_own() -> None:
    endpoint = Endpoint("[fd00::9]:8000")
    address = Address.beside(endpoint, 5557, 5558, "kv", rank=3)
    assert address == Address("tcp://[fd00::9]:5560", "tcp://[fd00::9]:5561", "kv", 3)
    assert Address.beside(endpoint, 5557, None).events == "tcp://[fd00::9]:5557"
