"""Metrics pages: as engines write them, with the numbers that a test wants."""

from pathlib import Path

REAL = (Path(__file__).parent / "data" / "vllm-0.32.0.txt").read_bytes()
"""Of a real vLLM 0.32.0 after 534 requests, without its histograms."""


def vllm(
    *,
    running: float = 0,
    waiting: float = 0,
    blocks: int | None = 1001,
    block_size: int = 16,
    started: float = 1.7e9,
    prompt: float = 0,
    cached: float = 0,
    done: float = 0,
    asleep: bool = False,
    rank: int = 0,
    prefill_s: float = 0.0,
) -> bytes:
    """A page of vLLM's, with one data-parallel rank."""
    labels = f'engine="{rank}",model_name="m"'
    cache = f'block_size="{block_size}",engine="{rank}",num_gpu_blocks="{blocks}"'
    return f"""\
# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.
# TYPE process_start_time_seconds gauge
process_start_time_seconds {started}
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{{labels}}} {running}
vllm:num_requests_waiting{{{labels}}} {waiting}
vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} 77.0
vllm:engine_sleep_state{{{labels},sleep_state="awake"}} {1 - asleep}
vllm:engine_sleep_state{{{labels},sleep_state="weights_offloaded"}} {int(asleep)}
vllm:engine_sleep_state{{{labels},sleep_state="discard_all"}} 0
vllm:kv_cache_usage_perc{{{labels}}} 0.25
vllm:prompt_tokens_total{{{labels}}} {prompt}
vllm:prompt_tokens_cached_total{{{labels}}} {cached}
vllm:request_success_total{{{labels},finished_reason="stop"}} {done}
vllm:request_success_total{{{labels},finished_reason="length"}} 0.0
vllm:request_prefill_time_seconds_count{{{labels}}} {done}
vllm:request_prefill_time_seconds_sum{{{labels}}} {prefill_s}
vllm:request_prefill_kv_computed_tokens_sum{{{labels}}} {prompt - cached}
vllm:cache_config_info{{{cache}}} 1.0
""".encode()


def together(*pages: bytes) -> bytes:
    """One page of several: the samples of a name together."""
    lines = [line for page in pages for line in page.splitlines(keepends=True)]
    samples = [line for line in lines if not line.startswith(b"#")]
    return b"".join(sorted(samples, key=lambda line: line.partition(b"{")[0]))


SGLANG = b"""\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{dp_rank="0",model_name="m",tp_rank="0"} 3.0
sglang:num_running_reqs{dp_rank="0",model_name="m",tp_rank="1"} 3.0
sglang:num_running_reqs{dp_rank="1",model_name="m",tp_rank="0"} 5.0
sglang:num_queue_reqs{dp_rank="0",model_name="m",tp_rank="0"} 0.0
sglang:num_queue_reqs{dp_rank="1",model_name="m",tp_rank="0"} 2.0
sglang:token_usage{dp_rank="0",model_name="m",tp_rank="0"} 0.5
sglang:prompt_tokens_total{dp_rank="0",model_name="m"} 9000.0
sglang:cached_tokens_total{cache_source="device",dp_rank="0",model_name="m"} 4000.0
sglang:cached_tokens_total{cache_source="host",dp_rank="0",model_name="m"} 1000.0
sglang:num_requests_total{dp_rank="0",model_name="m"} 7.0
"""
SGLANG_SIZES = b"""\
sglang:page_size{dp_rank="0",model_name="m",tp_rank="0"} 64.0
sglang:num_pages{dp_rank="0",model_name="m",tp_rank="0"} 500.0
"""
SGLANG_OLD_SIZES = b"""\
sglang:cache_config_info{dp_rank="0",num_pages="500",page_size="64"} 1.0
"""
