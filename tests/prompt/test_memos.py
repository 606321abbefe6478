"""Results are the same with memos on, off, tiny, shared by threads and under eviction."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.errors import Unroutable
from extproc.prompt import Chain, Chat, Prompt, ServedModel, block_keys, root_seed
from extproc.prompt.memo import Memo
from extproc.prompt.pieces import Node, safe_cuts
from extproc.stages import Stages
from extproc.terms import TOKEN_BYTES
from tests.prompt.conversations import OPTIONS, TOOLS, WORDS, growing, tool_round
from tests.prompt.families import FAMILIES, load, templates, tokenizer

ROOT = root_seed(secret=b"secret", model="m", block_size=4)
SLOW = FAMILIES[1:]
EACH_FAMILY = ["qwen3", *[pytest.param(name, marks=pytest.mark.slow) for name in SLOW]]
TINY = 40_000


def encoded(model: ServedModel, chat: Chat) -> tuple[Chain, ...] | str:
    try:
        return model.encode(Prompt(chat), ROOT, 4, Stages())
    except Unroutable as unroutable:
        return unroutable.reason


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_chains_do_not_depend_on_what_is_remembered(name: str) -> None:
    off = load(name, memo_bytes=0)
    models = [load(name), load(name, whole_bytes=inf), load(name, memo_bytes=TINY)]
    for seed in range(60):
        random = Random(seed)
        for chat in growing(random, random.randint(1, 8)):
            expected = encoded(off, chat)
            assert [encoded(model, chat) for model in models] == [expected] * 3, f"seed {seed}"


def plain_turns(random: Random, turns: int, tools: bool) -> list[Chat]:
    """Conversations of few shapes, so that known turns are used early."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "rules " * 20}]
    chats = []
    for number in range(turns):
        messages.append({"role": "user", "content": f"question {random.random()}"})
        chats.append(Chat.of(messages, TOOLS if tools else None, OPTIONS[0]))
        while tools and random.random() < 0.6:
            call, found = tool_round(random, number, 1)
            call["content"], found["content"] = "I look it up", f"found {random.random()}"
            for reasoning in ("reasoning", "reasoning_content"):
                call.pop(reasoning, None)
            messages += [call, found]
            chats.append(Chat.of(messages, TOOLS, OPTIONS[0]))
        messages.append({"role": "assistant", "content": f"answer {random.random()}"})
    return chats


@pytest.mark.parametrize(
    ("name", "tools"),
    [
        ("qwen3", False),
        ("qwen3", True),
        *[
            pytest.param(name, tools, marks=pytest.mark.slow)
            for name in SLOW
            for tools in (False, True)
            if not (name == "gemma3" and tools)  # it has none
        ],
    ],
)
def test_known_turns_are_used_and_change_nothing(name: str, tools: bool) -> None:
    off, on = load(name, memo_bytes=0), load(name)
    different = on.counts.different
    for seed in range(20):
        for chat in plain_turns(Random(seed), 8, tools):
            assert encoded(on, chat) == encoded(off, chat) != "template_failed"
    assert on.counts.used > 100
    assert on.counts.different == different


def test_usual_shapes_are_tried_at_load() -> None:
    """The very first conversation's second turn is already not rendered whole."""
    model = load("qwen3")
    used, checked = model.counts.used, model.counts.checked
    assert checked > 0
    for chat in plain_turns(Random(1), 4, tools=False):
        encoded(model, chat)
    assert model.counts.used == used + 3


BOS = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
TEXT = {"Sequence": {"id": "A", "type_id": 0}}


