"""An operator's header: what it can ask of one pick, and what it cannot."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.serve.overrides import MOST_ENTRIES, Override, _parse
from tests.serve.proxy import ENDPOINTS, LONG, Exchange, chat, config, endpoints, sample, serving

HEADER = "x-operator-routing"


def settings(**more: Any) -> Any:
    (pool,) = config().pools
    return config(
        pools=(pool.model_copy(update={"override_header": "X-Operator-Routing", **more}),)
    )


async def asked(
    channel: Any, said: str | None, subset: Sequence[str] | None = None
) -> tuple[str, Mapping[str, str]]:
    """Where a request went, and the answer's own headers."""
    exchange = Exchange(channel)
    more = {} if said is None else {HEADER: said}
    await exchange.headers(more=more, subset=subset)
    (there, *_) = endpoints(await exchange.body(chat(LONG)))
    answer = await exchange.answer(200, served=there)
    mutation = answer.response_headers.response.header_mutation
    headers = {one.header.key: one.header.raw_value.decode() for one in mutation.set_headers}
    await exchange.end()
    return there, headers


@pytest.mark.parametrize("name", list(ENDPOINTS))
@pytest.mark.parametrize("by_name", [True, False])
async def test_a_request_goes_to_the_instance_that_is_named(name: str, by_name: bool) -> None:
    async with serving(settings()) as (app, channel):
        await asked(channel, None)
        there, headers = await asked(channel, f"instance={name if by_name else ENDPOINTS[name]}")
        assert there == ENDPOINTS[name]
        assert headers["x-homing-override"] == "applied"
        assert sample(app, "homing_overrides_total", pool="test", outcome="applied") == 1


async def test_an_instance_is_avoided_even_where_the_prompt_is_cached() -> None:
    async with serving(settings()) as (_, channel):
        home, headers = await asked(channel, None)
        assert "x-homing-override" not in headers
        assert (await asked(channel, None))[0] == home
        there, _ = await asked(channel, f"avoid={home}, avoid=b")
        assert there not in (home, ENDPOINTS["b"])


async def test_it_never_goes_beyond_what_the_proxy_allows() -> None:
    async with serving(settings()) as (_, channel):
        there, headers = await asked(channel, "instance=a", subset=[ENDPOINTS["b"]])
        assert there == ENDPOINTS["b"]
        assert headers["x-homing-override"] == "unmet"
        there, headers = await asked(channel, "avoid=b", subset=[ENDPOINTS["b"]])
        assert (there, headers["x-homing-override"]) == (ENDPOINTS["b"], "unmet")


@pytest.mark.parametrize(
    "said", ["instance", "instance=", "host=a", "wait_weight=2", "wait=on", ",,"]
)
async def test_what_is_not_understood_is_left_out_and_said(said: str) -> None:
    async with serving(settings()) as (app, channel):
        there, headers = await asked(channel, said)
        assert there in ENDPOINTS.values()
        assert headers["x-homing-override"] == "bad"
        assert sample(app, "homing_overrides_total", pool="test", outcome="bad") == 1


async def test_without_the_key_the_header_is_as_any_other() -> None:
    async with serving(config()) as (_, channel):
        first, headers = await asked(channel, None)
        assert (await asked(channel, "avoid=a, avoid=b, avoid=c"))[0] == first
        assert "x-homing-override" not in headers


def test_entries_are_read_and_the_bound_holds() -> None:
    said = "instance=a, avoid=b,avoid = c , wait_weight=0.5, wait=off"
    assert _parse(said) == Override("a", ("b", "c"), 0.5, waits=False)
    assert _parse("avoid=x," * MOST_ENTRIES * 3).bad == 2 * MOST_ENTRIES + 1


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    override = _parse(text)
    assert 0 <= override.bad <= text.count(",") + 1
    assert override.wait_weight is None or 0 < override.wait_weight <= 1
