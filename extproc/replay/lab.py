"""One replay: traffic, a router, engines, and virtual time."""

import bisect
import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from time import perf_counter

from extproc.replay.engine import Engine, EngineModel, Job
from extproc.replay.fleet import Blur, Fleet
from extproc.replay.outcome import Outcome
from extproc.replay.router import Placement, Router
from extproc.replay.traffic import Request, Traffic
from extproc.routing import Policy, Speed
from extproc.terms import KEY_BYTES, PackedKeys


@dataclass(frozen=True, slots=True)
class Change:
    """An instance is lost, with its cache and all that it was doing, or comes, empty.

    at: seconds; an instance that is lost at 0 was never there.
    """

    at: float
    instance: int
    is_up: bool


def open_door(request: Request, now: float) -> float:
    """Lets everybody in."""
    return 0.0


@dataclass(frozen=True, slots=True)
class Setting:
    """What is replayed on.

    capacity_tokens: of each engine's cache. sees_first_token: whether the router is told when a
    prefill ends, or must predict it. knows_overhead: whether it has learnt what a prefill costs
    beside its tokens. is_pooled: all engines share one cache, as large as theirs together.
    changes: instances that go and come, at least one is always there; not of a pooled cache.
    others: engines that differ from `engine`, by instance. blur: how the routers' knowledge is off;
    what an engine that differs takes is told to nobody. door: for how many seconds a request is
    refused, after which it is sent again; its TTFT counts from when it was sent first. max_wait_s:
    for which a request waits at the router at most while every engine is busy. warm_up: prefixes
    that are computed at an instance as soon as it comes, by requests that count nowhere.
    """

    instances: int = 8
    capacity_tokens: int = 1_000_000
    engine: EngineModel = field(default_factory=EngineModel)
    sees_first_token: bool = True
    knows_overhead: bool = True
    is_pooled: bool = False
    changes: tuple[Change, ...] = ()
    others: Mapping[int, EngineModel] = field(default_factory=dict)
    blur: Blur = field(default_factory=Blur)
    door: Callable[[Request, float], float] = open_door
    max_wait_s: float = 0.0
    warm_up: tuple[PackedKeys, ...] = ()


def replay(
    traffic: Traffic,
    policy: Policy,
    setting: Setting,
    progress: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Play all requests; O(events · log engines). progress: told the requests so far.

    Memory: what is under way, the indexes, and a few numbers a request.
    """
    block = traffic.block_size
    capacity = setting.capacity_tokens // block
    engines = [
        Engine(setting.others.get(number, setting.engine), capacity, block)
        for number in range(setting.instances)
    ]
    if setting.is_pooled:
        shared = Engine(setting.engine, capacity * setting.instances, block).cache
        for engine in engines:
            engine.cache = shared
    overhead_s = setting.engine.overhead_s if setting.knows_overhead else 0.0
    speed = Speed(setting.engine.prefill_rate, overhead_s)
    router = Fleet(
        [
            Router(policy, setting.instances, capacity, block, speed, setting.is_pooled)
            for _ in range(setting.blur.replicas)
        ],
        setting.blur,
        setting.max_wait_s,
    )
    placements: dict[int, Placement] = {}
    prefetches: dict[int, Job] = {}
    outcome = Outcome(setting.instances)
    arrivals = traffic.arrivals()
    upcoming: list[tuple[float, int, Request]] = []
    changes = deque(sorted(setting.changes, key=lambda change: change.at))
    up = list(range(setting.instances))
    order = 0

    def expect(at: float, request: Request) -> None:
        nonlocal order
        order += 1
        heapq.heappush(upcoming, (at, order, request))

    def expect_next(request: Request | None) -> None:
        if request is not None:
            expect(request.at, request)

    # Every engine has one entry that counts, the latest; older ones are stale.
    alarms: list[tuple[float, int]] = []
    due = [float("inf")] * setting.instances

    def set_alarm(number: int) -> None:
        due[number] = engines[number].next_event
        if due[number] < float("inf"):
            heapq.heappush(alarms, (due[number], number))

    def advance(number: int, now: float) -> None:
        first, ended = engines[number].advance(now)
        for job in first:
            if id(job) in prefetches:
                router.holds(number, job.request.keys, now)
                continue
            router.prefilled(placements[id(job)], now, setting.sees_first_token)
            outcome.first_token(job, number, placements[id(job)].score.cached_tokens)
        for job in ended:
            if prefetches.pop(id(job), None) is not None:
                continue
            placement = placements.pop(id(job))
            router.ended(placement, now)
            outcome.ended(job, number, now)
            following = traffic.following(job.request, now)
            expect_next(following)
            if (next_at := following.at if following else job.request.next_at) is not None:
                router.returns(placement, next_at, now)

    def change(number: int, is_up: bool, now: float) -> None:
        if is_up:
            bisect.insort(up, number)
            router.joined(number)
            for keys in setting.warm_up:
                tokens = len(keys) // KEY_BYTES * block + 1
                prefetch = Job(Request(now, -1, 0, keys, tokens, 1, keys), now)
                prefetches[id(prefetch)] = prefetch
                engines[number].submit(prefetch)
            set_alarm(number)
            return
        up.remove(number)
        advance(number, now)
        for job in engines[number].drain():
            if prefetches.pop(id(job), None) is not None:
                continue
            placement = placements.pop(id(job))
            router.lost(placement, is_prefilled=job.first_token > 0)
            # Who has seen a first token asks again, now; other requests are sent on as they are.
            request = job.request
            expect(now, replace(request, at=now) if job.first_token else request)
        engines[number].clear()
        router.left(number)
        set_alarm(number)

    def send(placement: Placement, now: float) -> None:
        number = placement.engine
        job = Job(placement.request, now)
        placements[id(job)] = placement
        outcome.placed(number, now)
        advance(number, now)
        engines[number].submit(job)
        set_alarm(number)

    def send_due(now: float) -> None:
        for placement in router.due(now, up):
            send(placement, now)

    expect_next(next(arrivals, None))
    known = upcoming[0][2] if upcoming else None
    while True:
        wakes = router.wakes_at
        alarm = alarms[0][0] if alarms else inf
        arrival = upcoming[0][0] if upcoming else inf
        soonest = min(wakes, alarm, arrival)
        if changes and changes[0].at <= soonest < inf:
            each = changes.popleft()
            change(each.instance, each.is_up, each.at)
            continue
        if soonest == inf:
            break
        if alarm == soonest:
            now, number = heapq.heappop(alarms)
            if now == due[number]:
                advance(number, now)
                set_alarm(number)
                send_due(now)
            continue
        if wakes == soonest:
            send_due(wakes)
            continue
        now, _, request = heapq.heappop(upcoming)
        if request is known:
            known = next(arrivals, None)
            expect_next(known)
        refused_s = setting.door(request, now)
        if refused_s:
            expect(now + refused_s, request)
            continue
        router.look(engines, now)
        began = perf_counter()
        placement = router.place(request, now, up)
        outcome.deciding_s += perf_counter() - began
        if placement is not None:
            send(placement, now)
        send_due(now)
        progress(outcome.requests)
    outcome.finish([engine.busy_s for engine in engines])
    return outcome
