"""The model's name in requests and answers, against Python's `json` and at every chunking."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.prompt import answer_renamer, find_model

TEXT = st.text(max_size=8) | st.sampled_from(
    ["real", "model", '"model":"real"', '\\"model\\": \\"real\\"', "\\", '"', "\n\ndata: {", "ü"]
)
KEYS = st.sampled_from(["model", "message", "response", "Model", "models", "m", ""]) | TEXT
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=12,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=5)
SPELLINGS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.sampled_from([None, 0, 2]),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\r ")]),
    }
)


@given(OBJECTS, SPELLINGS)
def test_the_name_found_is_the_one_that_json_reads(
    value: dict[str, Any], spelling: dict[str, Any]
) -> None:
    found = find_model(json.dumps(value, **spelling).encode())
    named = value.get("model")
    assert (found.name if found else None) == (named if isinstance(named, str) else None)


@given(OBJECTS, SPELLINGS, TEXT, TEXT)
def test_only_the_name_changes(
    value: dict[str, Any], spelling: dict[str, Any], alias: str, name: str
) -> None:
    value["model"] = alias
    body = json.dumps(value, **spelling).encode()
    found = find_model(body)
    assert found
    rewritten = found.replaced(body, name)
    assert json.loads(rewritten) == value | {"model": name}
    same_before, same_after = body[: found.start], body[found.stop :]
    assert rewritten == same_before + json.dumps(name).encode() + same_after


@given(st.lists(st.tuples(KEYS, VALUES), max_size=6), TEXT)
def test_of_a_key_that_comes_twice_the_last_counts(
    pairs: list[tuple[str, Any]], alias: str
) -> None:
    pairs.append(("model", alias))
    body = "{" + ",".join(f"{json.dumps(key)}:{json.dumps(value)}" for key, value in pairs) + "}"
    found = find_model(body.encode())
    assert found
    assert found.name == alias
    rewritten = found.replaced(body.encode(), "name")
    assert json.loads(rewritten) == json.loads(body) | {"model": "name"}


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"\\u006dodel": "a"}', "a"),
        (b'{"\\u006d\\u006f\\u0064\\u0065\\u006c": "a"}', "a"),
        (b'{"model": "\\u0061\\n"}', "a\n"),
        (b'\xef\xbb\xbf{"model": "a"}', "a"),
        (b'{"x": NaN, "model": "a", "y": [1e9, {"model": "b"}]}', "a"),
        (b'{"x": "\\\\", "model": "a"}', "a"),
        (b'{"x": "\\\\\\"model", "model": "a"}', "a"),
        (b'{"' + b"x" * 100 + b'": 1, "model": "a"}', "a"),
        (b'[{"model": "a"}]', None),
        (b'"model"', None),
        (b'--part\r\n\r\n{"model": "a"}\r\n--part--', None),
        (b'{"model": "a', None),
        (b'{"model": "\\x"}', None),
        (b'{"model": ["a"]}', None),
        (b'{"message": {"model": "a"}}', None),
        (b'{"a\\u006dodel": "a"}', None),
        (b"", None),
    ],
)
def test_a_name_in_every_spelling(body: bytes, name: str | None) -> None:
    found = find_model(body)
    assert (found.name if found else None) == name


@given(st.binary(max_size=60) | st.text(alphabet='{}[],:"\\model', max_size=60).map(str.encode))
def test_any_bytes_are_looked_through(body: bytes) -> None:
    found = find_model(body)
    if found:
        assert body[found.start : found.start + 1] == body[found.stop - 1 : found.stop] == b'"'


def test_a_body_of_brackets_alone_is_not_looked_through() -> None:
    def body(brackets: int) -> bytes:
        return b'{"x":[' + b"[]," * (brackets - 2) + b'0],"model":"a"}'

    assert find_model(body(500_000))
    assert find_model(body(500_001)) is None


# --- answers ---


def cuts(body: bytes) -> Iterable[list[bytes]]:
    """In two at every place, and into bytes."""
    for at in range(len(body) + 1):
        yield [body[:at], body[at:]]
    yield [body[at : at + 1] for at in range(len(body))]


def renamed(content_type: str, chunks: Iterable[bytes], name: str = "alias") -> bytes:
    renamer = answer_renamer(content_type, name)
    assert renamer
    out = b"".join(map(renamer.feed, chunks))
    assert not renamer.midway
    return out


JSON = "application/json; charset=utf-8"
EVENTS = "text/event-stream; charset=utf-8"


def restored(value: dict[str, Any]) -> dict[str, Any]:
    """By the rule itself: what an answer's JSON has to become."""
    value = dict(value)
    for key in ("message", "response"):
        inner = value.get(key)
        if isinstance(inner, dict) and isinstance(inner.get("model"), str):
            value[key] = inner | {"model": "alias"}
    if isinstance(value.get("model"), str):
        value["model"] = "alias"
    return value