@pytest.mark.parametrize(
    ("single", "used"),
    [([TEXT], True), ([BOS, TEXT], True), ([BOS, BOS, TEXT], True), ([BOS, TEXT, BOS], False)],
    ids=["nothing", "begin", "begin twice", "end"],
)
def test_tokens_that_are_added_to_a_chat_change_no_memo(
    tmp_path: Path, single: list[Any], used: bool
) -> None:
    """Where they begin the prompt and are all that is added, known turns are used as ever."""
    name = "<|endoftext|>"
    spec = json.loads(tokenizer("qwen3").source)
    numbers = [token["id"] for token in spec["added_tokens"] if token["content"] == name]
    special_tokens = {name: {"id": name, "ids": numbers, "tokens": [name]}}
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [TEXT, TEXT],
        "special_tokens": special_tokens,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    (tmp_path / "chat_template.jinja").write_text(templates("qwen3").source)
    model = ServedModel.load("m", tmp_path, whole_bytes=0)
    chats = plain_turns(Random(1), 6, tools=False)
    before = model.counts.used
    lengths = []
    for added in (True, False):
        for chat in chats:
            one = replace(chat, add_special_tokens=added)
            (ids,) = model.token_ids(Prompt(one))
            lengths.append(len(ids) // TOKEN_BYTES)
            assert encoded(model, one) == (Chain(block_keys(ids, ROOT, 4), lengths[-1]),)
        if added:
            assert (model.counts.used > before) == used
    assert lengths[0] - lengths[len(chats)] == single.count(BOS)


def test_known_turns_are_used_where_a_chat_is_not_short() -> None:
    model, off = load("qwen3", whole_bytes=4_000), load("qwen3", memo_bytes=0)
    short = 0
    for chat in plain_turns(Random(1), 60, tools=False):
        before = replace(model.counts)
        assert encoded(model, chat) == encoded(off, chat)
        if chat.messages.size <= 4_000:
            assert model.counts == before
            short += 1
    assert 10 < short < 40
    assert model.counts.used > 10


def test_memos_stay_within_their_bytes() -> None:
    model = load("qwen3", memo_bytes=TINY)
    for seed in range(30):
        for chat in growing(Random(seed), 6):
            encoded(model, chat)
            assert model.memo_size <= TINY


NOT_LOCAL = (
    "{% set ns = namespace(n=0) %}{% for m in messages %}"
    "<|im_start|>{{ m.role }}{% if m.role == 'assistant' %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"
    "{% endif %}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
LOOKS_AHEAD = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.revindex < 4 else m.content[:3] }}<|im_end|>\n{% endfor %}"
)


@pytest.mark.parametrize("source", [NOT_LOCAL, LOOKS_AHEAD])
def test_template_that_is_not_local_is_found_out(tmp_path: Path, source: str) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(source)
    on = load("qwen3", file)
    off = load("qwen3", file, memo_bytes=0)
    for seed in range(10):
        for chat in plain_turns(Random(seed), 8, tools=False):
            assert encoded(on, chat) == encoded(off, chat)
    assert on.counts.different > 0


def test_question_that_looks_like_a_tools_answer_is_another_shape() -> None:
    """Qwen3 keeps the reasoning before such a text, and drops it at the next real question."""
    on, off = load("qwen3"), load("qwen3", memo_bytes=0)
    messages: list[dict[str, Any]] = [{"role": "system", "content": "rules"}]
    for word in ("one", "<tool_response>x</tool_response>", "two", "three"):
        messages.append({"role": "user", "content": word})
        chat = Chat.of(messages, options=OPTIONS[0])
        assert encoded(on, chat) == encoded(off, chat), word
        messages.append({"role": "assistant", "content": "yes", "reasoning": "because"})


def test_text_that_looks_ahead_on_one_word_is_found_out_before_it_is_used(tmp_path: Path) -> None:
    """The shape has been equal so far, but what is before the known turn comes out otherwise."""
    file = tmp_path / "t.jinja"
    file.write_text(
        "{% for m in messages %}<|im_start|>{{ 'odd ' if messages[-1].content == 'now' }}"
        "{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    on, off = load("qwen3", file), load("qwen3", file, memo_bytes=0)
    messages = [{"role": "system", "content": "rules"}]
    for word in ("a", "b", "c", "d", "now", "e"):
        messages.append({"role": "user", "content": word})
        chat = Chat.of(messages, options=OPTIONS[0])
        assert encoded(on, chat) == encoded(off, chat), word
        messages.append({"role": "assistant", "content": "yes"})
    assert on.counts.used > 0


def test_sampled_turns_are_checked_off_the_path() -> None:
    model = load("qwen3")
    seed = 0
    while model.counts.used < 64:
        for chat in plain_turns(Random(seed), 8, tools=False):
            encoded(model, chat)
        seed += 1
    checked = model.counts.checked
    audits = 0
    while model.audit():
        audits += 1
    assert audits > 0
    assert model.counts.checked == checked + audits


def test_threads_share_the_memos() -> None:
    model, off = load("qwen3", memo_bytes=400_000), load("qwen3", memo_bytes=0)
    chats = [chat for seed in range(8) for chat in growing(Random(seed), 8)]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda chat: encoded(model, chat), chats * 3))
    assert results == [encoded(off, chat) for chat in chats] * 3


