"""Events recorded from real vLLM through decoder, fold and index: is what follows true?"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.engines.events import Fold, Stream
from extproc.index import Depths, Joined, PrefixIndex
from extproc.prompt import block_keys, pack_ids, root_seed
from extproc.terms import KEY_BYTES, BlockKey, InstanceId
from tests.engines.events.capture import DATA, Asked, Capture, packed, recorded

ENGINE = InstanceId("engine")
BLOCK = 32


def root(adapter: str, salt: str) -> BlockKey:
    return root_seed(secret=b"", model="tiny", adapter=adapter, salt=salt, block_size=BLOCK)


class Replayed:
    """A capture as Homing would have lived through it: without a replay socket, message by message.

    Events count from the moment that the engine made them.
    """

    def __init__(self, capture: Capture) -> None:
        self._left = iter([(_made(heard.payload), heard.message) for heard in capture.events])
        self._next = next(self._left, None)
        self.index = PrefixIndex()
        self.index.apply(Joined(ENGINE, BLOCK))
        self.stream = Stream(Fold(ENGINE, BLOCK, root), replayable=False)
        list(self.stream.connected())

    def until(self, time: float) -> None:
        while self._next is not None and self._next[0] <= time:
            for facts in self.stream.receive(self._next[1]):
                for fact in facts:
                    self.index.apply(fact)
            self._next = next(self._left, None)

    def predicted(self, asked: Asked) -> int:
        """Tokens of the prompt that are cached, as far as events have shown."""
        keys = block_keys(asked.prompt_ids, root("", asked.salt), BLOCK)
        depth = self.index.match(keys).get(ENGINE, Depths(0, 0)).gpu
        return min(depth, (len(asked.prompt_ids) // 4 - 1) // BLOCK) * BLOCK


def _made(payload: bytes) -> float:
    return float(msgspec.msgpack.decode(payload)[0])


def differences(capture: Capture) -> tuple[dict[int, tuple[int, int]], int]:
    """n → (predicted, cached) where they are not equal, and how many were compared."""
    replayed, found, compared = Replayed(capture), {}, 0
    for asked in capture.requests:
        replayed.until(asked.sent)
        if asked.cached_tokens is not None:
            compared += 1
            predicted = replayed.predicted(asked)
            if predicted != asked.cached_tokens:
                found[asked.n] = (predicted, asked.cached_tokens)
    return found, compared


CAPTURES = [pytest.param(lambda: packed(DATA / "vllm-0.32.0.xz"), id="packed")]
if FOLDER := os.environ.get("HOMING_EVENTS_CAPTURE"):
    CAPTURES.append(pytest.param(lambda: recorded(Path(FOLDER)), id="recorded"))


@pytest.mark.parametrize("read", CAPTURES)
def test_560_of_565_predictions_are_what_the_engine_reported_and_the_others_are_explained(
    read: Any,
) -> None:
    found, compared = differences(read())
    assert compared == 565
    assert found == {
        265: (96, 0),
        267: (192, 0),
        350: (0, 224),
        507: (192, 0),
        536: (128, 0),
    }


@pytest.mark.parametrize("read", CAPTURES)
def test_after_each_message_the_index_holds_exactly_the_blocks_with_copies_left(read: Any) -> None:
    capture = read()
    replayed, copies = Replayed(capture), Counter[int]()
    keys_of: dict[int, bytes] = {}
    last = -1
    for number, heard in enumerate(capture.events):
        made, events, _ = msgspec.msgpack.decode(heard.payload)
        replayed.until(made)
        if heard.seq <= last:
            copies.clear()
        last = heard.seq
        for event in events:
            if event["type"] == "AllBlocksCleared":
                copies.clear()
            elif event["type"] == "BlockRemoved":
                copies.subtract(event["block_hashes"])
            else:
                copies.update(event["block_hashes"])
                _learn(keys_of, event)
        expected = {keys_of[engine_hash] for engine_hash, count in copies.items() if count > 0}
        assert replayed.index.held_blocks(ENGINE) == len(expected)
        if number % 50 == 0 or number == len(capture.events) - 1:
            assert all(_holds(replayed.index, key) for key in expected)


def _learn(keys_of: dict[int, bytes], event: dict[str, Any]) -> None:
    """The block keys of an event's hashes, one by one."""
    parent = event["parent_block_hash"]
    if parent is None:
        extra = event["extra_keys"][0]
        seed = root("", extra[0] if extra else "")
    else:
        seed = BlockKey(int.from_bytes(keys_of[parent], "little"))
    keys = block_keys(pack_ids(event["token_ids"]), seed, BLOCK)
    for number, engine_hash in enumerate(event["block_hashes"]):
        keys_of[engine_hash] = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]


def _holds(index: PrefixIndex, key: bytes) -> bool:
    (instance,) = index.instances()
    place = index.tree.find(BlockKey(int.from_bytes(key, "little")))
    return place is not None and place[0].held_at(place[1], instance.bit)


def test_of_a_hybrid_model_full_attention_predicts_at_most_one_block_too_many() -> None:
    found, compared = differences(packed(DATA / "vllm-0.32.0-hybrid.xz"))
    assert compared == 40
    assert len(found) == 10
    assert {predicted - cached for predicted, cached in found.values()} == {BLOCK}
