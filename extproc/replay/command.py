"""`homing replay`: what a trace would have seen under each policy."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from extproc.errors import ConfigError
from extproc.prompt import ServedModel
from extproc.replay.baselines import BASELINES, REFERENCES
from extproc.replay.curves import Curves, curves
from extproc.replay.engine import EngineModel
from extproc.replay.fleet import Blur
from extproc.replay.foretold import Foretold
from extproc.replay.formats import (
    ChatLog,
    Format,
    Mooncake,
    SharedPrefix,
    Turns,
    format_of,
    lengths,
    sharegpt_lengths,
)
from extproc.replay.lab import Setting, replay
from extproc.replay.outcome import Summary
from extproc.replay.traffic import Traffic
from extproc.routing import POLICIES, Policy
from extproc.terms import TOKEN_BYTES

NAMES: dict[str, Callable[[], Policy]] = {**POLICIES, **BASELINES, **REFERENCES}

OWN = ("priced", "oracle")
"""Played with flow control, as the product is by default."""

_Positive = Parameter(validator=validators.Number(gt=0))
_NotNegative = Parameter(validator=validators.Number(gte=0))
_SHARED_PREFIX = "shared-prefix"
_DEMO_TOKENIZER = Path(__file__).parents[1] / "demo" / "tokenizer"
_WIDTH = 140
"""Of the table where stdout is no terminal."""

_EVERY = 500
"""Requests between two looks of the progress line."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Options:
    """What is replayed on."""

    instances: Annotated[int, _Positive] = 8
    """Engines."""

    capacity_tokens: Annotated[int, _Positive] = 1_000_000
    """Tokens that an engine's KV cache holds."""

    prefill_rate: Annotated[float, _Positive] = 16_000.0
    """Uncached tokens a second that an engine prefills."""

    speed: Annotated[float, _Positive] = 1.0
    """How much faster than recorded the requests come (traces with times)."""

    rate: Annotated[float | None, _Positive] = None
    """What comes a second where no trace says: conversations, 14 if not given, or questions, 40."""

    think_s: Annotated[float, _Positive] = 30.0
    """Mean time from an answer to the next turn (lengths of turns)."""

    turns: Annotated[int, _Positive] = 20
    """Most turns of a conversation (lengths of turns)."""

    context: Annotated[int, _Positive] = 32_768
    """Most tokens of one (lengths of turns)."""

    tokenizer: Path = _DEMO_TOKENIZER
    """Folder with the model's tokenizer.json and template, for traces with texts; the demo's if not
    given."""

    groups: Annotated[int, _Positive] = 150
    """`shared-prefix`: system prompts."""

    questions: Annotated[int, _Positive] = 5
    """`shared-prefix`: different questions after each."""

    prefix: Annotated[int, _NotNegative] = 6_000
    """`shared-prefix`: tokens of a system prompt."""

    question: Annotated[int, _Positive] = 1_200
    """`shared-prefix`: tokens of a question."""

    output: Annotated[int, _Positive] = 1_000
    """`shared-prefix`: tokens of an answer."""

    requests: Annotated[int, _Positive] = 6_000
    """`shared-prefix`: how many."""

    max_wait_s: Annotated[float, _NotNegative] = 2.0
    """How long requests wait at the product's own router while every engine is busy; 0: never."""

    seeds: Annotated[int, _Positive] = 1
    """Runs, with seeds from 1; the mean is shown."""


