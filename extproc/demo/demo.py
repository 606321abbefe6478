"""`homing demo`: the same conversations through round robin and through Homing, side by side."""

import asyncio
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import aiohttp
from cyclopts import Parameter, validators

from extproc.demo import conversations as script
from extproc.demo.engine import DEMO_TOKENIZER, EngineSettings
from extproc.demo.home import judge
from extproc.demo.player import Turn, play
from extproc.demo.replicas import alternate
from extproc.demo.report import Report
from extproc.demo.stack import Stack
from extproc.errors import HomingError

DECODE_MS = 4.0
"""Less than the engine's default, so that the demo is short. A prefill takes what it takes."""

ROUND_ROBIN = "round robin"
HOMING = "homing"

_AtLeastOne = Parameter(validator=validators.Number(gte=1))
_AtLeastTwo = Parameter(validator=validators.Number(gte=2))


def demo(
    *,
    tokenizer: Path = DEMO_TOKENIZER,
    engines: Annotated[int, _AtLeastOne] = 3,
    conversations: Annotated[int, _AtLeastOne] = 4,
    turns: Annotated[int, _AtLeastTwo] = 5,
    replicas: Annotated[int, _AtLeastOne] = 1,
    log: Literal["memory", "etcd"] = "memory",
    keep: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Show turns coming home: simulated engines, Homing and a real Envoy, all on this machine.

    Plays the same conversations twice, through plain round robin and through Homing, and compares.
    With several replicas it shows turns that alternate between them, and kills one on the way.
    Exit status 0: every later turn found the prompt of the turn before in the cache.

    Parameters
    ----------
    tokenizer
        Folder with tokenizer.json and tokenizer_config.json of any model.
    engines
        Simulated engines to start.
    conversations
        Conversations to play at the same time.
    turns
        Turns of each conversation.
    replicas
        Homings to start, behind the one Envoy.
    log
        Where the replicas' log is: memory, each its own, or etcd, which is started too.
    keep
        Leave everything running afterwards, until Ctrl-C.
    """
    if replicas > 1 and log == "memory":
        print("replicas share what they know through etcd only: add --log etcd", file=sys.stderr)
        return 2
    report = Report()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    try:
        settings = EngineSettings(tokenizer=tokenizer, decode_ms=DECODE_MS)
        with Stack(
            engines,
            replicas=replicas,
            etcd=log == "etcd",
            engine=settings,
            progress=report.progress,
        ) as stack:
            show = alternate if replicas > 1 else _compare
            came_home = show(stack, conversations, turns, report)
            if keep:
                _keep(stack, report)
    except KeyboardInterrupt:
        report.progress("stopped: every process has ended")
        return 128 + signal.SIGINT
    except HomingError as error:
        print(error, file=sys.stderr)
        return 1
    except (aiohttp.ClientError, TimeoutError) as error:
        print(f"no answer: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0 if came_home else 1


def _compare(stack: Stack, count: int, turns: int, report: Report) -> bool:
    """Play both runs, print them, and say whether the turns through Homing came home."""
    engines = itertools.cycle([stack.engine_url(name) for name in stack.engines])
    runs: list[tuple[str, Sequence[Turn]]] = []
    for name, title, next_url in (
        (ROUND_ROBIN, "Round robin: the client asks one engine after the other", engines.__next__),
        (HOMING, "Homing: the client asks Envoy, and Homing picks the engine", lambda: stack.url),
    ):
        report.opening(title)
        try:
            runs.append((name, asyncio.run(_play(stack, count, turns, name, next_url, report))))
        finally:
            stack.check()  # an error of the client's is explained by the process that ended
    report.comparison(runs)
    return judge(runs[-1][1], stack.block_size, report)


async def _play(
    stack: Stack, count: int, turns: int, run: str, next_url: Callable[[], str], report: Report
) -> Sequence[Turn]:
    """One run. Its name is its cache salt, so what the run before left in the engines is no hit."""
    played: list[Turn] = []

    def heard(turn: Turn) -> None:
        played.append(turn)
        report.turn(turn)

    await play(
        script.conversations(count),
        turns,
        model=stack.model,
        salt=run,
        next_url=next_url,
        heard=heard,
    )
    return played


def _keep(stack: Stack, report: Report) -> None:
    """Say how to use the stack, and wait until Ctrl-C or until one of its processes ends."""
    body = json.dumps({"model": stack.model, "messages": [{"role": "user", "content": "Hello!"}]})
    report.plain(
        f"\nEnvoy listens on {stack.url}; Homing's state is at {stack.admin_url}/pools\n"
        f"Configurations and logs are in {stack.folder}\n\n"
        f"  curl -i {stack.url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f"    -d '{body}'\n"
    )
    report.progress("Ctrl-C ends it")
    while True:
        stack.check()
        time.sleep(1)


def _interrupt(_: int, __: FrameType | None) -> None:
    """End as on Ctrl-C, which asyncio knows how to end tidily."""
    signal.raise_signal(signal.SIGINT)
