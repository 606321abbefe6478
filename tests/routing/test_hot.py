"""Which prefixes are hot: counts that are bounded and never too low."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from extproc.routing import HotPrefixes
from extproc.routing import hot as module
from extproc.terms import BlockKey

KEYS = st.integers(1, 30).map(BlockKey)


@given(st.lists(KEYS, max_size=300))
def test_few_prefixes_are_counted_exactly(picks: list[BlockKey]) -> None:
    hot, model = HotPrefixes(), Counter[BlockKey]()
    for key in picks:
        model[key] += 1
        assert hot.count(key, 4) == model[key]
    assert dict(hot.hottest(99, 2)) == {key: 4 for key, count in model.items() if count >= 2}


@given(st.lists(KEYS, max_size=300))
def test_of_many_what_is_common_is_kept_and_never_counted_too_low(picks: list[BlockKey]) -> None:
    room = 8
    before, module.MOST_PREFIXES = module.MOST_PREFIXES, room
    try:
        hot, model = HotPrefixes(), Counter[BlockKey]()
        for key in picks:
            model[key] += 1
            assert hot.count(key, 4) >= model[key]
        assert len(hot._counted) <= room
        common = {key for key, count in model.items() if count > len(picks) / room}
        assert common <= hot._counted.keys()
    finally:
        module.MOST_PREFIXES = before


def test_those_that_save_most_come_first() -> None:
    hot = HotPrefixes()
    for key, blocks, picks in ((1, 10, 5), (2, 100, 3), (3, 1, 9), (4, 1_000, 1)):
        for _ in range(picks):
            hot.count(BlockKey(key), blocks)
    assert hot.hottest(2, 2) == [(2, 100), (1, 10)]


def test_what_was_hot_long_ago_is_forgotten() -> None:
    hot = HotPrefixes()
    for _ in range(100):
        hot.count(BlockKey(1), 4)
    for _ in range(8 * module.FADES_AFTER):
        hot.count(BlockKey(2), 4)
    assert hot.hottest(9, 1) == [(2, 4)]