def run_replay(
    trace: Path,
    *,
    policy: Annotated[tuple[str, ...], Parameter(negative="")] = tuple(NAMES),
    json_output: Annotated[bool, Parameter(name="--json", negative="")] = False,
    html: Path | None = None,
    options: Options = Options(),
) -> None:
    """Replay a trace in virtual time and compare routing policies (docs/replay.md).

    Drives the product's own index and policies. A trace is a file of JSON lines, gzip or not: a log
    of requests (`timestamp`, `messages`), Mooncake's (`timestamp`, `input_length`, `output_length`,
    `hash_ids`), or lengths of turns; or else the word `shared-prefix`, for a generator.

    Parameters
    ----------
    trace
        The file, or `shared-prefix`.
    policy
        A policy's name, given once for each; all if not given.
    json_output
        Print a list of objects instead of a table.
    html
        Write a report with plots into this file, too.
    """
    unknown = [name for name in policy if name not in NAMES]
    if unknown:
        raise ConfigError(f"no policy is called {unknown[0]}; there are: {', '.join(NAMES)}")
    made = _traffic(trace, options)
    page = _page_maker() if html else None
    rows = {}
    drawn: dict[str, Curves] = {}
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed} requests"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        for name in policy:
            task = progress.add_task(name, total=None)

            def look(requests: int, task: object = task) -> None:
                if requests % _EVERY == 0:
                    progress.update(task, completed=requests)  # type: ignore[arg-type]

            runs = []
            for seed in range(1, options.seeds + 1):
                traffic = made(seed)
                if name == "oracle":
                    traffic = Foretold(made(seed), traffic)
                outcome = replay(traffic, NAMES[name](), _setting(options, name), look)
                runs.append(outcome.summary())
                if page and name not in drawn:
                    drawn[name] = curves(outcome)
            rows[name] = mean(runs)
            progress.remove_task(task)
    if html and page:
        facts = {field.name: str(getattr(options, field.name)) for field in fields(options)}
        html.write_text(page(trace.name, facts, rows, drawn))
    if json_output:
        json.dump([{"policy": name, **asdict(row)} for name, row in rows.items()], sys.stdout)
        print()
    else:
        Console(width=None if sys.stdout.isatty() else _WIDTH).print(_table(rows))


def _page_maker() -> Callable[..., str]:
    """`report.page`, or why there is none: asked for before the replays, not after."""
    try:
        from extproc.replay.report import page
    except ImportError as missing:
        raise ConfigError(
            f"--html needs the extra `report`: pip install 'homing[report]' ({missing.name})"
        ) from None
    return page


def mean(runs: Sequence[Summary]) -> Summary:
    """The mean of each figure."""
    return Summary(
        **{
            field.name: sum(getattr(run, field.name) for run in runs) / len(runs)
            for field in fields(Summary)
        }
    )


def _setting(options: Options, policy: str) -> Setting:
    return Setting(
        options.instances,
        options.capacity_tokens,
        EngineModel(prefill_rate=options.prefill_rate),
        is_pooled=policy == "pooled",
        max_wait_s=options.max_wait_s if policy in OWN else 0.0,
        blur=Blur(hints=0.0 if policy == "oracle" else None),
    )


def _traffic(trace: Path, options: Options) -> Callable[[int], Traffic]:
    """Seed → the traffic. Raises ConfigError where the file is nothing known."""
    if str(trace) == _SHARED_PREFIX and not trace.exists():
        return lambda seed: SharedPrefix(
            options.groups,
            options.questions,
            options.prefix,
            options.question,
            options.output,
            options.rate or 40.0,
            options.requests,
            seed,
        )
    match format_of(trace):
        case Format.MOONCAKE:
            return lambda seed: Mooncake(trace, options.speed, seed)
        case Format.CHAT_LOG:
            model = ServedModel.load("", options.tokenizer)
            return lambda _: ChatLog(trace, model, options.speed)
        case Format.LENGTHS:
            listed = lengths(trace)
        case Format.SHAREGPT:
            tokenize = ServedModel.load("", options.tokenizer).tokenize
            listed = sharegpt_lengths(trace, lambda text: len(tokenize(text)) // TOKEN_BYTES)
    rate, think_s = options.rate or 14.0, options.think_s
    return lambda seed: Turns(listed, rate, think_s, options.turns, options.context, seed)


def _table(rows: dict[str, Summary]) -> Table:
    table = Table(title="TTFT in seconds")
    table.add_column("policy", no_wrap=True)
    times = ("mean", "p50", "p90", "p99", "≤ 2 s", "≤ 5 s")
    for column in ("hit", *times, "uneven", "busy", "picks/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, row in sorted(rows.items(), key=lambda entry: entry[1].ttft_mean):
        seconds = (row.ttft_mean, row.ttft_p50, row.ttft_p90, row.ttft_p99)
        table.add_row(
            name,
            f"{row.hit:.1%}",
            *(f"{time:.3f}" for time in seconds),
            f"{row.within_2s:.1%}",
            f"{row.within_5s:.1%}",
            f"{row.imbalance:.2f}",
            f"{row.utilisation:.0%}",
            f"{row.decisions_per_s:,.0f}",
        )
    return table
