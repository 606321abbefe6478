"""A body read after a known beginning is the body read whole, and judged by the same rule."""

import json
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.errors import BadRequest, HomingError, Unroutable
from extproc.prompt.rawarray import RawArray
from extproc.prompt.reader import BodyReader, read_fields

BIG = "x" * 40_000
SEPARATORS = [(",", ":"), (", ", ": "), (" ,\n", "\t: ")]


def body(messages: list[Any], before: dict[str, Any], after: dict[str, Any], style: int) -> bytes:
    fields = before | {"messages": messages} | after
    text = json.dumps(fields, ensure_ascii=style == 0, separators=SEPARATORS[style])
    return text.encode()


def read(reader: BodyReader, data: bytes) -> Any:
    """Everything that a reading gives, or the error."""
    try:
        result = reader.read(data)
    except HomingError as error:
        return type(error), str(error)
    items = result.items
    found = None if items is None else (items.decoded(), items.all_digests(), items.digests()[-1:])
    return found, {name: result.get(name) for name in ("model", "messages", "tools", "stream")}


MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from("ab"), "content": st.text(max_size=8)}),
    max_size=5,
)
FIELDS = st.dictionaries(
    st.sampled_from(["model", "tools", "stream", "x"]),
    st.text(max_size=5) | st.just({"messages": [{"role": "a", "content": BIG}]}) | st.just([1]),
    max_size=3,
)


@given(MESSAGES, st.lists(MESSAGES, max_size=4), FIELDS, FIELDS, st.integers(0, 2))
@settings(deadline=None)
def test_body_after_a_known_beginning_is_read_as_when_new(
    first: list[Any], more: list[list[Any]], before: Any, after: Any, style: int
) -> None:
    reader = BodyReader("messages")
    messages = [{"role": "a", "content": BIG}, *first]
    for new in [[], *more, []]:
        messages += new
        data = body(messages, before, {k: v for k, v in after.items() if k not in before}, style)
        assert read(reader, data) == read(BodyReader("messages"), data)
        assert read(reader, data)[0][0] == messages


def test_known_messages_are_known_again() -> None:
    reader = BodyReader("messages")
    messages = [{"role": "a", "content": BIG}] * 3
    reader.read(body(messages, {"model": "m"}, {}, 0))
    items = reader.read(body([*messages, {"role": "b"}], {"model": "m"}, {"stream": True}, 0)).items
    assert items is not None
    assert len(items) == 4
    assert len(items.digests()) == 2  # of the last known one and of the new one


def test_body_that_begins_otherwise_is_new() -> None:
    reader = BodyReader("messages")
    messages = [{"role": "a", "content": BIG}]
    reader.read(body(messages, {"model": "m"}, {}, 0))
    items = reader.read(body([*messages, {"role": "b"}], {"model": "n"}, {}, 0)).items
    assert items is not None
    assert items.digests() == items.all_digests()


def test_body_that_parts_inside_the_last_known_message_is_new() -> None:
    reader = BodyReader("messages")
    for last in ("x", "y", "z"):
        messages = [{"role": "a", "content": BIG}, {"role": last}, {"role": "b"}]
        reader.read(body(messages[:2], {}, {}, 0))
        data = body(messages, {}, {}, 0)
        assert read(reader, data) == read(BodyReader("messages"), data)


ENDINGS = [
    b"]}",
    b",]}",
    b",}",
    b',{"role": "b"}]}',
    b',{"role": "b"}',
    b',{"role": "b"}]} x',
    b',{"role": "\xff"}]}',
    b',{"role": "\\ud800"}]}',
    b',"text"]}',
    b",1]}",
    b',{"role": NaN}]}',
    b'],"messages":[]}',
    b'],"messages":[{"role": "b"}]}',
    b'],"messages":"none"}',
    b'],"model":"a","model":"b"}',
    b'],"model":{"messages":[]}}',
    b'],"m\\u006fdel":"a"}',
    b"x",
    b"",
    b"," + b"[" * 100_000 + b"]" * 100_000 + b"]}",
]


