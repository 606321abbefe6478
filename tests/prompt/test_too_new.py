"""What may cost only so much costs no more: it is encoded as ever, or refused and forgotten."""

from collections.abc import Sequence
from datetime import datetime
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.errors import Unroutable
from extproc.prompt import Chain, Chat, Plain, Prompt, ServedModel, TooNew, parse_body, root_seed
from extproc.prompt.modelfiles import read_templates
from extproc.prompt.reader import BodyReader
from extproc.prompt.template import ChatTemplate
from extproc.prompt.tokenizer import Tokenizer
from extproc.prompt.types import Json
from extproc.stages import Stages
from extproc.terms import BlockKey, TokenIds
from tests.prompt.conversations import growing
from tests.tokenizers import tokenizer_dir

ROOT = root_seed(secret=b"secret", model="m", block_size=4)
OTHER_ROOT = root_seed(secret=b"secret", model="m", block_size=4, salt="s")
MOST = 2_000
LONG = "a long text " * 500


class Counting(Tokenizer):
    """Counts the characters that it is given."""

    def __init__(self, fast: bool = True) -> None:
        super().__init__(tokenizer_dir("qwen3") / "tokenizer.json", try_fast=fast)
        self.given = 0

    def encode_pieces(self, texts: Sequence[str]) -> list[TokenIds]:
        self.given += sum(len(text) for text in texts)
        return super().encode_pieces(texts)


class CountingTemplate(ChatTemplate):
    """Counts the messages that it is given."""

    given = 0

    def render_utf8(self, messages: Any, *rest: Json) -> bytes:
        self.given += len(messages)
        return super().render_utf8(messages, *rest)


class Model:
    """A served model that counts its work; `encode` is limited to MOST."""

    def __init__(self, fast: bool = True, trust: bool = False) -> None:
        self.tokenizer = Counting(fast)
        read = read_templates(tokenizer_dir("qwen3"), None, datetime.now)["default"]
        self.template = CountingTemplate(read.source, {})
        self.served = ServedModel(
            "m",
            self.tokenizer,
            {"default": self.template},
            trust_request_template=trust,
            whole_bytes=0,
        )
        self.tokenizer.given = self.template.given = 0

    def encode(self, prompt: Prompt, most: float = MOST, root: BlockKey = ROOT) -> Chain | None:
        """None where too much is new."""
        try:
            return self.served.encode(prompt, root, 4, Stages(), most)[0]
        except TooNew:
            return None

    def learn(self, prompt: Prompt) -> Chain:
        """Without a limit."""
        return self.served.encode(prompt, ROOT, 4, Stages())[0]


def chat(*contents: str, **options: Any) -> Prompt:
    """Of a user and an assistant in turn."""
    roles = ("user", "assistant") * len(contents)
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=False)
    ]
    return Prompt(Chat.of(messages, options={"add_generation_prompt": True} | options))


@given(st.integers(0, 10**6), st.sampled_from([60, 300, 1_000, 5_000]))
@settings(deadline=None, max_examples=60)
def test_it_is_as_without_a_limit_or_refused_and_no_more_is_tokenized(
    model_pair: tuple[Model, Model], seed: int, most: int
) -> None:
    limited, free = model_pair
    random = Random(seed)
    for each in growing(random, 6):
        prompt = Prompt(each)
        try:
            expected = free.learn(prompt)
        except Unroutable:
            with pytest.raises((Unroutable, TooNew)):
                limited.served.encode(prompt, ROOT, 4, Stages(), most)
            continue
        limited.tokenizer.given = 0
        found = limited.encode(prompt, most)
        assert limited.tokenizer.given <= most
        assert found in (None, expected)
        assert limited.learn(prompt) == expected
        assert limited.encode(prompt, 10**6) == expected


@pytest.fixture(scope="module")
def model_pair() -> tuple[Model, Model]:
    return Model(), Model()


def test_next_turn_of_a_long_chat_is_not_too_new_but_a_new_long_one_is() -> None:
    model = Model()
    assert model.encode(chat(LONG)) is None
    assert model.tokenizer.given == model.template.given == 0
    model.learn(chat(LONG))
    found = model.encode(chat(LONG, "yes", "more"))
    assert found is not None
    assert found == Model().learn(chat(LONG, "yes", "more"))


def test_long_chat_that_is_known_under_another_root_is_too_new() -> None:
    model = Model()
    model.learn(chat(LONG))
    assert model.encode(chat(LONG), root=ROOT) is not None
    assert model.encode(chat(LONG), root=OTHER_ROOT) is None


