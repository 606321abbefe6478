"""Conversations in all APIs, with tools, many scripts, long and shared beginnings."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, ClassVar

from tests.prompt.conversations import TOOLS
from tests.vllm.client import CHAT, COMPLETIONS, MESSAGES, RESPONSES

# ruff: noqa: SIM905 - a list of quoted words is unreadable
WORDS = (
    "the harbour keeps its boats in winter and nobody asks why the ships come late from Åland to "
    "η θάλασσα είναι ήσυχη сегодня корабли стоят у причала 港口里的船都睡着了 港の船は眠っている "
    "배는 항구에 있다 السفن في الميناء नाव बंदरगाह में है 🚢⚓️ 👩🏽‍✈️ 3,141.59 € {'ship':'Ørsted'} "
    "naïve façade <|im_end|> <think> def dock(ship): return ship.name;"
).split(" ")


def prose(random: Random, words: int) -> str:
    """So many words: two to three tokens each."""
    return " ".join(random.choices(WORDS, k=words))


class Talk(ABC):
    """A conversation as its client keeps it.

    name: tells it from the others. turns: it has. opening: stands before all that is said.
    salt: `cache_salt` of its requests, None for none. scripted: it goes on with made-up answers in
    the place of the engine's, so that it is the same wherever it is played.
    """

    path: ClassVar[str]
    limit: ClassVar[str] = "max_tokens"
    endless: ClassVar[bool] = True
    """Whether the API lets an answer go on to its limit, whatever the model says."""

    def __init__(
        self, name: str, turns: int, opening: str, seed: int, salt: str | None, scripted: bool
    ) -> None:
        self.name = name
        self.turns = turns
        self.opening = opening
        self.said: list[Any] = []
        self._random = Random(seed)
        self._salt = salt
        self._scripted = scripted

    def ask(self, model: str) -> dict[str, Any]:
        """The body of the next turn."""
        random = self._random
        if self.said and random.random() < 0.5:
            self.use_tool(f"call_{len(self.said)}", prose(random, 20))
        self.say(prose(random, random.randint(3, 90)))
        body = self.body() | {"model": model, self.limit: random.randint(4, 60)}
        if self.endless:
            body["ignore_eos"] = True
        if self._salt:
            body["cache_salt"] = self._salt
        return body

    def hear(self, text: str) -> None:
        """What the engine answered."""
        self.answered(prose(self._random, 12) if self._scripted else text)

    @abstractmethod
    def say(self, words: str) -> None:
        """The user asks."""

    @abstractmethod
    def answered(self, words: str) -> None:
        """The assistant has answered."""

    def use_tool(self, call: str, found: str) -> None:  # noqa: B027 - a kind without tools
        """The last answer was a call of a tool, as if a model had thought of it."""

    @abstractmethod
    def body(self) -> dict[str, Any]:
        """All that was said, as the API has it."""


class Chat(Talk):
    """Of the chat API, without tools."""

    path = CHAT

    def say(self, words: str) -> None:
        self.said.append({"role": "user", "content": words})

    def answered(self, words: str) -> None:
        self.said.append({"role": "assistant", "content": words})

    def body(self) -> dict[str, Any]:
        return {"messages": [{"role": "system", "content": self.opening}, *self.said]}


class Streamed(Chat):
    """The same, streamed."""

    def body(self) -> dict[str, Any]:
        return super().body() | {"stream": True, "stream_options": {"include_usage": True}}


class Tools(Chat):
    """The same, with tools."""

    def use_tool(self, call: str, found: str) -> None:
        function = {"name": "weather", "arguments": json.dumps({"city": found[:9]})}
        self.said[-1]["tool_calls"] = [{"id": call, "type": "function", "function": function}]
        self.said.append({"role": "tool", "tool_call_id": call, "content": found})

    def body(self) -> dict[str, Any]:
        return super().body() | {"tools": TOOLS}


class Completion(Talk):
    """A text that grows."""

    path = COMPLETIONS

    def say(self, words: str) -> None:
        self.said.append(f"\n\nQ: {words}\nA:")

    def answered(self, words: str) -> None:
        self.said.append(words)

    def body(self) -> dict[str, Any]:
        return {"prompt": self.opening + "".join(self.said)}


class Ids(Talk):
    """Token ids that grow; what the engine says is left out."""

    path = COMPLETIONS

    def say(self, words: str) -> None:
        start = list(self.opening.encode()[:3000]) if not self.said else []
        self.said += start + [5 * byte for byte in words.encode()[:150]]

    def answered(self, words: str) -> None:
        pass

    def body(self) -> dict[str, Any]:
        return {"prompt": list(self.said)}


class Responses(Talk):
    """Of the Responses API, with reasoning and tools."""

    path = RESPONSES
    limit = "max_output_tokens"
    endless = False

    def say(self, words: str) -> None:
        parts = [{"type": "input_text", "text": words}]
        self.said.append({"type": "message", "role": "user", "content": parts})

    def answered(self, words: str) -> None:
        output = [{"type": "output_text", "text": words, "annotations": []}]
        message = {"type": "message", "id": f"msg_{len(self.said)}", "status": "completed"}
        self.said.append(message | {"role": "assistant", "content": output})

    def use_tool(self, call: str, found: str) -> None:
        function = {"name": "search", "arguments": json.dumps({"city": found[:9]})}
        self.said.append({"type": "function_call", "id": call, "call_id": call} | function)
        self.said.append({"type": "function_call_output", "call_id": call, "output": found})

    def body(self) -> dict[str, Any]:
        tools = [{"type": "function", **tool["function"]} for tool in TOOLS]
        return {"input": list(self.said), "instructions": self.opening, "tools": tools}


class Messages(Talk):
    """Anthropic's API, with tools."""

    path = MESSAGES
    endless = False

    def say(self, words: str) -> None:
        block = {"type": "text", "text": words}
        if self.said and self.said[-1]["role"] == "user":  # what a tool has found
            self.said[-1]["content"].append(block)
        else:
            self.said.append({"role": "user", "content": [block]})

    def answered(self, words: str) -> None:
        self.said.append({"role": "assistant", "content": [{"type": "text", "text": words}]})

    def use_tool(self, call: str, found: str) -> None:
        arguments = {"city": found[:9]}
        use = {"type": "tool_use", "id": call, "name": "weather", "input": arguments}
        self.said[-1]["content"].append(use)
        result = {"type": "tool_result", "tool_use_id": call, "content": found}
        self.said.append({"role": "user", "content": [result]})

    def body(self) -> dict[str, Any]:
        tools = [
            {"name": tool["function"]["name"], "input_schema": tool["function"]["parameters"]}
            for tool in TOOLS
        ]
        return {"messages": list(self.said), "system": self.opening, "tools": tools}


