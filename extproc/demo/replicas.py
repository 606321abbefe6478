"""Several Homings behind one Envoy: turns alternate between them, and one is killed on the way."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from extproc.demo import conversations as script
from extproc.demo.conversations import Conversation
from extproc.demo.home import judge
from extproc.demo.player import Turn, ask, session
from extproc.demo.report import Report
from extproc.demo.stack import Replica, Stack

SALT = "replicas"

ROUNDS_AFTER_KILL = 2

NOBODY = "nobody"
"""Picked where Homing was not asked."""


def alternate(stack: Stack, count: int, turns: int, report: Report) -> bool:
    """Play `turns` rounds, kill the first replica, play some more; whether all came home.

    One request after the other: Envoy gives them to the replicas in turn, and which one picked is
    read from their counters.
    """
    *but_last, last = [replica.name for replica in stack.replicas]
    report.opening(f"Envoy asks {', '.join(but_last)} and {last} in turn", pickers=True)
    played: list[Turn] = []

    async def run() -> None:
        conversations = script.conversations(count)
        async with session() as http:
            for number in range(turns + ROUNDS_AFTER_KILL):
                if number == turns:
                    first = stack.replicas[0].name
                    stack.kill(first)
                    report.event(f"SIGKILL of {first}")
                for conversation in _order(conversations, number):
                    turn = await _turn(stack, http, conversation)
                    played.append(turn)
                    report.turn(turn)

    asyncio.run(run())
    report.plain("\n" + "\n".join(_summary(stack.replicas, played)))
    return judge(played, stack.block_size, report)


def _order(conversations: Sequence[Conversation], number: int) -> Iterator[Conversation]:
    """Rotated from round to round where they are even in number: else each would always meet the
    same one of two replicas."""
    start = 0 if len(conversations) % 2 else number
    for place in range(len(conversations)):
        yield conversations[(start + place) % len(conversations)]


async def _turn(stack: Stack, http: aiohttp.ClientSession, conversation: Conversation) -> Turn:
    running = [one for one in stack.replicas if stack.processes[one.name].running]
    before = [await _picks(http, one) for one in running]
    turn = await ask(http, stack.url, conversation, model=stack.model, salt=SALT)
    after = [await _picks(http, one) for one in running]
    picked = [one for one, a, b in zip(running, before, after, strict=True) if b > a]
    return replace(turn, picker=picked[0].name if len(picked) == 1 else NOBODY)


async def _picks(http: aiohttp.ClientSession, replica: Replica) -> float:
    """Requests that a replica has placed so far."""
    async with http.get(f"{replica.admin_url}/metrics") as page:
        families = text_string_to_metric_families(await page.text())
    return sum(
        sample.value
        for family in families
        if family.name == "homing_picks"
        for sample in family.samples
        if sample.name == "homing_picks_total"
    )


def _summary(replicas: Sequence[Replica], turns: Sequence[Turn]) -> Iterator[str]:
    for replica in replicas:
        picked = [turn for turn in turns if turn.picker == replica.name]
        handed = sum(
            before.conversation == turn.conversation
            and before.number == turn.number - 1
            and before.picker not in (turn.picker, NOBODY)
            for turn in picked
            for before in turns
        )
        yield f"{replica.name} picked {len(picked)} turns, {handed} of them after another's"
