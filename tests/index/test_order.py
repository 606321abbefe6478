"""The order of use, against a list of stamps."""

from sys import getsizeof

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.index import order
from extproc.index.order import Order

steps = st.lists(st.tuples(st.sampled_from(["put", "replace", "move", "drop"]), st.integers(0)))


@settings(deadline=None)
@given(steps, st.sampled_from([1, 2, 3, 2048]))
def test_an_order_is_a_list_of_stamps_with_their_entries(
    story: list[tuple[str, int]], shard: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "_SHARD", shard)
        real: Order[str] = Order()
        model: dict[int, str] = {}
        for now, (what, choice) in enumerate(story, 1):
            stamps = list(model)
            old = stamps[choice % len(stamps)] if stamps else 0
            if what == "put":
                model[now] = f"{now}"
                real.put(now, model[now])
            elif what == "replace" and old:
                model[old] = f"{old} again"
                real.put(old, model[old])
            elif what == "move":
                entry = model.get(old, "new") if choice % 3 else "another"
                known = real.move(old, now, entry)
                assert known == (model.get(old) is entry)
                if known:
                    del model[old]
                model[now] = entry
            elif what == "drop":
                real.drop(old)
                model.pop(old, None)
            assert real.oldest() == next(iter(model), 0)
            assert len(real) == len(model)
            assert real.squares == sum(stamp**2 for stamp in model)
            for stamp in range(now + 2):
                assert real.get(stamp) == model.get(stamp)
                assert (stamp in real) == (stamp in model)
            shown = [entry for shard in real.shards() for entry in shard.items()]
            assert shown == list(model.items())


def test_an_order_does_not_keep_what_was_removed() -> None:
    real: Order[str] = Order()
    for now in range(1, 100_000):
        real.put(now, "entry")
        if now > 100 and now % 10_000:
            real.drop(now - 100)
    assert len(real) < 200
    assert len(real.shards()) < 30


def test_the_gaps_of_what_was_removed_are_closed() -> None:
    real: Order[str] = Order()
    for now in range(1, 20_001):
        real.put(now, "entry")
    for stamp in range(1, 20_001):
        if stamp % 100:
            real.drop(stamp)
    older = real.shards()[:-1]
    assert sum(map(len, older)) > 150
    assert sum(map(getsizeof, older)) < 200 * sum(map(len, older))
