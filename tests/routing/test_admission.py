"""Whether a new conversation fits beside those that are going on."""

from hypothesis import given
from hypothesis import strategies as st

from extproc.routing.admission import BUSY, Admission
from tests.index.chains import packed

BLOCK = 16


def tokens(prompt: str) -> int:
    return len(prompt) * BLOCK


def admits(admission: Admission, prompt: str, capacity: int = 10, now: float = 0.0) -> bool:
    return admission.admits(packed(prompt), tokens(prompt), capacity * BLOCK, 0.9, now)


def place(admission: Admission, prompt: str, now: float = 0.0) -> None:
    admission.placed(packed(prompt), tokens(prompt), now)


def test_new_conversations_are_let_in_until_the_caches_are_full() -> None:
    admission = Admission(60.0)
    for prompt in ("aaaa", "bbbb"):
        assert admits(admission, prompt)
        place(admission, prompt)
    assert not admits(admission, "cccc")


def test_a_conversation_that_is_going_on_is_never_refused() -> None:
    admission = Admission(60.0)
    place(admission, "aaaaaaaa")
    place(admission, "bbbbbbbb")
    assert admits(admission, "aaaaaaaaaaaaaaaa")
    assert not admits(admission, "aaaab")  # shares a beginning, and goes on from nobody's turn


def test_a_conversation_counts_once_as_long_as_it_has_grown() -> None:
    admission = Admission(60.0)
    for length in (3, 5, 8):
        place(admission, "a" * length)
    assert admission.tokens == 8 * BLOCK


def test_one_that_is_silent_for_too_long_makes_room() -> None:
    admission = Admission(60.0)
    place(admission, "aaaaaaaa", now=0.0)
    assert not admits(admission, "bbbbbbbb", now=60.0)
    assert admits(admission, "bbbbbbbb", now=61.0)
    assert admission.tokens == 0


def test_a_pool_that_has_time_refuses_nobody() -> None:
    admission = Admission(60.0)
    place(admission, "a" * 100)
    assert admission.admits(packed("bbbb"), tokens("bbbb"), BLOCK, BUSY - 0.01, 0.0)


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=6), st.floats(0, 20)), max_size=60))
def test_the_tokens_are_those_of_the_conversations_that_are_live(
    turns: list[tuple[str, float]],
) -> None:
    admission, live, now = Admission(30.0), {}, 0.0
    for prompt, pause in turns:
        now += pause
        live = {said: at for said, at in live.items() if now - at <= 30.0}
        admits(admission, prompt, now=now)
        place(admission, prompt, now)
        before = max((said for said in live if prompt.startswith(said)), key=len, default=None)
        live.pop(before, None)
        live[prompt] = now
        assert admission.tokens == sum(map(tokens, live))
