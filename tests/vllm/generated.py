"""Made-up requests of every API: growing, with tools, reasoning, odd texts and odd fields."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from random import Random
from typing import Any, TypeAlias

from extproc.parity import Request
from tests.prompt.conversations import TOOLS, growing, text

Body: TypeAlias = dict[str, Any]

BILLING = "x-anthropic-billing-header: cc_version=2.1; cch=%d;"
"""A line of which an engine sees nothing, since it changes with every request."""

ARGUMENTS = ("{}", '{"city": "Köln", "days": 3}', "not JSON", '"text"', "[1]", "")


def generated(model: str, seed: int, count: int, most_calls: int = 3) -> list[Request]:
    """So many requests: the APIs in turn, each request of a conversation after the one before.

    most_calls: of tools, in one message.
    """
    random = Random(seed)
    chatting = (partial(api, most_calls=most_calls) for api in (chats, responses, messages))
    apis = [_endless(random, api) for api in (*chatting, completions)]
    turns = (next(api) for _ in range(count) for api in apis)
    limits = {"/v1/responses": "max_output_tokens"}
    return [
        Request(path, body | {"model": model, limits.get(path, "max_tokens"): 1})
        for path, body in islice(turns, count)
    ]


def _endless(
    random: Random, api: Callable[[Random], Iterator[tuple[str, Body]]]
) -> Iterator[tuple[str, Body]]:
    while True:
        yield from api(random)


def chats(random: Random, most_calls: int) -> Iterator[tuple[str, Body]]:
    """One growing chat."""
    extra: Body = {}
    if random.random() < 0.2:
        extra["reasoning_effort"] = random.choice(["none", "low", "medium", "high"])
    if random.random() < 0.1:
        extra["documents"] = [{"title": text(random, 3), "text": text(random)}]
    for chat in growing(random, random.randint(1, 4), most_calls):
        listed = chat.messages.decoded()
        body: Body = {"messages": listed} | extra
        if chat.tools:
            body["tools"] = json.loads(chat.tools)
        options = {k: v for k, v in chat.options.items() if k != "add_generation_prompt"}
        if options:
            body["chat_template_kwargs"] = options
        if random.random() < 0.1:
            listed[-1]["name"] = "müller"
        if random.random() < 0.1:
            body["add_generation_prompt"] = False
        elif random.random() < 0.1:
            listed.append({"role": "assistant", "content": "Well, " + text(random)})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        yield "/v1/chat/completions", body


def completions(random: Random) -> Iterator[tuple[str, Body]]:
    """One text that grows, as text, as ids, or as one of several."""
    prompt = text(random) + "x"
    for _ in range(random.randint(1, 3)):
        prompt += text(random, 40)
        match random.randrange(4):
            case 0:
                yield "/v1/completions", {"prompt": [prompt, "an other: " + text(random)]}
            case 1:
                ids = [random.randrange(1_000) for _ in range(random.randint(1, 70))]
                yield "/v1/completions", {"prompt": random.choice([ids, [ids, ids[:1]]])}
            case 2:
                yield "/v1/completions", {"prompt": prompt, "add_special_tokens": False}
            case _:
                yield "/v1/completions", {"prompt": prompt}


def responses(random: Random, most_calls: int) -> Iterator[tuple[str, Body]]:
    """One conversation of items: messages, reasoning, calls and what the tools said."""
    common: Body = {}
    tools = random.random() < 0.5
    if tools:
        common["tools"] = [{"type": "function", **tool["function"]} for tool in TOOLS]
        if random.random() < 0.3:
            common["tools"][0]["strict"] = True
    if random.random() < 0.6:
        common["instructions"] = text(random)
    if random.random() < 0.4:
        common["reasoning"] = {"effort": random.choice(["none", "low", "medium", "high"])}
    if random.random() < 0.2:
        yield "/v1/responses", {"input": text(random)} | common
        return
    items: list[Body] = []
    for turn in range(random.randint(1, 4)):
        said = text(random)
        parts = [{"type": "input_text", "text": said}]
        items.append({"role": "user", "content": random.choice([said, parts])})
        if random.random() < 0.3:
            items[-1] = {"type": "message", **items[-1]}
        yield "/v1/responses", {"input": list(items)} | common
        if random.random() < 0.4:
            reasoning = {"type": "reasoning", "id": f"rs_{turn}", "summary": []}
            told = [{"type": "reasoning_text", "text": text(random)}]
            items.append(reasoning | {"content": random.choice([told, None])})
        while tools and random.random() < 0.5:
            items += _items_of_calls(random, turn, most_calls)
            yield "/v1/responses", {"input": list(items)} | common
        output: Body = {"type": "output_text", "text": text(random), "annotations": []}
        answer: Body = {"type": "message", "id": f"msg_{turn}", "role": "assistant"}
        items.append(answer | {"status": "completed", "content": [output]})


def _items_of_calls(random: Random, turn: int, most: int) -> Iterator[Body]:
    ids = [f"call_{turn}_{number}" for number in range(random.randint(1, most))]
    for call in ids:
        named = {"name": random.choice(["weather", "search"]), "call_id": call}
        arguments = random.choice(ARGUMENTS)
        yield {"type": "function_call", "id": f"fc_{call}", "arguments": arguments} | named
    for call in ids:
        told = text(random)
        output = random.choice([told, [{"type": "input_text", "text": told}]])
        yield {"type": "function_call_output", "call_id": call, "output": output}


def messages(random: Random, most_calls: int) -> Iterator[tuple[str, Body]]:
    """One of Anthropic's conversations: blocks, thinking, tools, system texts in every form."""
    common: Body = {}
    tools = random.random() < 0.5
    if tools:
        common["tools"] = [
            {
                "name": tool["function"]["name"],
                "description": tool["function"]["description"],
                "input_schema": tool["function"]["parameters"],
            }
            for tool in TOOLS
        ]
    system = [BILLING % random.randrange(99), text(random), text(random)]
    match random.randrange(4):
        case 0:
            common["system"] = text(random)
        case 1:
            common["system"] = [{"type": "text", "text": part} for part in system]
    match random.randrange(5):
        case 0:
            common["thinking"] = {"type": "disabled"}
        case 1:
            common["output_config"] = {"effort": random.choice(["low", "medium", "high"])}
    said: list[Body] = []
    for turn in range(random.randint(1, 4)):
        said.append({"role": "user", "content": _block_content(random)})
        if turn and random.random() < 0.15:
            said.append({"role": "system", "content": text(random)})
        yield "/v1/messages", {"messages": list(said)} | common
        while tools and random.random() < 0.5:
            said += _messages_of_calls(random, turn, most_calls)
            yield "/v1/messages", {"messages": list(said)} | common
        said.append({"role": "assistant", "content": [*_thinking(random), *_blocks(random)]})


def _messages_of_calls(random: Random, turn: int, most: int) -> Iterator[Body]:
    ids = [f"toolu_{turn}_{number}" for number in range(random.randint(1, most))]
    calls = [
        {"type": "tool_use", "id": call, "name": "weather", "input": _arguments(random)}
        for call in ids
    ]
    yield {"role": "assistant", "content": [*_thinking(random), *_blocks(random), *calls]}
    answers = [
        {"type": "tool_result", "tool_use_id": call, "content": _block_content(random)}
        for call in ids
    ]
    yield {"role": "user", "content": [*answers, *_blocks(random)]}


def _arguments(random: Random) -> Body:
    return random.choice([{}, {"city": text(random, 3), "more": [1, 1.5, None, {"ü": True}]}])


def _thinking(random: Random) -> list[Body]:
    if random.random() < 0.7:
        return []
    return [{"type": "thinking", "thinking": text(random), "signature": "s"}]


def _blocks(random: Random) -> list[Body]:
    return [{"type": "text", "text": text(random)} for _ in range(random.randint(0, 2))]


def _block_content(random: Random) -> str | list[Body]:
    return text(random) if random.random() < 0.5 else [{"type": "text", "text": text(random)}]