@settings(deadline=None, max_examples=60)
@given(OBJECTS, SPELLINGS)
def test_an_answer_names_the_alias_at_every_chunking(
    value: dict[str, Any], spelling: dict[str, Any]
) -> None:
    body = json.dumps(value, **spelling).encode()
    whole = renamed(JSON, [body])
    assert json.loads(whole) == restored(value)
    for chunks in cuts(body):
        assert renamed(JSON, chunks) == whole


@settings(deadline=None, max_examples=60)
@given(
    st.lists(OBJECTS, max_size=3),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["data:", "data: "]),
    st.sampled_from(["", ": ping", "event: message_start", 'dat: {"model":"real"}', "data"]),
)
def test_every_event_names_the_alias_at_every_chunking(
    values: list[dict[str, Any]], line_end: str, field: str, before: str
) -> None:
    def stream(values: list[dict[str, Any]]) -> bytes:
        lines = []
        for value in values:
            lines += [before] if before else []
            lines += [field + json.dumps(value), ""]
        return line_end.join([*lines, "data: [DONE]", "", ""]).encode()

    body = stream(values)
    expected = stream([restored(value) for value in values])
    assert renamed(EVENTS, [body]) == expected
    for chunks in cuts(body):
        assert renamed(EVENTS, chunks) == expected


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_data_on_several_lines_is_one_value(line_end: bytes) -> None:
    body = b'data: {"id": 1,\ndata:  "model":\ndata: "real"}\n\ndata: {"model": "real"}\n\n'
    body = body.replace(b"\n", line_end)
    for chunks in cuts(body):
        assert renamed(EVENTS, chunks) == body.replace(b"real", b"alias")


def test_an_event_that_was_cut_short_does_not_spoil_the_next() -> None:
    body = b'data: {"id": {"model\n\ndata: {"model": "real"}\n\n'
    for chunks in cuts(body):
        assert renamed(EVENTS, chunks) == body.replace(b"real", b"alias")


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        ('{"response":{"model":"real","x":{}},"model":"real"}', 2),
        ('{"x":[{"y":[]},{}],"message":{"x":{"model":"real"},"model":"real"}}', 1),
        ('{"x":{"message":{"model":"real"}},"message":{"response":{"model":"real"}}}', 0),
        ('{"message":[{"model":"real"}],"response":"message","x":{"model":"real"}}', 0),
        ('[{"model":"real"},{"response":{"model":"real"}}]', 0),
        ('{"\\u006dessage":{"mode\\u006c":"real"}}', 1),
    ],
)
def test_a_model_is_named_at_the_top_in_response_and_in_message(answer: str, named: int) -> None:
    for chunks in cuts(answer.encode()):
        out = renamed(JSON, chunks)
        assert out.count(b'"alias"') == named
        assert out.replace(b'"alias"', b'"real"') == answer.encode()


def test_what_was_generated_is_left_as_it_is() -> None:
    said = 'The "model": "real" is real: {"model": "real"}'
    value = {
        "model": "real",
        "choices": [{"model": "real", "message": {"content": said, "model": "real"}}],
        "content": [{"type": "tool_use", "input": {"message": {"model": "real"}}}],
    }
    assert json.loads(renamed(JSON, [json.dumps(value).encode()])) == value | {"model": "alias"}


@given(OBJECTS)
def test_nothing_is_held_but_the_name(value: dict[str, Any]) -> None:
    renamer = answer_renamer(JSON, "alias")
    assert renamer
    for at, byte in enumerate(body := json.dumps(value).encode()):
        began_in_a_name = renamer.midway
        out = renamer.feed(body[at : at + 1])
        if not began_in_a_name and not renamer.midway:
            assert out == bytes([byte])


def test_other_types_name_no_model() -> None:
    assert answer_renamer("audio/mpeg", "alias") is None
    assert answer_renamer("", "alias") is None
