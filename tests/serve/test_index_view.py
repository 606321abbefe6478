"""`homing index`: what operators see of the index, through the admin port."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import aiohttp
import pytest

from extproc.cli import main
from extproc.demo.stack import _free_ports
from extproc.index import Capacity, Held, Source, Tier
from extproc.serve import App
from extproc.serve import admin as admin_module
from extproc.serve.admin import SLICE_PLACES, _is_local
from extproc.serve.digests import EVERY, KEPT, Digests
from extproc.terms import NO_BLOCK, InstanceId
from tests.index.chains import A, B, held, index_of, packed
from tests.serve.proxy import LONG, ask, chat, config, sample, serving


async def homing(*arguments: str) -> tuple[int, str, str]:
    def run() -> tuple[int, str, str]:
        with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
            status = main(arguments)
        return status, out.getvalue(), err.getvalue()

    return await asyncio.to_thread(run)


@asynccontextmanager
async def replicas(count: int) -> AsyncIterator[list[tuple[App, str]]]:
    """Homings with one secret, each with the URL of its admin port; they share nothing else."""
    async with AsyncExitStack() as stack:
        found = []
        for port in _free_ports(count):
            app, _ = await stack.enter_async_context(serving(config(admin=f"127.0.0.1:{port}")))
            app.pools[0].secret = b"s" * 16
            found.append((app, f"http://127.0.0.1:{port}"))
        yield found


def turn(app: App, instance: str, prompt: str) -> None:
    """What a pick leaves in the index."""
    app.pools[0].append(
        [Held(InstanceId(instance), Tier.GPU, NO_BLOCK, packed(prompt), Source.PICK)]
    )


async def test_the_index_is_shown_in_numbers_as_a_tree_and_as_json() -> None:
    (port,) = _free_ports(1)
    admin = f"http://127.0.0.1:{port}"
    async with serving(config(admin=f"127.0.0.1:{port}")) as (app, channel):
        exchange, name = await ask(channel, chat(LONG))
        await exchange.end()
        pool = app.pools[0]
        status, out, _ = await homing("index", "stat", "--admin", admin)
        numbers = json.loads(out)
        assert (status, numbers["held"]) == (0, pool.index.stats().held)
        assert numbers["digest"] == f"{pool.index.digest:016x}"
        assert numbers["revision"] == pool.log.revision("test")
        assert numbers["instances"][name]["gpu_blocks"] == pool.index.held_blocks(InstanceId(name))
        status, out, _ = await homing("index", "dump", "--admin", admin, "--pool", "test")
        assert status == 0
        assert f"{name}:{numbers['held']} (0 facts ago)" in out.splitlines()[-1]
        status, out, _ = await homing("index", "dump", "--admin", admin, "--json")
        first, *edges = map(json.loads, out.splitlines())
        # What is done while idle may have come in between.
        assert first == {**numbers, "table_bytes": first["table_bytes"]}
        assert [edge["blocks"] for edge in edges] == [numbers["held"]]
        status, _, err = await homing("index", "stat", "--admin", admin, "--pool", "nowhere")
        assert status == 2
        assert "no such pool" in err


async def test_a_large_index_is_read_page_by_page_while_requests_get_their_turn() -> None:
    async with replicas(1) as [(app, admin)]:
        for number in range(5_000):
            turn(app, "abc"[number % 3], f"{number:04d} and what follows")
        turns = 0

        async def counting() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        meanwhile = asyncio.create_task(counting())
        edges, at, pages = [], 1, 0
        async with aiohttp.ClientSession() as http:
            while at:
                before = turns
                async with http.get(f"{admin}/pools/test/index/edges?from={at}") as answer:
                    page = await answer.json()
                assert turns - before >= len(page["edges"]) // SLICE_PLACES
                edges += page["edges"]
                at = page["next"]
                pages += 1
        meanwhile.cancel()
        assert pages > 1
        assert len({edge["first"] for edge in edges}) == app.pools[0].index.stats().edges


@pytest.mark.parametrize("place", ["0", "-1", "x", "99999999999999999999", "1.5"])
async def test_a_place_that_no_page_named_is_refused(place: str) -> None:
    async with replicas(1) as [(_, admin)], aiohttp.ClientSession() as http:
        async with http.get(f"{admin}/pools/test/index/edges", params={"from": place}) as answer:
            assert answer.status == 400
        async with http.get(f"{admin}/pools/test/index/edges?from=1000000") as answer:
            page = await answer.json()
            assert (page["edges"], page["next"]) == ([], 0)


async def test_replicas_that_folded_the_same_are_the_same() -> None:
    async with replicas(2) as [(one, here), (other, there)]:
        for app in (one, other):
            turn(app, "a", "a prompt")
        status, out, err = await homing("index", "diff", here, there)
        revision = one.pools[0].log.revision("test")
        assert (status, out, err) == (0, f"the same at revision {revision}\n", "")


async def test_a_replica_that_is_ahead_is_compared_where_both_were() -> None:
    async with replicas(2) as [(one, here), (other, there)]:
        for number in range(2 * EVERY):
            turn(one, "a", f"{number:02d}, a prompt")
            turn(other, "a", f"{number:02d}, a prompt")
        turn(one, "a", "one more")
        status, out, _ = await homing("index", "diff", here, there)
        assert (status, out.split()[:2]) == (0, ["the", "same"])
        assert int(out.split()[-1]) % EVERY == 0


async def test_what_differs_is_named_by_instance_and_edge_up_to_a_limit() -> None:
    async with replicas(2) as [(one, here), (other, there)]:
        for number in range(4):
            turn(one, "a", f"{number}, a prompt")
            turn(other, "b" if number else "a", f"{number}, a prompt")
        status, out, _ = await homing("index", "diff", here, there, "--limit", "2")
        lines = out.splitlines()
        revision = one.pools[0].log.revision("test")
        assert (status, lines[0]) == (1, f"not the same at revision {revision}")
        assert any("a: gpu_blocks 44 against 11" in line for line in lines)
        assert any("b: gpu_blocks 0 against 33" in line for line in lines)
        assert sum(line.startswith("  [0, 11)") for line in lines) == 2
        assert lines[-1] == "  and 1 more"


async def test_pools_with_other_secrets_are_not_compared() -> None:
    async with replicas(2) as [(one, here), (_, there)]:
        one.pools[0].secret = b"t" * 16
        status, _, err = await homing("index", "diff", here, there)
        assert status == 2
        assert "not replicas of one pool" in err


async def test_clearing_an_instance_is_a_fact_and_needs_its_name() -> None:
    async with replicas(1) as [(app, admin)]:
        turn(app, "a", "a prompt")
        turn(app, "b", "a prompt")
        before = app.pools[0].log.revision("test")
        status, out, _ = await homing("index", "clear", "a", "--admin", admin)
        assert (status, out) == (0, "a: 8 blocks forgotten\n")
        assert app.pools[0].log.revision("test") == before + 1
        held = {name: app.pools[0].index.held_blocks(InstanceId(name)) for name in "ab"}
        assert held == {"a": 0, "b": 8}
        status, _, err = await homing("index", "clear", "nobody", "--admin", admin)
        assert status == 2
        assert "no such instance; there are: a, b, c" in err


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ('{"instance": "a"}', "text/plain", 415),
        ('{"instance": "a"}', "application/x-www-form-urlencoded", 415),
        ('{"instance": 1}', "application/json", 400),
        ('{"instance": "a", "and": "b"}', "application/json", 400),
        ("a", "application/json", 400),
        ("", "application/json", 400),
    ],
)
async def test_what_a_web_page_could_send_clears_nothing(
    body: str, content_type: str, status: int
) -> None:
    async with replicas(1) as [(app, admin)], aiohttp.ClientSession() as http:
        turn(app, "a", "a prompt")
        url = f"{admin}/pools/test/index/clear"
        async with http.post(url, data=body, headers={"content-type": content_type}) as answer:
            assert answer.status == status
        async with http.get(url) as answer:
            assert answer.status == 405
        assert app.pools[0].index.held_blocks(InstanceId("a")) == 8


async def test_another_machine_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_module, "_is_local", lambda _: False)
    async with replicas(1) as [(app, admin)]:
        turn(app, "a", "a prompt")
        status, _, err = await homing("index", "clear", "a", "--admin", admin)
        assert status == 2
        assert "403 only from the machine that Homing runs on" in err
        assert app.pools[0].index.held_blocks(InstanceId("a")) == 8


def test_only_this_machine_changes_state() -> None:
    local = ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", "", None]
    remote = ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "fe80::1%eth0", "0.0.0.0"]
    assert [_is_local(peer) for peer in local] == [True] * len(local)
    assert [_is_local(peer) for peer in remote] == [False] * len(remote)


async def test_the_digest_is_a_metric_with_its_revision() -> None:
    async with replicas(1) as [(app, admin)], aiohttp.ClientSession() as http:
        turn(app, "a", "a prompt")
        async with http.get(f"{admin}/metrics") as answer:
            await answer.read()
        pool = app.pools[0]
        digest = sample(app, "homing_index_digest", pool="test")
        assert digest == pool.index.digest >> 12
        assert float(int(digest)) == digest
        revision = sample(app, "homing_index_digest_revision", pool="test")
        assert revision == pool.log.revision("test")
        assert sample(app, "homing_fold_version") >= 1


async def test_a_homing_that_is_not_there_is_named() -> None:
    status, _, err = await homing("index", "stat", "--admin", "http://127.0.0.1:1")
    assert status == 2
    assert "http://127.0.0.1:1" in err
    status, _, err = await homing("index", "stat", "--admin", "127.0.0.1:1")
    assert "is no URL" in err


def test_digests_are_noted_at_the_same_revisions_and_only_between_two() -> None:
    at = 0
    notes = Digests(index_of(A, B), lambda: at)
    seen = {}
    for revision in range(1, 4 * EVERY):
        at = revision
        for prompt in ("one", "two"):
            notes.apply(revision, held(A, f"{revision}{prompt}"))
        seen[revision] = notes._index.digest
    *noted, present = notes.recent()
    assert noted == [(at, seen[at]) for at in (EVERY, 2 * EVERY, 3 * EVERY)]
    assert present == (4 * EVERY - 1, seen[4 * EVERY - 1])
    assert notes.recent() == [*noted, present]


def test_few_digests_are_kept_and_none_after_a_new_start() -> None:
    last = (KEPT + 10) * EVERY
    notes = Digests(index_of(A), lambda: last)
    for revision in range(0, last + 1, EVERY):
        notes.apply(revision, held(A, "x"))
    assert len(notes.recent()) == KEPT + 1
    notes.reset()
    assert [revision for revision, _ in notes.recent()] == [last]


def test_no_digest_is_told_while_facts_wait_in_a_backlog() -> None:
    index = index_of(A)
    notes = Digests(index, lambda: EVERY + 1)
    for number in range(3_000):
        notes.apply(EVERY, held(A, f"{number:04d}"))
    notes.apply(EVERY, Capacity(A, Tier.GPU, 1))
    assert index.backlog
    assert notes.recent() == []
    notes.apply(EVERY + 1, held(A, "y"))
    while index.backlog:
        index.step()
    assert [revision for revision, _ in notes.recent()] == [EVERY + 1]


def test_what_was_noted_before_a_snapshot_took_the_indexs_place_is_forgotten() -> None:
    index, other = index_of(A), index_of(A, B)
    notes = Digests(index, lambda: EVERY + 1)
    for revision in (EVERY, EVERY + 1):
        notes.apply(revision, held(A, "xyz"))
    assert [at for at, _ in notes.recent()] == [EVERY, EVERY + 1]
    notes.apply(2 * EVERY, held(A, "uv"))
    for _ in index.load(list(other.snapshot())):
        pass
    notes.apply(9 * EVERY, held(A, "uv"))
    assert notes.recent() == [(EVERY + 1, index.digest)]
