"""What warm-up rests on: a prefix that was sent as token ids is found by a chat (vLLM 0.32)."""

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from extproc.prompt import ServedModel, parse_body, unpack_ids
from tests.vllm.stack import BLOCK_SIZE, MODEL, VllmStack

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SYSTEM = "You know all the harbours of the old world, their ships and what they bring. " * 20


async def cached_after_prefetch(
    stack: VllmStack, model_folder: Path, salt: str, sent_salt: str
) -> tuple[int, int]:
    """(tokens of the prefix, tokens that the chat then found cached)."""
    said = [{"role": "system", "content": salt + SYSTEM}, {"role": "user", "content": "Genoa?"}]
    chat: dict[str, Any] = {"model": MODEL.name, "messages": said, "max_tokens": 1}
    if salt:
        chat["cache_salt"] = salt
    (ids,) = ServedModel.load(MODEL.name, model_folder).token_ids(
        parse_body(CHAT, json.dumps(chat).encode())
    )
    blocks = len(unpack_ids(ids)) // BLOCK_SIZE - 1
    prefix = unpack_ids(ids)[: blocks * BLOCK_SIZE]
    prefetch: dict[str, Any] = {"model": MODEL.name, "prompt": prefix, "max_tokens": 1}
    if sent_salt:
        prefetch["cache_salt"] = sent_salt
    url = stack.engine_url("engine-2")
    async with aiohttp.ClientSession() as http:
        async with http.post(url + COMPLETIONS, json=prefetch) as answer:
            assert answer.status == 200, await answer.text()
        async with http.post(url + CHAT, json=chat) as answer:
            usage = (await answer.json())["usage"]
    details = usage["prompt_tokens_details"] or {}
    return len(prefix), int(details.get("cached_tokens") or 0)


@pytest.mark.parametrize("salt", ["", "a tenant's"])
async def test_a_chat_finds_the_prefix_that_was_sent_as_token_ids(
    stack: VllmStack, model_folder: Path, salt: str
) -> None:
    sent, found = await cached_after_prefetch(stack, model_folder, salt, salt)
    assert sent > 200
    assert found == sent


async def test_another_tenant_does_not(stack: VllmStack, model_folder: Path) -> None:
    _, found = await cached_after_prefetch(stack, model_folder, "a third one's", "another's")
    assert found == 0
