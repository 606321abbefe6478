"""Own facts count at once, and only until the log has them."""

from dataclasses import dataclass
from os.path import commonprefix

from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.index import Bounds, Depths, Dropped, Source, Tier
from extproc.log import pending as module
from extproc.log.pending import Pending
from extproc.terms import InstanceId
from tests.index.chains import A, B, packed

ROOM = Bounds(1 << 30, None)


def found(pending: Pending, text: str, **committed: int) -> dict[str, int]:
    at = {InstanceId(name): Depths(depth, depth) for name, depth in committed.items()}
    return {name: depths.gpu for name, depths in pending.deepen(packed(text), at).items()}


def test_what_was_appended_counts_until_it_has_settled() -> None:
    pending = Pending(ROOM)
    pending.add(1, A, packed("abcd"), 2, "")
    assert found(pending, "abcde", a=2, b=1) == {"a": 4, "b": 1}
    assert found(pending, "abcx", a=2) == {"a": 3}
    assert found(pending, "abxx", a=2) == {"a": 2}
    assert found(pending, "ab", a=2) == {"a": 2}
    pending.settle(1)
    assert found(pending, "abcde", a=2) == {"a": 2}
    assert not pending


def test_what_was_taken_back_does_not_count() -> None:
    pending = Pending(ROOM)
    pending.add(1, A, packed("abcd"), 2, "")
    pending.add(2, B, packed("abcd"), 2, "")
    pending.retract(Dropped(A, Tier.GPU, packed("abcd", 2), Source.ANSWER))
    assert found(pending, "abcd") == {"b": 4}


def test_a_chain_that_is_known_wholly_is_not_pending() -> None:
    pending = Pending(ROOM)
    pending.add(1, A, packed("ab"), 2, "")
    assert not pending


def test_many_that_do_not_settle_stay_within_their_bounds() -> None:
    pending = Pending(ROOM, capacity=lambda _: 10)
    for number in range(200):
        pending.add(number + 1, A, packed(f"{number:03d}-x"), 0, "")
    texts = [f"{number:03d}-x" for number in range(200)]
    whole = sum(found(pending, text) == {"a": 5} for text in texts)
    assert module.RECENT <= whole <= module.RECENT + 2 * (10 // 5)
    assert found(pending, "199-x") == {"a": 5}


@dataclass
class Step:
    what: str
    instance: InstanceId
    text: str
    start: int


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(["add", "add", "add", "settle", "clear"]),
        st.sampled_from([A, B]),
        st.text("xy", min_size=1, max_size=6),
        st.integers(0, 5),
    ),
    max_size=150,
)


@settings(deadline=None)
@given(steps)
def test_it_agrees_with_a_list_that_is_searched_one_by_one(program: list[Step]) -> None:
    """Until things settle, exactly; a generation goes as a whole, so late ones may go late."""
    pending = Pending(ROOM)
    entries: list[tuple[int, InstanceId, str, int]] = []
    ticket = settled = 0
    for step in program:
        if step.what == "add":
            ticket += 1
            pending.add(ticket, step.instance, packed(step.text), step.start, "")
            if step.start < len(step.text):
                entries.append((ticket, step.instance, step.text, step.start))
        elif step.what == "settle":
            settled = (settled + ticket + 1) // 2
            pending.settle(settled)
        else:
            settled = ticket
            pending.clear()
        shown = found(pending, step.text)
        for instance in (A, B):
            own = [entry for entry in entries if entry[1] == instance]
            # What comes before an entry's start is for the committed index to tell.
            must = _deepest(step.text, [(e[2], e[3]) for e in own if e[0] > settled])
            may = _deepest(step.text, [(e[2], 0) for e in own])
            assert must <= shown.get(instance, 0) <= may
    pending.settle(ticket)
    assert not pending


def _deepest(text: str, entries: list[tuple[str, int]]) -> int:
    shared = [(len(commonprefix((text, o))), start) for o, start in entries]  # noqa: RUF071
    return max((same for same, start in shared if same > start), default=0)
