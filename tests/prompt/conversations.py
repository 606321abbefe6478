"""Made-up conversations that grow turn by turn, with tool loops and reasoning in all forms."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

from extproc.prompt import Chat

# ruff: noqa: SIM905 - a list of quoted words is unreadable
WORDS = (
    "the model renders text ein schöner Tag привет 日本語 的 emoji 👩‍👩‍👧 naïve \n\n  \t x=1; "
    "def f(): return 'quoted \"text\"' </think> <think> <tool_response> </tool_response> "
    "<|im_start|> <|im_end|> <|eot_id|> <end_of_turn> <｜User｜> <tool_call> {} [] null"
).split(" ")

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"{name} — at once",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    }
    for name in ("weather", "search")
]

OPTIONS: list[dict[str, Any]] = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": True, "enable_thinking": False},
    {"add_generation_prompt": True, "thinking": True},
    {"add_generation_prompt": True, "reasoning_effort": "high"},
]


def text(random: Random, most: int = 12) -> str:
    """Words, now and then none, or with blanks around them."""
    words = " ".join(random.choices(WORDS, k=random.randrange(most)))
    return random.choice(["", " ", "\n"]) + words if random.random() < 0.2 else words


def content(random: Random, parts: bool) -> Any:
    """A text, now and then a very long one, or parts where they are allowed."""
    if random.random() < 0.002:
        return text(random) * 2_000
    if parts and random.random() < 0.2:
        return [{"type": "text", "text": text(random)} for _ in range(random.randrange(3))]
    return text(random)


def answer(random: Random) -> dict[str, Any]:
    """What an assistant says last, with reasoning in one of its forms or none."""
    said = text(random)
    message: dict[str, Any] = {"role": "assistant", "content": said}
    form = random.randrange(6)
    if form == 0:
        message["reasoning_content"] = text(random)
    elif form == 1:
        message["reasoning"] = text(random)
    elif form == 2:
        message["content"] = f"<think>\n{text(random)}\n</think>\n\n{said}"
    return message


def tool_round(random: Random, number: int, most: int) -> list[dict[str, Any]]:
    """Calls of tools and their answers."""
    ids = [f"call_{number}_{i}" for i in range(random.randint(1, most))]
    calls = []
    for call in ids:
        arguments = json.dumps({"city": text(random, 3), "days": random.randrange(9)})
        function = {"name": random.choice(TOOLS)["function"]["name"], "arguments": arguments}
        calls.append({"id": call, "type": "function", "function": function})
    message = answer(random) | {"tool_calls": calls}
    if random.random() < 0.5:
        message["content"] = random.choice([None, ""])
    answers = [{"role": "tool", "tool_call_id": call, "content": text(random)} for call in ids]
    return [message, *answers]


def growing(random: Random, turns: int, most_calls: int = 3) -> Iterator[Chat]:
    """The chats that a client sends one after another in one conversation."""
    messages: list[dict[str, Any]] = []
    tools = TOOLS if random.random() < 0.5 else None
    options = random.choice(OPTIONS)
    parts = random.random() < 0.5
    if random.random() < 0.7:
        role = "developer" if random.random() < 0.1 else "system"
        messages.append({"role": role, "content": content(random, parts)})
    for number in range(turns):
        if random.random() < 0.05:
            messages.append({"role": "system", "content": text(random)})
        messages.append({"role": "user", "content": content(random, parts)})
        yield Chat.of(messages, tools, options)
        while tools and random.random() < 0.5:
            messages += tool_round(random, number, most_calls)
            yield Chat.of(messages, tools, options)
        messages.append(answer(random))
        if random.random() < 0.1:  # regenerated: the same turn again with another answer
            yield Chat.of(messages[:-1], tools, options)