KINDS: tuple[type[Talk], ...] = (Chat, Tools, Streamed, Completion, Messages, Ids, Responses)

LENGTHS = (60, 300, 150, 900, 500, 1600)
"""Words of openings: one less than there are kinds, so that all of them meet."""


def talks(
    count: int, seed: int, *, kinds: Sequence[type[Talk]] = KINDS, scripted: bool = False
) -> list[Talk]:
    """So many conversations of four to eight turns; each third begins as the one three before."""
    random = Random(seed)
    made: list[Talk] = []
    for number in range(count):
        opening = prose(random, LENGTHS[number % len(LENGTHS)])
        if number % 3 == 0 and number >= 3:
            opening = made[number - 3].opening
        kind = kinds[number % len(kinds)]
        salt = f"salt {number}" if number % 9 == 8 else None
        name = f"{kind.__name__.lower()} {number}"
        turns = random.randint(4, 8)
        made.append(kind(name, turns, opening, random.randrange(1 << 32), salt, scripted))
    return made


def interleaved(talks: Sequence[Talk], seed: int, at_once: int) -> Iterator[Talk]:
    """Who has the next turn: one of the `at_once` that are going on, until all have ended."""
    random = Random(seed)
    waiting = list(reversed(talks))
    going: list[tuple[Talk, int]] = []
    while waiting or going:
        while waiting and len(going) < at_once:
            talk = waiting.pop()
            going.append((talk, talk.turns))
        place = random.randrange(len(going))
        talk, left = going[place]
        yield talk
        if left == 1:
            del going[place]
        else:
            going[place] = (talk, left - 1)