def test_other_settings_never_share_a_turn() -> None:
    """Tools, options, salt (in the root) and dialect are part of what a turn is known by."""
    model, off = load("qwen3"), load("qwen3", memo_bytes=0)
    for seed in range(6):
        for chat in plain_turns(Random(seed), 4, tools=False):
            for tools in (None, TOOLS, TOOLS[:1]):
                for options in OPTIONS:
                    other = Chat.of(chat.messages.decoded(), tools, options)
                    assert encoded(model, other) == encoded(off, other)


def test_template_that_refuses_the_trials_is_loaded(tmp_path: Path) -> None:
    file = tmp_path / "t.jinja"
    file.write_text(
        "{% if messages[-1].content.endswith(' of 0') %}{{ raise_exception('no') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    )
    assert load("qwen3", file).render(Chat.of([{"role": "user", "content": "x"}]))


def test_joined_keys_are_kept_once_a_conversation() -> None:
    model = load("qwen3")
    for chat in plain_turns(Random(5), 8, tools=False):
        encoded(model, chat)
    joined = [node for node in nodes_of(model) if node.whole is not None]
    roots = {node.whole[:8] for node in joined if node.whole}
    assert len(roots) == len(joined)


def nodes_of(model: ServedModel) -> list[Node]:
    return [node for node, _ in model._pieces._nodes._young.values()]


def test_block_sizes_share_nothing() -> None:
    model, off = load("qwen3"), load("qwen3", memo_bytes=0)
    for chat in plain_turns(Random(3), 5, tools=False):
        for size in (4, 16, 5):
            (chain,) = model.encode(Prompt(chat), ROOT, size, Stages())
            assert (chain,) == off.encode(Prompt(chat), ROOT, size, Stages())


def test_date_of_a_template_is_never_remembered(tmp_path: Path) -> None:
    file = tmp_path / "dated.jinja"
    file.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{{ strftime_now('%d %b') if m.role == 'assistant' }}<|im_end|>\n{% endfor %}"
    )
    day = datetime(2026, 1, 1)
    on = load("qwen3", file, now=lambda: day)
    off = load("qwen3", file, memo_bytes=0, now=lambda: day)
    chats = [chat for seed in range(5) for chat in plain_turns(Random(seed), 6, tools=False)]
    for number, chat in enumerate(chats):
        day = datetime(2026, 1, 1 + number // 10)
        assert encoded(on, chat) == encoded(off, chat)
    assert on.counts.used > 0


class Midnight:
    """A clock that is past midnight after so many looks, and that can be set back."""

    def __init__(self) -> None:
        self.looks = 1_000_000

    def __call__(self) -> datetime:
        self.looks -= 1
        return datetime(2026, 1, 1 if self.looks >= 0 else 2)


def dated(tmp_path: Path, now: Midnight) -> tuple[ServedModel, ServedModel]:
    """A model whose prompts begin with the date, with memos and without."""
    file = tmp_path / "dated.jinja"
    file.write_text(
        "{{ strftime_now('%d %b') }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    return load("qwen3", file, now=now), load("qwen3", file, memo_bytes=0, now=now)


def test_date_that_changes_in_mid_request_turns_no_shape_off(tmp_path: Path) -> None:
    """Whatever was rendered before midnight and after it differs, and says nothing of the shape."""
    now = Midnight()
    on, off = dated(tmp_path, now)
    for looks in range(12):
        now.looks = 1_000_000
        *known, last = plain_turns(Random(looks), 4, tools=False)
        for chat in known:
            assert encoded(on, chat) == encoded(off, chat)
        now.looks = looks
        encoded(on, last)
    assert on.counts.different == 0
    now.looks = 1_000_000
    used = on.counts.used
    for chat in plain_turns(Random(99), 4, tools=False):
        assert encoded(on, chat) == encoded(off, chat)
    assert on.counts.used > used


def test_what_was_rendered_over_midnight_is_not_remembered(tmp_path: Path) -> None:
    """Not even for a clock that is set back."""
    now = Midnight()
    on, off = dated(tmp_path, now)
    for looks in range(12):
        chats = plain_turns(Random(looks), 3, tools=False)
        now.looks = looks
        encoded(on, chats[0])
        now.looks = 1_000_000
        for chat in chats[1:]:
            assert encoded(on, chat) == encoded(off, chat), looks


def test_sampled_turn_is_not_checked_on_another_day(tmp_path: Path) -> None:
    now = Midnight()
    on, _ = dated(tmp_path, now)
    seed = 0
    while not on._turns or not on._turns._audits:
        for chat in plain_turns(Random(seed), 8, tools=False):
            encoded(on, chat)
        seed += 1
    checked = on.counts.checked
    now.looks = 0
    assert on.audit()
    assert (on.counts.checked, on.counts.different) == (checked, 0)


def added(content: str, **flags: bool) -> dict[str, Any]:
    return {"content": content, "special": True, "normalized": False} | flags


@pytest.mark.parametrize(
    ("tokens", "cuts"),
    [
        ([added("<a>"), added("<b>")], ["<a>", "<b>"]),
        ([added("<a>", lstrip=True), added("<b>", rstrip=True)], []),
        ([added("<a>", single_word=True), added("<b>", normalized=True)], []),
        ([added("<a>", special=False), added("<b>")], ["<b>"]),
        ([added("<a>"), added("x<a>y")], ["x<a>y"]),
        ([added("ab"), added("ca")], ["ca"]),
        ([added("<a>"), added("<a>b")], ["<a>b"]),
        ([added(" <a>"), added("")], []),
    ],
)
def test_text_is_cut_only_where_ids_do_not_change(tokens: Any, cuts: list[str]) -> None:
    assert safe_cuts(json.dumps({"added_tokens": tokens}), "<a>bx<a>yabca<b>") == cuts


def test_text_is_not_cut_where_the_first_piece_is_special() -> None:
    first = {"type": "Metaspace", "prepend_scheme": "first"}
    nested = {"type": "Sequence", "pretokenizers": [first]}
    spec = {"added_tokens": [added("<a>")], "pre_tokenizer": nested}
    assert safe_cuts(json.dumps(spec), "<a>") == []
    assert safe_cuts(json.dumps(spec | {"pre_tokenizer": None}), "<a>") == ["<a>"]


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_ids_of_a_text_are_those_of_its_pieces(name: str) -> None:
    model = load(name)
    tokenizer, cut = model._tokenizer, model._cut
    assert cut is not None
    marks = [cut, cut[:-1], cut[1:], cut * 2, f" {cut} ", f"\n{cut}\n", *WORDS]
    for seed in range(300):
        random = Random(seed)
        words = random.choices(marks, k=random.randint(1, 12))
        text = random.choice(["", " "]).join(words)
        head, *rest = text.split(cut)
        pieces = [head, *[cut + piece for piece in rest]]
        whole = tokenizer.encode(text, add_special_tokens=False)
        assert b"".join(tokenizer.encode_pieces(pieces)) == whole, text


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 60)), max_size=200))
@settings(deadline=None)
def test_memo_keeps_its_bound_and_what_was_put_last(puts: list[tuple[int, int]]) -> None:
    memo: Memo[int, int] = Memo(200)
    costs: dict[int, int] = {}
    for key, cost in puts:
        memo.put(key, key, cost)
        costs[key] = cost
        assert memo.get(key) == key
        assert memo.size <= 200
        held = sum(cost for key, cost in costs.items() if memo.get(key) is not None)
        assert held <= 200


def test_memo_keeps_nothing_larger_than_its_half() -> None:
    memo: Memo[int, int] = Memo(200)
    memo.put(1, 1, 101)
    assert memo.get(1) is None
