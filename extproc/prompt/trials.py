"""Made-up chats on which a template is tried at load, so that known turns are used from the start.

They have the shapes that most traffic has: with and without a system message, plain, with loops of
tool calls, with reasoning.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

from extproc.prompt.types import Chat

_ROUNDS = 4
_TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
_OPTIONS = {"add_generation_prompt": True}


def trial_chats(repeats: int) -> Iterator[Chat]:
    """The prompts of growing conversations, each shape `repeats` times with other texts."""
    for system, tools, reasoning, number in product(
        (True, False), (True, False), (True, False), range(repeats)
    ):
        yield from _conversation(f"{number}", system, tools, reasoning)


def _conversation(name: str, system: bool, tools: bool, reasoning: bool) -> Iterator[Chat]:
    messages: list[dict[str, Any]] = []
    thought = {"reasoning": f"thought of {name}"} if reasoning else {}

    def chat() -> Chat:
        return Chat.of(messages, _TOOLS if tools else None, _OPTIONS)

    if system:
        messages.append({"role": "system", "content": f"rules of {name}"})
    for turn in range(_ROUNDS):
        messages.append({"role": "user", "content": f"question {turn} of {name}"})
        yield chat()
        for step in range(turn if tools else 0):
            call = f"call_{turn}_{step}"
            function = {"name": "look_up", "arguments": f'{{"step": {step}}}'}
            calls = [{"id": call, "type": "function", "function": function}]
            messages.append({"role": "assistant", "content": "", "tool_calls": calls} | thought)
            answer = f"found {step} for {name}"
            messages.append({"role": "tool", "tool_call_id": call, "content": answer})
            yield chat()
        messages.append({"role": "assistant", "content": f"answer {turn} of {name}"} | thought)
