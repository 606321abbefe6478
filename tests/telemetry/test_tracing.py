"""One span a pick, the stages as its children, in the request's own trace."""

import sys
from subprocess import run

from extproc.stages import Stages
from extproc.telemetry import OtlpTracer
from tests.telemetry.collector import collecting

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = "b7ad6b7169203331"
STAGES = Stages([("parse", 1_000, 2_000), ("render", 2_000, 5_000), ("choose", 5_000, 6_000)])


def test_a_pick_is_a_span_of_the_callers_trace_with_its_stages_as_children() -> None:
    with collecting() as collector:
        tracer = OtlpTracer(collector.endpoint, sample_ratio=1.0)
        passed_on = tracer.pick(
            {"traceparent": f"00-{TRACE}-{CALLER}-01"}, STAGES, {"homing.why": "home"}
        )
        tracer.shutdown()
        pick = collector.named("homing.pick")
        assert pick.trace_id.hex() == TRACE
        assert pick.parent_span_id.hex() == CALLER
        assert (pick.start_time_unix_nano, pick.end_time_unix_nano) == (1_000, 6_000)
        assert {a.key: a.value.string_value for a in pick.attributes} == {"homing.why": "home"}
        for name, start, end in STAGES.spans:
            child = collector.named(name)
            assert child.parent_span_id == pick.span_id
            assert (child.start_time_unix_nano, child.end_time_unix_nano) == (start, end)
        assert passed_on["traceparent"] == f"00-{TRACE}-{pick.span_id.hex()}-01"


def test_a_caller_that_does_not_sample_is_followed() -> None:
    with collecting() as collector:
        tracer = OtlpTracer(collector.endpoint, sample_ratio=1.0)
        passed_on = tracer.pick({"traceparent": f"00-{TRACE}-{CALLER}-00"}, STAGES, {})
        tracer.shutdown()
        assert collector.spans == []
        assert passed_on["traceparent"].startswith(f"00-{TRACE}-")
        assert passed_on["traceparent"].endswith("-00")


def test_a_request_without_a_trace_begins_one() -> None:
    with collecting() as collector:
        tracer = OtlpTracer(collector.endpoint, sample_ratio=1.0)
        passed_on = tracer.pick({}, STAGES, {})
        tracer.shutdown()
        pick = collector.named("homing.pick")
        version, trace, parent, flags = passed_on["traceparent"].split("-")
        assert (version, trace, parent) == ("00", pick.trace_id.hex(), pick.span_id.hex())
        assert int(flags, 16) & 1, "not marked as sampled"


def test_a_collector_that_is_away_costs_the_pick_nothing_and_the_shutdown_a_bounded_time() -> None:
    tracer = OtlpTracer("http://127.0.0.1:1", sample_ratio=1.0)
    assert "traceparent" in tracer.pick({}, STAGES, {})
    tracer.shutdown()


def test_without_tracing_nothing_of_opentelemetry_is_imported() -> None:
    code = "import sys, extproc.telemetry; print([m for m in sys.modules if 'opentelemetry' in m])"
    answer = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
