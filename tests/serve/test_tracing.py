"""One span a pick with its stages as children, in the request's own trace, passed upstream."""

import re

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from extproc.config import Tracing
from tests.serve.proxy import ENDPOINTS, LONG, Exchange, chat, config, serving
from tests.telemetry.collector import Collector, collecting

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STAGES = ["parse", "render", "tokenize", "hash", "match", "choose"]


async def traced(collector: Collector, sampled: bool = True) -> str:
    """One chat of a caller that traces; returns the traceparent that the engine gets."""
    settings = config(tracing=Tracing(otlp_endpoint=collector.endpoint))
    async with serving(settings) as (_, channel):
        exchange = Exchange(channel)
        flags = "01" if sampled else "00"
        await exchange.headers(more={"traceparent": f"00-{TRACE}-{CALLER}-{flags}"})
        reply = await exchange.body(chat(LONG))
        await exchange.end()
    mutation = reply.request_body.response.header_mutation
    headers = {o.header.key: o.header.raw_value.decode() for o in mutation.set_headers}
    return headers["traceparent"]


async def test_a_pick_is_one_span_with_a_child_for_each_stage() -> None:
    with collecting() as collector:
        upstream = await traced(collector)
        pick = collector.named("homing.pick")
        assert upstream == f"00-{TRACE}-{pick.span_id.hex()}-01"
        assert (pick.trace_id.hex(), pick.parent_span_id.hex()) == (TRACE, CALLER)
        children = [span for span in collector.spans if span.parent_span_id == pick.span_id]
        # A new shape of chat is rendered twice, to see whether its turns may be remembered.
        names = dict.fromkeys(span.name for span in children)
        assert [name for name in names if name != "remember"] == STAGES
        assert all(inside(span, pick) for span in children)


def inside(span: Span, outer: Span) -> bool:
    return bool(
        outer.start_time_unix_nano <= span.start_time_unix_nano
        and span.start_time_unix_nano <= span.end_time_unix_nano <= outer.end_time_unix_nano
    )


async def test_spans_carry_counts_and_names_but_no_text() -> None:
    with collecting() as collector:
        await traced(collector)
        exported = b"".join(span.SerializeToString() for span in collector.spans)
        for word in ("spice", "harbour", "ships"):
            assert word.encode() not in exported
        attributes = {a.key: a.value for a in collector.named("homing.pick").attributes}
        assert attributes["homing.why"].string_value == "new"
        assert attributes["homing.prompt_tokens"].int_value > 300
        assert attributes["homing.cached_tokens"].int_value == 0


async def test_a_span_says_of_each_instance_why_it_stands_where_it_stands() -> None:
    with collecting() as collector:
        await traced(collector)
        attributes = {a.key: a.value for a in collector.named("homing.pick").attributes}
        each = [one.string_value for one in attributes["homing.instances"].array_value.values]
        assert {one.partition(":")[0] for one in each} == set(ENDPOINTS)
        assert each[0].startswith(attributes["homing.instance"].string_value)
        for one in each:
            assert re.fullmatch(r"\w+: cached=0; wait=0.0ms; prefill=[\d.]+ms; price=0.0ms", one)


async def test_a_caller_that_does_not_sample_is_followed_and_its_context_passed_on() -> None:
    with collecting() as collector:
        upstream = await traced(collector, sampled=False)
        assert collector.spans == []
        assert upstream.startswith(f"00-{TRACE}-")
        assert upstream.endswith("-00")


async def test_without_tracing_the_callers_context_is_left_alone() -> None:
    async with serving() as (_, channel):
        exchange = Exchange(channel)
        await exchange.headers(more={"traceparent": f"00-{TRACE}-{CALLER}-01"})
        reply = await exchange.body(chat(LONG))
        await exchange.end()
        mutation = reply.request_body.response.header_mutation
        assert [o.header.key for o in mutation.set_headers] == ["x-gateway-destination-endpoint"]
