"""The simulated engine's `/metrics`, under vLLM 0.32's names and labels."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from extproc.demo.scheduler import VirtualEngine

FINISH_REASONS = ("stop", "length", "abort")


class EngineMetrics(Collector):
    """Reads the engine's state when it is scraped; counts nothing of its own."""

    def __init__(self, engine: VirtualEngine, model: str) -> None:
        self._engine = engine
        self._labels = {"engine": "0", "model_name": model}
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """The page in Prometheus text."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """All metrics as of now."""
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()

    def _gauges(self) -> Iterator[Metric]:
        engine = self._engine
        yield self._gauge("num_requests_running", "Requests in prefill or decode.", engine.running)
        yield self._gauge("num_requests_waiting", "Requests not admitted yet.", engine.waiting)
        yield self._gauge(
            "kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", engine.cache.usage
        )
        configuration = {
            "engine": self._labels["engine"],
            "block_size": str(engine.cache.block_size),
            "num_gpu_blocks": str(engine.cache.blocks),
            "enable_prefix_caching": "True",
        }
        text = "The KV cache's configuration, as labels."
        info = GaugeMetricFamily("vllm:cache_config_info", text, labels=list(configuration))
        info.add_metric(list(configuration.values()), 1)
        yield info

    def _counters(self) -> Iterator[Metric]:
        counters = self._engine.counters
        computed = counters.prompt_tokens - counters.cached_tokens
        yield self._counter(
            "prefix_cache_queries", "Prompt tokens looked up.", counters.prefix_queries
        )
        yield self._counter("prefix_cache_hits", "Prompt tokens found.", counters.prefix_hits)
        yield self._counter("prompt_tokens", "Prompt tokens prefilled.", counters.prompt_tokens)
        yield self._counter(
            "prompt_tokens_cached", "Prompt tokens that were cached.", counters.cached_tokens
        )
        by_source = self._family("prompt_tokens_by_source", "Prompt tokens by source.", "source")
        self._add(by_source, computed, source="local_compute")
        self._add(by_source, counters.cached_tokens, source="local_cache_hit")
        yield by_source
        yield self._counter("generation_tokens", "Tokens generated.", counters.generation_tokens)
        finished = self._family("request_success", "Requests finished.", "finished_reason")
        for reason in FINISH_REASONS:
            self._add(finished, counters.finished[reason], finished_reason=reason)
        yield finished

    def _histograms(self) -> Iterator[Metric]:
        counters = self._engine.counters
        sums = {
            "request_queue_time_seconds": ("Time to admission.", counters.queue_s),
            "request_prefill_time_seconds": ("Time of the prefill.", counters.prefill_s),
            "time_to_first_token_seconds": (
                "Time to the first token.",
                counters.queue_s + counters.prefill_s,
            ),
        }
        for name, (text, total) in sums.items():
            family = HistogramMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
            buckets = [("+Inf", float(counters.prefills))]
            family.add_metric(list(self._labels.values()), buckets, total)
            yield family
        computed = HistogramMetricFamily(
            "vllm:request_prefill_kv_computed_tokens",
            "Uncached prompt tokens.",
            labels=list(self._labels),
        )
        tokens = counters.prompt_tokens - counters.cached_tokens
        buckets = [("+Inf", float(counters.prefills))]
        computed.add_metric(list(self._labels.values()), buckets, tokens)
        yield computed

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> CounterMetricFamily:
        family = self._family(name, text)
        self._add(family, value)
        return family

    def _family(self, name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"vllm:{name}", text, labels=[*self._labels, *labels])

    def _add(self, family: CounterMetricFamily, value: float, **labels: str) -> None:
        family.add_metric([*self._labels.values(), *labels.values()], value)
