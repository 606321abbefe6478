"""How much log there is after the snapshot."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.log.etcd.size import _GRAIN, FULL, LogSize


@given(st.lists(st.integers(1, 2 * _GRAIN), max_size=50), st.data())
def test_it_counts_what_a_snapshot_does_not_have_to_within_a_grain(
    sizes: list[int], data: st.DataObject
) -> None:
    log = LogSize(1 << 20)
    for number, size in enumerate(sizes):
        log.add(number + 1, size)
    assert log.bytes == sum(sizes)
    cut = data.draw(st.integers(0, len(sizes)))
    log.cut(cut)
    assert sum(sizes[cut:]) <= log.bytes <= sum(sizes[cut:]) + _GRAIN
    log.cut(len(sizes))
    assert log.bytes == 0


def test_a_snapshot_is_due_and_then_writers_wait() -> None:
    log = LogSize(1000)
    for revision in range(1, FULL * 10):
        log.add(revision, 100)
        assert log.due == (revision >= 10)
        assert not log.full
    log.add(FULL * 10, 100)
    assert log.full
    log.clear()
    assert not log.due
