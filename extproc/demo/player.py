"""Plays conversations turn by turn against one or more URLs, and notes how each turn went."""

import asyncio
import json
import random
from collections.abc import AsyncIterable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import aiohttp

from extproc.demo.conversations import Conversation
from extproc.errors import PeerViolation

ORDER_SEED = 7
NO_REASON = "—"
ANSWER_TOKENS = 96
ANSWER_TIME_S = 120


@dataclass(frozen=True, slots=True)
class Turn:
    """How one turn went, as its client saw it.

    served: the instance that answered, by its own header. cached_tokens: as the engine reports.
    ttft_ms: None where the answer was not streamed, because then the client cannot see it.
    why: the reason that Homing gives. picker: which Homing picked, where that was asked.
    """

    conversation: str
    number: int
    served: str
    prompt_tokens: int
    cached_tokens: int
    ttft_ms: float | None
    why: str
    picker: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    usage: dict[str, Any]
    ttft_ms: float | None


async def play(
    conversations: Sequence[Conversation],
    turns: int,
    *,
    model: str,
    salt: str,
    next_url: Callable[[], str],
    heard: Callable[[Turn], None],
) -> None:
    """Play `turns` rounds; in each, all conversations ask at once, in an order drawn by a seed.

    salt: `cache_salt` of every request, so that two plays on the same engines share no block.
    next_url: asked for every request, when it is sent. heard: told of every turn when it ends.

    Raises PeerViolation for an answer that is not one, and aiohttp's errors where there is none.
    """
    shuffled = random.Random(ORDER_SEED)  # noqa: S311 - an order, no secret
    async with session() as http:

        async def one(conversation: Conversation) -> None:
            heard(await ask(http, next_url(), conversation, model=model, salt=salt))

        for _ in range(turns):
            order = shuffled.sample(conversations, len(conversations))
            await asyncio.gather(*(one(conversation) for conversation in order))


def session() -> aiohttp.ClientSession:
    """An HTTP client that waits for an answer as long as the demo does."""
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_TIME_S))


async def ask(
    http: aiohttp.ClientSession, base: str, conversation: Conversation, *, model: str, salt: str
) -> Turn:
    """The conversation's next turn, whose answer it then has. Raises as `play` does."""
    url = base + conversation.path
    body = conversation.body()
    body |= {"model": model, "cache_salt": salt, "max_tokens": ANSWER_TOKENS}
    sent = perf_counter()
    async with http.post(url, json=body) as response:
        if response.status != 200:
            error = (await response.text())[:500]
            raise PeerViolation(f"{url} answered {response.status}: {error}")
        if conversation.stream:
            answer = await _streamed(response.content, conversation.chat, sent)
        else:
            answer = _whole(await response.json(), conversation.chat)
        headers = response.headers
    conversation.said.append((conversation.question, answer.text))
    return Turn(
        conversation=conversation.name,
        number=len(conversation.said),
        served=headers.get("x-served-by", "?"),
        prompt_tokens=answer.usage["prompt_tokens"],
        cached_tokens=answer.usage["prompt_tokens_details"]["cached_tokens"],
        ttft_ms=answer.ttft_ms,
        why=headers.get("x-homing-why", NO_REASON),
    )


def _whole(body: dict[str, Any], chat: bool) -> _Answer:
    choice = body["choices"][0]
    return _Answer(choice["message"]["content"] if chat else choice["text"], body["usage"], None)


async def _streamed(content: AsyncIterable[bytes], chat: bool, sent: float) -> _Answer:
    pieces: list[str] = []
    usage: dict[str, Any] | None = None
    ttft_ms: float | None = None
    async for line in content:
        data = line.removeprefix(b"data: ").strip()
        if not data or data == b"[DONE]":
            continue
        if ttft_ms is None:
            ttft_ms = (perf_counter() - sent) * 1000
        chunk = json.loads(data)
        usage = chunk.get("usage") or usage
        pieces += [
            choice["delta"].get("content", "") if chat else choice["text"]
            for choice in chunk["choices"]
        ]
    if usage is None:
        raise PeerViolation("a streamed answer ended without usage")
    return _Answer("".join(pieces), usage, ttft_ms)