@pytest.mark.parametrize("ending", ENDINGS, ids=range(len(ENDINGS)))
def test_ending_is_judged_the_same_after_a_known_beginning(ending: bytes) -> None:
    known = b'{"model":"m","messages":[' + json.dumps({"role": "a", "content": BIG}).encode()
    reader = BodyReader("messages")
    reader.read(known + b"]}")
    assert read(reader, known + ending) == read(BodyReader("messages"), known + ending)


def test_arrays_of_the_same_name_cost_no_time_of_their_own() -> None:
    """Each would be a reading of the whole body: half a minute for these 200 KB."""
    decoys = b",".join([b'"messages":[{}]'] * 13_000)
    with pytest.raises(Unroutable) as unroutable:
        BodyReader("messages").read(b'{"x":{%s},"messages":[{}]}' % decoys)
    assert str(unroutable.value) == "json_dialect: messages too often, or its name with escapes"


def test_thousands_of_fields_are_left_to_the_engine() -> None:
    fields = {f"f{number}": number for number in range(1_000)}
    assert read_fields(json.dumps(fields).encode()).get("f999") == 999
    with pytest.raises(Unroutable) as unroutable:
        read_fields(json.dumps(fields | {"more": 1}).encode())
    assert str(unroutable.value) == "json_dialect: too many fields"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"a": 1, "a": 1}', "json_dialect: a field twice"),
        (b'{"a": 1, "b": 2, "a": 333}', "json_dialect: a field twice"),
        (b'{"a": {"b": 1}, "b": 1, "b": 2, "c": 1}', "json_dialect: a field twice"),
        (rb'{"\u0061": 1}', "json_dialect: a field's name with escapes"),
    ],
)
def test_field_that_is_there_twice_is_left_to_the_engine(data: bytes, error: str) -> None:
    with pytest.raises(Unroutable) as unroutable:
        read_fields(data)
    assert str(unroutable.value) == error


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.lists(st.integers())))
def test_field_that_is_there_once_is_read(fields: dict[str, Any]) -> None:
    fields = {name: value for name, value in fields.items() if name.isalnum() and name.isascii()}
    for style in range(3):
        data = json.dumps(fields, separators=SEPARATORS[style], indent=style or None).encode()
        result = read_fields(data)
        assert {name: result.get(name) for name in fields} == fields


def test_messages_inside_another_field_are_not_the_messages() -> None:
    decoy = {"messages": [{"role": "a"}]}
    data = body([{"role": "a"}], {"x": decoy}, {"y": decoy}, 0)
    result = BodyReader("messages").read(data)
    assert result.items is not None
    assert result.items.decoded() == [{"role": "a"}]
    assert result.get("x") == decoy


def test_item_that_is_no_object_is_named() -> None:
    with pytest.raises(BadRequest, match=r"^messages\[1\]: must be an object"):
        BodyReader("messages").read(b'{"messages": [{}, [], 1]}')


def test_memo_is_bounded() -> None:
    reader = BodyReader("messages", memo_bytes=50_000)
    random = Random(1)
    for _ in range(100):
        messages = [{"role": "a", "content": random.random()} for _ in range(2_000)]
        reader.read(body(messages, {}, {}, 0))
        assert reader._known.size <= 50_000


def test_hundred_thousand_messages_are_read() -> None:
    messages = [{"role": "a"}] * 100_000
    items = BodyReader("messages").read(body(messages, {}, {}, 0)).items
    assert items is not None
    assert len(items) == 100_000


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), max_size=6))
def test_array_gives_back_its_values_and_its_beginnings(values: list[dict[str, int]]) -> None:
    values = [value for value in values if all(name.isascii() for name in value)]
    whole = RawArray.of(values)
    assert whole.decoded() == values
    assert whole.decoded(range(len(values))) == values
    for count in range(len(values)):
        assert RawArray.of(values[:count]).all_digests() == whole.all_digests()[:count]
