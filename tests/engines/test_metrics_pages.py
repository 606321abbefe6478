"""What is read from engines' metrics pages (PROTOCOLS: engine metrics)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo.metrics import EngineMetrics
from extproc.demo.prefix_cache import PrefixCache
from extproc.demo.scheduler import Timing, VirtualEngine
from extproc.engines.metrics import Reading, merge, read_page
from extproc.engines.metrics.text import Page
from tests.engines.pages import REAL, SGLANG, SGLANG_OLD_SIZES, SGLANG_SIZES, together, vllm


def test_a_real_vllm_is_read_whole() -> None:
    assert read_page(REAL) == {
        0: Reading(
            running=0,
            waiting=0,
            usage=0,
            block_size=32,
            blocks=REAL_BLOCKS - 1,
            started=1795553018.11,
            prompt_tokens=521950,
            cached_tokens=276544,
            requests=534,
        )
    }


REAL_BLOCKS = int(REAL.split(b'num_gpu_blocks="')[1].split(b'"')[0])


def test_the_simulated_engine_is_read_as_vllm_is() -> None:
    engine = VirtualEngine(PrefixCache(512, 16), Timing(1000, 0, 1, 0), 8)
    (reading,) = read_page(EngineMetrics(engine, "m").render()).values()
    assert (reading.running, reading.waiting, reading.usage) == (0, 0, 0)
    assert (reading.block_size, reading.blocks, reading.requests) == (16, 511, 0)
    assert reading.started is not None


@pytest.mark.parametrize("sizes", [SGLANG_SIZES, SGLANG_OLD_SIZES], ids=["0.5.11", "before"])
def test_sglang_is_read_by_rank_each_tensor_rank_counted_once(sizes: bytes) -> None:
    ranks = read_page(SGLANG + sizes)
    assert ranks[0] == Reading(
        running=3,
        waiting=0,
        usage=0.5,
        block_size=64,
        blocks=500,
        prompt_tokens=9000,
        cached_tokens=5000,
        requests=7,
    )
    assert ranks[1] == Reading(running=5, waiting=2)


def test_ranks_that_are_one_instance_are_added_up() -> None:
    page = together(vllm(running=2, waiting=1, prompt=100), vllm(running=3, prompt=50, rank=1))
    whole = merge(list(read_page(page).values()))
    assert (whole.running, whole.waiting, whole.prompt_tokens) == (5, 1, 150)
    assert (whole.block_size, whole.blocks, whole.usage) == (16, 2000, 0.25)


def test_what_one_rank_does_not_say_is_not_known_of_the_whole() -> None:
    whole = merge(list(read_page(SGLANG + SGLANG_SIZES).values()))
    assert (whole.blocks, whole.block_size, whole.prompt_tokens) == (None, None, None)
    assert whole.running == 8


def test_prefills_are_read_with_their_time_and_what_was_computed() -> None:
    page = together(
        vllm(done=3, prefill_s=1.5, prompt=900, cached=300),
        vllm(done=1, prefill_s=0.5, prompt=100, rank=1),
    )
    whole = merge(list(read_page(page).values()))
    assert (whole.prefills, whole.prefill_ms, whole.computed_tokens) == (4, 2000, 700)


def test_a_name_is_not_taken_for_another_that_begins_like_it() -> None:
    (reading,) = read_page(vllm(waiting=4)).values()
    assert reading.waiting == 4


@pytest.mark.parametrize("blocks", ["None", "0", "1", ""])
def test_a_cache_that_is_not_allocated_yet_is_not_known(blocks: str) -> None:
    page = vllm().replace(b'num_gpu_blocks="1001"', f'num_gpu_blocks="{blocks}"'.encode())
    (reading,) = read_page(page).values()
    assert (reading.block_size, reading.blocks) == (None, None)


def test_an_engine_that_sleeps_says_so() -> None:
    assert not read_page(vllm())[0].asleep
    assert read_page(vllm(asleep=True))[0].asleep


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\n",
        b"# HELP vllm:num_requests_running none\n",
        b"<html>404</html>",
        b"vllm:num_requests_running",
        b"vllm:num_requests_running{\n",
        b'vllm:num_requests_running{engine="0"} many\n',
        b'vllm:num_requests_running{engine="0"} NaN\n',
        b"vllm:num_requests_running{} +Inf\n",
        b"\xff\xfe\x00{} 1",
    ],
)
def test_a_page_that_is_no_engines_says_nothing(page: bytes) -> None:
    assert read_page(page) == {}


def test_a_page_without_labels_or_a_last_line_end_is_read() -> None:
    (reading,) = read_page(b"vllm:num_requests_running 2\nvllm:num_requests_waiting 1").values()
    assert (reading.running, reading.waiting) == (2, 1)


@given(st.binary(max_size=300))
def test_no_page_raises(page: bytes) -> None:
    read_page(page)
    read_page(b"vllm:num_requests_running{" + page)
    read_page(vllm()[:-60] + page)


NAMES = st.sampled_from(["a", "ab", "a_total", "b", "vllm:a"])
VALUES = st.dictionaries(
    st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4
)


@given(st.dictionaries(NAMES, VALUES, max_size=4), st.permutations(["a", "ab", "b", "vllm:a"]))
def test_samples_are_those_of_the_reference_parser(
    metrics: dict[str, dict[str, float]], asked: list[str]
) -> None:
    registry = CollectorRegistry()
    for name, values in metrics.items():
        gauge = Gauge(name, "Help with a \\ and a\nline end.", ["label"], registry=registry)
        for label, value in values.items():
            gauge.labels(label).set(value)
    text = generate_latest(registry)
    expected: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            expected.setdefault(sample.name, {})[sample.labels["label"]] = sample.value
    page = Page(text)
    for name in asked * 2:
        found = {labels["label"]: value for labels, value in page.samples(name.encode())}
        assert found == expected.get(name, {})


def test_counters_and_timestamps_are_read() -> None:
    registry = CollectorRegistry()
    Counter("served", "Requests.", registry=registry).inc(3)
    page = Page(generate_latest(registry) + b"with_time 5 1700000000000\n")
    assert [value for _, value in page.samples(b"served_total")] == [3]
    assert [value for _, value in page.samples(b"with_time")] == [5]


def reading(page: bytes) -> Reading:
    return read_page(page)[0]


@pytest.mark.parametrize(
    ("before", "after", "restarted"),
    [
        (vllm(started=100), vllm(started=100), False),
        (vllm(started=100.0), vllm(started=100.3), False),
        (vllm(started=100), vllm(started=130), True),
        (vllm(prompt=500, done=5), vllm(prompt=900, done=9), False),
        (vllm(started=100, prompt=500), vllm(started=130, prompt=900), True),
        (SGLANG, SGLANG, False),
        (SGLANG, SGLANG.replace(b" 9000.0", b" 10.0"), True),
        (SGLANG, SGLANG.replace(b'm"} 7.0', b'm"} 0.0'), True),
    ],
)
def test_a_restart_shows_in_the_start_of_the_process_or_in_a_counter_that_fell(
    before: bytes, after: bytes, restarted: bool
) -> None:
    assert reading(after).restarted_since(reading(before)) is restarted


def test_a_requests_usual_size_is_what_the_engine_computed_of_each() -> None:
    assert reading(vllm(prompt=9000, cached=3000, done=4, running=2)).computed_per_request == 1000
    assert reading(vllm()).computed_per_request == 0
    assert math.isfinite(reading(vllm(prompt=10)).computed_per_request)