def test_long_new_message_is_too_new() -> None:
    model = Model()
    model.learn(chat(LONG))
    given = model.tokenizer.given
    assert model.encode(chat(LONG, "yes", LONG)) is None
    assert model.tokenizer.given == given


def test_hundreds_of_short_new_messages_are_too_new() -> None:
    model = Model()
    model.learn(chat(LONG))
    rendered = model.template.given
    assert model.encode(chat(LONG, *["x"] * 60)) is None
    assert model.template.given == rendered


def test_long_context_counts_though_it_is_known() -> None:
    """The question before an answer is rendered again, and may be of any length."""
    model = Model()
    model.learn(chat(LONG * 10))
    assert model.encode(chat(LONG * 10, "yes", "more")) is None


def test_what_is_never_remembered_counts_in_full() -> None:
    model = Model()
    image = {"type": "image_url", "image_url": {"url": "data:" + "A" * 2 * MOST}}
    with_image = [{"role": "user", "content": [{"type": "text", "text": "this"}, image]}]
    for prompt in (
        Prompt(Chat.of(with_image)),
        chat("x", LONG, add_generation_prompt=False, continue_final_message=True),
        Prompt(Plain((LONG,))),
        Prompt(Plain(("short",) * MOST)),
        Prompt(Chat(chat(LONG).content.messages, add_special_tokens=True)),  # type: ignore[union-attr]
    ):
        model.learn(prompt)
        assert model.encode(prompt) is None, prompt.content
        assert model.encode(prompt, prompt.size) == model.learn(prompt)


def test_template_of_a_request_is_always_too_new() -> None:
    model = Model(trust=True)
    own = Chat(chat("x").content.messages, template="{{ messages[0].content }}")  # type: ignore[union-attr]
    assert model.encode(Prompt(own)) is None
    assert model.learn(Prompt(own)).tokens > 0


def test_slow_tokenizer_gets_a_share() -> None:
    text = "x" * (MOST // 4)
    assert Model().encode(chat(text)) is not None
    assert Model(fast=False).encode(chat(text)) is None


def test_check_by_sample_that_nobody_has_done_is_not_done_either() -> None:
    model = Model()
    refused = 0
    for number in range(400):
        if number % 20 == 0:
            messages = [f"hello {number}"]
        if model.encode(chat(*messages)) is None:
            refused += 1
            checked = model.served.counts.checked
            model.learn(chat(*messages))
            assert model.served.counts.checked == checked + 1
        messages += ["yes", "more"]
    assert refused > 0  # some wait for `audit`; those after them are left to who has the time


def body(messages: list[Any], **fields: Any) -> bytes:
    return msgspec.json.encode({"messages": messages, **fields})


KNOWN = [{"role": "user", "content": "x" * 40_000}]


def test_body_is_read_if_little_of_it_is_new() -> None:
    reader = BodyReader("messages")
    with pytest.raises(TooNew):
        reader.read(body(KNOWN), MOST)
    reader.read(body(KNOWN))
    reader.read(body(KNOWN), MOST)
    new = [*KNOWN, {"role": "assistant", "content": "y" * 1_000}]
    read = reader.read(body(new, tools="z" * 3 * MOST), MOST)
    assert read.items is not None
    assert read.items.decoded() == new


@pytest.mark.parametrize(
    "data",
    [
        body([*KNOWN, {"role": "assistant", "content": "y" * MOST}]),
        body([*KNOWN, *[{}] * (MOST // 8)]),
        body(KNOWN, tools="z" * 5 * MOST),
        body(KNOWN)[:-1] + b"," + b" " * 5 * MOST + b"}",
        body([]) + b" " * MOST,
    ],
    ids=["a message", "many items", "other fields", "no JSON", "no item"],
)
def test_body_of_which_much_is_new_is_not_read(data: bytes) -> None:
    reader = BodyReader("messages")
    reader.read(body(KNOWN))
    with pytest.raises(TooNew):
        reader.read(data, MOST)


def test_body_without_an_array_is_new_as_a_whole() -> None:
    for path in ("/v1/completions", "/v1/embeddings"):
        with pytest.raises(TooNew):
            parse_body(path, b'{"prompt": "%s"}' % (b"x" * MOST), MOST)
    assert parse_body("/v1/completions", b'{"prompt": "x"}', MOST).size == 1
