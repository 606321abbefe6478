"""Prompts that were routed of late explain blocks whose parent no event has named."""

import pytest

from extproc.prompt import block_keys, pack_ids
from extproc.serve.routed import KEPT, LOOKS, Routed
from extproc.terms import BlockKey, InstanceId, PackedKeys

A, B = InstanceId("a"), InstanceId("b")
BLOCK = 16
IDS = list(range(8 * BLOCK))


def keys(ids: list[int]) -> PackedKeys:
    return block_keys(pack_ids(ids), BlockKey(7), BLOCK)


def block(ids: list[int], number: int) -> bytes:
    return pack_ids(ids[number * BLOCK : (number + 1) * BLOCK])


def key(packed: PackedKeys, number: int) -> int:
    return int.from_bytes(packed[number * 8 : number * 8 + 8], "little")


def test_a_block_of_a_prompt_has_the_key_before_it_as_its_parent() -> None:
    routed = Routed()
    routed.add(A, keys([9] * 4 * BLOCK))
    routed.add(A, keys(IDS))
    for number in range(1, 8):
        assert routed.parent_of(A, block(IDS, number)) == key(keys(IDS), number - 1)


def test_the_first_block_of_a_prompt_and_one_of_none_have_none() -> None:
    routed = Routed()
    routed.add(A, keys(IDS))
    assert routed.parent_of(A, block(IDS, 0)) is None
    assert routed.parent_of(A, block([1] * 16, 0)) is None
    assert routed.parent_of(B, block(IDS, 3)) is None


def test_the_same_tokens_in_two_prompts_belong_to_the_latest() -> None:
    routed, other = Routed(), [5] * BLOCK + IDS[BLOCK:]
    routed.add(A, keys(IDS))
    routed.add(A, keys(other))
    assert routed.parent_of(A, block(IDS, 1)) == key(keys(other), 0)


def test_what_is_kept_and_looked_at_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    routed = Routed()
    routed.add(A, keys(IDS))
    for number in range(KEPT):
        routed.add(A, keys([number] * 2 * BLOCK))
    assert routed.parent_of(A, block(IDS, 3)) is None
    routed.add(A, keys(IDS))
    monkeypatch.setattr("extproc.serve.routed.LOOKS", 4)
    assert LOOKS == 1024
    assert routed.parent_of(A, block(IDS, 4)) == key(keys(IDS), 3)
    assert routed.parent_of(A, block(IDS, 3)) is None
    monkeypatch.setattr("extproc.serve.routed.MOST_INSTANCES", 1)
    routed.add(B, keys(IDS))
    assert routed.parent_of(A, block(IDS, 7)) is None
