"""Which pool a request goes to: by metadata, by header, by model."""

import pytest

from extproc.config import Config, Instance, Model, Pool, Proxy
from extproc.demo.engine import DEMO_TOKENIZER
from extproc.terms import Endpoint, InstanceId
from tests.serve.proxy import LONG, Exchange, chat, config, endpoints, sample, serving

BLUE, GREEN = "10.1.0.1:8000", "10.2.0.1:8000"


def pool(name: str, endpoint: str, *models: str) -> Pool:
    return Pool(
        name=name,
        models=tuple(Model(name=model, tokenizer=DEMO_TOKENIZER) for model in models),
        instances=(Instance(name=InstanceId(name), endpoint=Endpoint(endpoint)),),
        metrics="off",
    )


def two_pools() -> Config:
    return config(
        pools=(pool("blue", BLUE, "small"), pool("green", GREEN, "large")), pool_header="X-Pool"
    )


@pytest.mark.parametrize(("model", "endpoint"), [("small", BLUE), ("large", GREEN)])
async def test_the_model_chooses_the_pool(model: str, endpoint: str) -> None:
    async with serving(two_pools()) as (_, channel):
        exchange = Exchange(channel)
        await exchange.headers()
        assert endpoints(await exchange.body(chat(LONG, model=model))) == [endpoint]
        await exchange.end()


async def test_a_header_of_the_gateway_chooses_the_pool_of_a_request_without_a_model() -> None:
    async with serving(two_pools()) as (_, channel):
        for name, endpoint in (("blue", BLUE), ("green", GREEN)):
            exchange = Exchange(channel)
            reply = await exchange.headers("/v1/models", "GET", True, more={"x-pool": name})
            assert endpoints(reply) == [endpoint]
            await exchange.end()


async def test_metadata_goes_before_the_header() -> None:
    async with serving(two_pools()) as (_, channel):
        exchange = Exchange(channel)
        reply = await exchange.headers(
            "/v1/models", "GET", True, more={"x-pool": "blue"}, pool="green"
        )
        assert endpoints(reply) == [GREEN]
        await exchange.end()


async def test_a_model_that_the_named_pool_does_not_serve_stays_in_it_and_is_counted() -> None:
    async with serving(two_pools()) as (app, channel):
        exchange = Exchange(channel)
        await exchange.headers(pool="green")
        assert endpoints(await exchange.body(chat(LONG, model="small"))) == [GREEN]
        await exchange.end()
        labels = {"pool": "green", "why": "load", "reason": "unknown_model"}
        assert sample(app, "homing_picks_total", **labels) == 1


async def test_where_the_named_pool_is_not_known_the_model_chooses_and_it_is_counted() -> None:
    async with serving(two_pools()) as (app, channel):
        exchange = Exchange(channel)
        await exchange.headers(pool="red")
        assert endpoints(await exchange.body(chat(LONG, model="large"))) == [GREEN]
        await exchange.end()
        labels = {"pool": "green", "why": "load", "reason": "unknown_pool"}
        assert sample(app, "homing_picks_total", **labels) == 1


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize(("model", "endpoint"), [("small", BLUE), ("large", GREEN)])
async def test_what_is_routed_by_load_still_goes_to_a_pool_that_has_the_model(
    model: str, endpoint: str, size: int
) -> None:
    body = chat("a " * size, model=model, temperature=float("nan"))
    async with serving(two_pools()) as (_, channel):
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/unknown"):
            exchange = Exchange(channel)
            await exchange.headers(path)
            assert endpoints(await exchange.body(body)) == [endpoint]
            await exchange.end()


async def test_the_first_pool_takes_what_names_no_model() -> None:
    async with serving(two_pools()) as (_, channel):
        exchange = Exchange(channel)
        assert endpoints(await exchange.headers("/health", "GET", end=True)) == [BLUE]
        await exchange.end()


async def test_adapters_and_tenants_share_no_blocks_with_their_base_or_each_other() -> None:
    listed = pool("blue", BLUE, "small").model_copy(update={"tenant_header": "X-Tenant"})
    model = listed.models[0].model_copy(update={"adapters": ("lora-1", "lora-2")})
    settings = config(pools=(listed.model_copy(update={"models": (model,)}),))
    seen = 0
    async with serving(settings) as (app, channel):
        for name in ("small", "lora-1", "lora-2"):
            for tenant in ("acme", "initech"):
                for turn in range(2):
                    exchange = Exchange(channel)
                    await exchange.headers(more={"x-tenant": tenant})
                    assert endpoints(await exchange.body(chat(LONG, model=name)))
                    await exchange.end()
                    held = app.pools[0].index.held_blocks(InstanceId("blue"))
                    assert (held > seen) == (turn == 0), (name, tenant, turn)
                    seen = held


async def test_pools_share_no_blocks_and_no_load() -> None:
    async with serving(two_pools()) as (app, channel):
        exchange = Exchange(channel)
        await exchange.headers()
        await exchange.body(chat(LONG, model="small"))
        blue, green = app.pools
        assert blue.index.held_blocks(InstanceId("blue")) > 20
        assert green.index.held_blocks(InstanceId("green")) == 0
        assert (blue.load.in_flight, green.load.in_flight) == (1, 0)
        await exchange.end()


async def test_a_prefix_that_the_proxy_strips_later_is_not_part_of_the_path() -> None:
    async with serving(config(proxy=Proxy(path_prefix="/llm"))) as (app, channel):
        for path in ("/llm/v1/chat/completions", "/v1/chat/completions"):
            exchange = Exchange(channel)
            await exchange.headers(path)
            assert endpoints(await exchange.body(chat(LONG)))
            await exchange.end()
        assert sample(app, "homing_picks_total", pool="test", why="home", reason="") == 1


async def test_a_pick_has_no_more_endpoints_than_fallbacks() -> None:
    async with serving(config(fallbacks=2)) as (_, channel):
        exchange = Exchange(channel)
        await exchange.headers()
        assert len(endpoints(await exchange.body(chat(LONG)))) == 2
        await exchange.end()
