"""One stack a request mode for the tests that leave it as it was."""

from collections.abc import AsyncIterator, Iterator

import aiohttp
import pytest

from extproc.demo.engine import EngineSettings
from extproc.demo.stack import Stack

QUICK = EngineSettings(
    prefill_tokens_per_s=1e9,
    request_ms=0.0,
    decode_ms=0.1,
    decode_ms_per_running=0.0,
    blocks=60_000,
)
"""Engines that take no time, with room for long prompts."""

PATIENT = {"limits": {"pick_timeout_ms": 20_000}}
"""A busy machine must not turn a pick into a time-out."""


def quick_stack(mode: str, **more: object) -> Stack:
    return Stack(
        engine=QUICK,
        request_body_mode=mode,
        config={**PATIENT, **more},
        envoy={"message_timeout_ms": 30_000},
    )


@pytest.fixture(scope="session")
def buffered() -> Iterator[Stack]:
    with quick_stack("BUFFERED") as stack:
        yield stack


@pytest.fixture(scope="session")
def duplex() -> Iterator[Stack]:
    with quick_stack("FULL_DUPLEX_STREAMED") as stack:
        yield stack


@pytest.fixture(params=["buffered", "duplex"])
def stack(request: pytest.FixtureRequest) -> Stack:
    return request.getfixturevalue(request.param)


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        yield session
