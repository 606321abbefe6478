"""Anthropic messages that change the tools: as vLLM 0.32.0 resolves them (`_resolve_tools`).

That the tokens are vLLM's is shown with recorded prompts in `test_served.py`.
"""

import json
from random import Random
from typing import Any

import pytest

from extproc.errors import Unroutable
from extproc.prompt import Prompt, ServedModel, parse_body, root_seed
from extproc.stages import Stages
from tests.prompt.families import load

ROOT = root_seed(secret=b"secret", model="m", block_size=4)
HELLO = {"role": "user", "content": "hello"}
TOOLS = [{"name": name, "input_schema": {"n": 2**70}} for name in ("f", "g")]


def change(kind: str, name: str) -> dict[str, Any]:
    return {"type": f"tool_{kind}", "tool": {"type": "tool_reference", "name": name}}


def system(*blocks: object) -> dict[str, Any]:
    return {"role": "system", "content": list(blocks)}


def prompt(messages: list[Any], **fields: object) -> Prompt:
    body = {"messages": messages, "tools": TOOLS} | fields
    return parse_body("/v1/messages", json.dumps(body).encode())


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([system(change("addition", "unknown"))], "tool_change"),
        ([system({"type": "tool_addition"})], "tool_change"),
        ([system({"type": "tool_removal", "tool": {"type": "tool_reference"}})], "tool_change"),
        (
            [
                system(
                    {
                        "type": "tool_removal",
                        "tool": {"type": "tool_definition", "definition": TOOLS[0]},
                    }
                )
            ],
            "tool_change",
        ),
        ([HELLO | {"content": [change("addition", "f")]}], "content_part_unknown"),
    ],
)
def test_change_that_vllm_refuses_is_left_to_load(
    qwen3: ServedModel, messages: list[Any], reason: str
) -> None:
    with pytest.raises(Unroutable) as unroutable:
        qwen3.token_ids(prompt([HELLO, *messages]))
    assert unroutable.value.reason == reason


@pytest.mark.parametrize("tools", [{}, [3], [{"input_schema": {}}], [{"name": []}]])
def test_tools_that_are_none_cannot_be_changed(qwen3: ServedModel, tools: object) -> None:
    with pytest.raises(Unroutable, match="tools_invalid"):
        qwen3.token_ids(prompt([HELLO, system(change("removal", "f"))], tools=tools))


def test_system_text_beside_the_messages_cannot_change_tools(qwen3: ServedModel) -> None:
    with pytest.raises(Unroutable, match="tool_change"):
        qwen3.token_ids(prompt([HELLO], system=[change("removal", "f")]))


def test_removed_tool_is_as_one_never_there(qwen3: ServedModel) -> None:
    """Numbers of any size in the other tools stay what they are."""
    changed = qwen3.token_ids(prompt([HELLO, system(change("removal", "g"))]))
    assert changed == qwen3.token_ids(prompt([HELLO], tools=TOOLS[:1]))
    assert changed != qwen3.token_ids(prompt([HELLO]))


def test_no_tools_in_a_list_are_another_shape_than_none(tmp_path: Any) -> None:
    """As in vLLM a template sees an empty list: for some that is not the same as none."""
    file = tmp_path / "t.jinja"
    file.write_text("{{ 'none' if tools is none else tools | length }}")
    model = load("qwen3", file)
    texts = [
        model.decode(model.token_ids(prompt([HELLO], tools=tools))[0])
        for tools in (None, [], TOOLS[:1])
    ]
    assert texts == ["none", "0", "1"]


def growing(random: Random) -> list[Prompt]:
    """The prompts of a conversation whose tools come and go."""
    messages: list[Any] = []
    prompts = []
    for number in range(6):
        messages.append({"role": "user", "content": f"question {random.random()}"})
        prompts.append(prompt(messages))
        if random.random() < 0.4:
            text = {"type": "text", "text": f"note {number}"}
            kind = random.choice(["addition", "removal"])
            messages.append(system(*random.sample([text, change(kind, random.choice("fg"))], 2)))
            prompts.append(prompt(messages))
        messages.append({"role": "assistant", "content": f"answer {random.random()}"})
    return prompts


def test_chains_do_not_depend_on_what_is_remembered() -> None:
    on, off = load("qwen3"), load("qwen3", memo_bytes=0)
    used = on.counts.used
    for seed in range(30):
        for one in growing(Random(seed)):
            assert on.encode(one, ROOT, 4, Stages()) == off.encode(one, ROOT, 4, Stages()), seed
    assert on.counts.used > used
