"""What vLLM 0.32.0 makes of messages and tools before the template sees them."""

import copy
import json
from typing import Any

import pytest

from extproc.prompt.normalise import KeptJson, normalise_messages, normalise_tools


def one(role: str = "user", **fields: Any) -> dict[str, Any]:
    (message,) = normalise_messages([{"role": role, **fields}])
    return message


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


@pytest.mark.parametrize(
    ("content", "normalised"),
    [
        (None, ""),
        ("", ""),
        ("a", "a"),
        ([], ""),
        ([text("a"), text("b")], "a\nb"),
        ([text(""), text("b"), text("")], "b"),
        ([{"type": "text", "text": None}, "plain"], "plain"),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "a\nb"),
        ([{"type": "refusal", "refusal": "no"}, {"type": "thinking", "thinking": "t"}], "no\nt"),
    ],
)
def test_content_becomes_one_text(content: Any, normalised: str) -> None:
    assert one(content=content) == {"role": "user", "content": normalised}


def test_missing_content_is_an_empty_text() -> None:
    assert one() == {"role": "user", "content": ""}


def test_billing_line_of_claude_code_is_dropped_from_system_texts_only() -> None:
    line = "x-anthropic-billing-header: cch=1"
    assert one("system", content=[text(f"{line}\nrules"), text(line)])["content"] == "rules"
    assert one("system", content=line)["content"] == ""
    assert one("user", content=line)["content"] == line


@pytest.mark.parametrize(
    ("arguments", "parsed"),
    [
        ('{"a": [1]}', {"a": [1]}),
        ({"a": 1}, {"a": 1}),
        ('{"a": 1', {}),
        ("[1]", {}),
        ("3", {}),
        ("", {}),
        (None, {}),
        ([1], {}),
    ],
)
def test_arguments_become_an_object(arguments: Any, parsed: dict[str, Any]) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    before = copy.deepcopy(calls)
    message = one("assistant", content=None, tool_calls=calls)
    assert message["tool_calls"] == [
        {"id": "c", "type": "function", "function": {"name": "f", "arguments": parsed}}
    ]
    assert calls == before


def test_empty_tool_calls_are_dropped() -> None:
    assert "tool_calls" not in one("assistant", content="a", tool_calls=[])
    assert "tool_calls" not in one("assistant", content="a", tool_calls=None)


def test_reasoning_has_both_names_and_the_new_one_wins() -> None:
    both = {"reasoning": "new", "reasoning_content": "new"}
    assert one("assistant", reasoning_content="new").items() >= both.items()
    assert one("assistant", reasoning="new", reasoning_content="old").items() >= both.items()
    assert "reasoning" not in one("user", reasoning="x")


def test_fields_that_no_template_reads_are_dropped() -> None:
    message = one("tool", content="r", tool_call_id="c", name="f", weight=1)
    assert message == {"role": "tool", "content": "r", "tool_call_id": "c", "name": "f"}
    assert one("user", content="a", tool_call_id="c") == {"role": "user", "content": "a"}


def test_tools_are_reduced_to_what_vllm_knows() -> None:
    function = {"name": "f", "x": 1}
    (tool,) = normalise_tools([{"type": "function", "function": function, "y": 2}]) or ()
    assert tool == {
        "type": "function",
        "function": {"name": "f", "description": None, "parameters": None},
    }
    assert list(tool["function"]) == ["name", "description", "parameters"]
    assert list(tool) == ["type", "function"]


def test_schema_of_a_tool_keeps_its_order_and_strict_is_there_if_set() -> None:
    schema = {"type": "object", "properties": {"z": {}, "a": {}}}
    function = {"strict": True, "parameters": schema, "description": "d", "name": "f"}
    (tool,) = normalise_tools([{"function": function}]) or ()
    assert list(tool["function"].items()) == [
        ("name", "f"),
        ("description", "d"),
        ("parameters", schema),
        ("strict", True),
    ]


def test_tool_keeps_its_json_for_each_form() -> None:
    (tool,) = normalise_tools([{"function": {"name": "é", "parameters": {"b": 1}}}]) or ()
    for _ in range(2):
        for form in ({"indent": None}, {"indent": 2}, {"ensure_ascii": False}):
            assert tool.text(**form) == json.dumps(tool, **form)
    assert isinstance(tool["function"], KeptJson)


def test_no_tools_are_none_only_where_there_is_no_list() -> None:
    assert normalise_tools(None) is None
    assert normalise_tools([]) == []


def test_fields_of_a_message_come_in_one_order() -> None:
    """A template may write the whole message out."""
    (message,) = normalise_messages([{"content": "x", "role": "user"}])
    assert list(message) == ["role", "content"]
