"""What one scrape says of each cache behind a metrics page: vLLM's and SGLang's names.

Sources: vLLM 0.32 `vllm/v1/metrics/loggers.py`; SGLang 0.5
`sglang/srt/observability/metrics_collector.py` (before 0.5.11 page size and number of pages are
labels of `sglang:cache_config_info`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import add
from typing import TypeAlias, TypeVar

from extproc.engines.metrics.text import Page


@dataclass(frozen=True, slots=True)
class Reading:
    """One engine's numbers; None where it does not say.

    running, waiting: requests in prefill or decode, and those not admitted yet.
    usage: share of the cache that running requests use, 0 to 1.
    block_size, blocks: tokens a block, and blocks that the cache can keep.
    started: Unix time at which the process began.
    prompt_tokens, cached_tokens, requests: prefilled, of these cached, and finished, since then.
    prefills, prefill_ms, computed_tokens: of the finished requests, how many, the milliseconds from
        first step to first token, and the uncached prompt tokens.
    asleep: whether it has given its cache back (vLLM's sleep mode).
    """

    running: float
    waiting: float
    usage: float | None = None
    block_size: int | None = None
    blocks: int | None = None
    started: float | None = None
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    requests: float | None = None
    prefills: float | None = None
    prefill_ms: float | None = None
    computed_tokens: float | None = None
    asleep: bool = False

    @property
    def computed_per_request(self) -> float:
        """Uncached prompt tokens of a request, on average since the engine began; 0 if unknown."""
        if not self.prompt_tokens:
            return 0.0
        computed = self.prompt_tokens - (self.cached_tokens or 0.0)
        return max(computed, 0.0) / max((self.requests or 0.0) + self.running, 1.0)

    def prefilled_since(self, earlier: "Reading") -> tuple[float, float, float] | None:
        """Seconds, requests and uncached tokens of the prefills in between.

        None where the engine does not count them, or began to count anew.
        """
        if (
            self.prefill_ms is None
            or self.prefills is None
            or self.computed_tokens is None
            or earlier.prefill_ms is None
            or earlier.prefills is None
            or earlier.computed_tokens is None
            or self.restarted_since(earlier)
        ):
            return None
        return (
            (self.prefill_ms - earlier.prefill_ms) / 1000,
            self.prefills - earlier.prefills,
            self.computed_tokens - earlier.computed_tokens,
        )

    def restarted_since(self, earlier: "Reading") -> bool:
        """Whether another process counts now: its start differs, or a counter fell."""
        start, before = self.started, earlier.started
        if start is not None and before is not None and abs(start - before) > _SAME_START_S:
            return True
        counted = zip(self._counters, earlier._counters, strict=True)
        return any(now is not None and then is not None and now < then for now, then in counted)

    @property
    def _counters(self) -> tuple[float | None, ...]:
        return (
            *(self.prompt_tokens, self.cached_tokens, self.requests),
            *(self.prefills, self.prefill_ms, self.computed_tokens),
        )


_Number = TypeVar("_Number", int, float)

_SAME_START_S = 0.5
"""A process's start is told to the hundredth of a second, and some exporters round it."""


@dataclass(frozen=True, slots=True)
class _Names:
    """How an engine calls them. rank: the label with the data-parallel rank.

    prefill: histograms of prefill seconds and of computed tokens, in the order in which they stand;
    empty where it has none.
    """

    running: bytes
    waiting: bytes
    usage: bytes
    prompt_tokens: bytes
    cached_tokens: bytes
    requests: bytes
    prefill: tuple[bytes, ...]
    rank: str


_VLLM = _Names(
    running=b"vllm:num_requests_running",
    waiting=b"vllm:num_requests_waiting",
    usage=b"vllm:kv_cache_usage_perc",
    prompt_tokens=b"vllm:prompt_tokens_total",
    cached_tokens=b"vllm:prompt_tokens_cached_total",
    requests=b"vllm:request_success_total",
    prefill=(
        b"vllm:request_prefill_time_seconds_count",
        b"vllm:request_prefill_time_seconds_sum",
        b"vllm:request_prefill_kv_computed_tokens_sum",
    ),
    rank="engine",
)
_SGLANG = _Names(
    running=b"sglang:num_running_reqs",
    waiting=b"sglang:num_queue_reqs",
    usage=b"sglang:token_usage",
    prompt_tokens=b"sglang:prompt_tokens_total",
    cached_tokens=b"sglang:cached_tokens_total",
    requests=b"sglang:num_requests_total",
    prefill=(),
    rank="dp_rank",
)
_RESERVED_BLOCKS = 1
"""vLLM keeps one block of `num_gpu_blocks` for padding (`BlockPool.null_block`)."""


_Sizes: TypeAlias = Mapping[int, tuple[int, int]]
"""By rank: tokens a block, and blocks."""


def read_page(body: bytes) -> dict[int, Reading]:
    """The engines behind a metrics page by their data-parallel rank; 0 where there is but one.

    Empty where neither engine's names are on the page. About 60 µs for a page of 50 KB.
    """
    page = Page(body)
    # First, since it stands first (`Page`).
    started = next((value for _, value in page.samples(b"process_start_time_seconds")), None)
    names, sizes = _VLLM, _vllm_sizes
    running = _by_rank(page, names.running, names.rank, max)
    if not running:
        names, sizes = _SGLANG, _sglang_sizes
        running = _by_rank(page, names.running, names.rank, max)
    waiting = _by_rank(page, names.waiting, names.rank, max)
    asleep = _asleep(page) if names is _VLLM else frozenset()
    usage = _by_rank(page, names.usage, names.rank, max)
    prompt = _by_rank(page, names.prompt_tokens, names.rank, add)
    cached = _by_rank(page, names.cached_tokens, names.rank, add)
    requests = _by_rank(page, names.requests, names.rank, add)
    blocks = sizes(page)
    prefills, prefill_s, computed = [
        _by_rank(page, name, names.rank, add) for name in names.prefill
    ] or [{}, {}, {}]
    return {
        rank: Reading(
            running=count,
            waiting=waiting.get(rank, 0.0),
            usage=usage.get(rank),
            block_size=blocks[rank][0] if rank in blocks else None,
            blocks=blocks[rank][1] if rank in blocks else None,
            started=started,
            prompt_tokens=prompt.get(rank),
            cached_tokens=cached.get(rank),
            requests=requests.get(rank),
            prefills=prefills.get(rank),
            prefill_ms=1000 * prefill_s[rank] if rank in prefill_s else None,
            computed_tokens=computed.get(rank),
            asleep=rank in asleep,
        )
        for rank, count in running.items()
    }


def merge(ranks: Sequence[Reading]) -> Reading:
    """One reading for ranks that are one instance, because the engine shares them out itself.

    ranks: at least one.
    """
    first = ranks[0]
    if len(ranks) == 1:
        return first
    usages = [one.usage for one in ranks if one.usage is not None]
    return Reading(
        running=sum(one.running for one in ranks),
        waiting=sum(one.waiting for one in ranks),
        usage=sum(usages) / len(usages) if usages else None,
        block_size=first.block_size if len({one.block_size for one in ranks}) == 1 else None,
        blocks=_total(one.blocks for one in ranks),
        started=first.started,
        prompt_tokens=_total(one.prompt_tokens for one in ranks),
        cached_tokens=_total(one.cached_tokens for one in ranks),
        requests=_total(one.requests for one in ranks),
        prefills=_total(one.prefills for one in ranks),
        prefill_ms=_total(one.prefill_ms for one in ranks),
        computed_tokens=_total(one.computed_tokens for one in ranks),
        asleep=any(one.asleep for one in ranks),
    )


def _total(values: Iterable[_Number | None]) -> _Number | None:
    """The sum; None where one is not known."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)


def _by_rank(
    page: Page, name: bytes, label: str, together: Callable[[float, float], float]
) -> dict[int, float]:
    """A metric by rank. together: of a rank's samples, which other labels tell apart: gauges are
    said again by each tensor-parallel rank (the largest holds), counters are parts (their sum)."""
    found: dict[int, float] = {}
    for labels, value in page.samples(name):
        rank = _rank(labels, label)
        found[rank] = together(found[rank], value) if rank in found else value
    return found


def _rank(labels: Mapping[str, str], label: str) -> int:
    rank = labels.get(label, "")
    return int(rank) if rank.isdecimal() else 0


def _vllm_sizes(page: Page) -> _Sizes:
    return {
        _rank(labels, _VLLM.rank): (size, blocks - _RESERVED_BLOCKS)
        for labels, _ in page.samples(b"vllm:cache_config_info")
        if (size := _count(labels.get("block_size")))
        and (blocks := _count(labels.get("num_gpu_blocks"))) > _RESERVED_BLOCKS
    }


def _sglang_sizes(page: Page) -> _Sizes:
    page_sizes = _by_rank(page, b"sglang:page_size", _SGLANG.rank, max)
    if page_sizes:
        counts = _by_rank(page, b"sglang:num_pages", _SGLANG.rank, max)
        return {
            rank: (int(size), int(counts[rank]))
            for rank, size in page_sizes.items()
            if size >= 1 and counts.get(rank, 0) >= 1
        }
    return {
        _rank(labels, _SGLANG.rank): (size, pages)
        for labels, _ in page.samples(b"sglang:cache_config_info")
        if (size := _count(labels.get("page_size"))) and (pages := _count(labels.get("num_pages")))
    }


def _count(text: str | None) -> int:
    """A label's number; 0 where it has none (vLLM writes `None` before it knows)."""
    return int(text) if text is not None and text.isdecimal() else 0


def _asleep(page: Page) -> frozenset[int]:
    return frozenset(
        _rank(labels, _VLLM.rank)
        for labels, value in page.samples(b"vllm:engine_sleep_state")
        if value and labels.get("sleep_state") in ("weights_offloaded", "discard_all")
    )
