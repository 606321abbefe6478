"""Instances from a cluster, against an API server that speaks real lists and watches."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from extproc.config import Events
from extproc.config import KubernetesDiscovery as Settings
from extproc.engines import Instance
from extproc.engines.discovery import DiscoveryError
from extproc.engines.discovery.kubernetes import KubernetesDiscovery, reflector
from tests.engines.apiserver import NAMESPACE, PODS, POOLS, ApiServer, apiserver, pod, pool

LABELS = {"labels": {"app": "engine"}, "ports": (8000,)}


class Watched:
    """A discovery that is followed, list by list."""

    def __init__(self, lists: AsyncGenerator[Sequence[Instance], None]) -> None:
        self.lists = lists
        self.last: Sequence[Instance] = ()

    async def next(self) -> dict[str, str]:
        """Endpoint and state by name, of the next list."""
        async with asyncio.timeout(30):
            self.last = await anext(self.lists)
        return {one.id: f"{one.endpoint} {one.state}" for one in self.last}


@asynccontextmanager
async def watching(
    folder: Path, *objects: dict[str, Any], events: Events | None = None, **settings: Any
) -> AsyncIterator[tuple[ApiServer, Watched]]:
    """A cluster with these pods and pools, and a discovery of its pods with the label `app`."""
    async with apiserver(folder) as (server, kubeconfig):
        for one in objects:
            server.put(PODS if one["kind"] == "Pod" else POOLS, one)
        given = {"kind": "kubernetes", "kubeconfig": kubeconfig, **(settings or LABELS)}
        lists = KubernetesDiscovery(Settings(**given), True, events).watch()
        try:
            yield server, Watched(lists)
        finally:
            await lists.aclose()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "PAUSE_S", 0.001)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)


async def watch_is_open(server: ApiServer, count: int = 1) -> None:
    await until(lambda: len(server.watches) == count)


class TestPods:
    async def test_pods_are_instances_with_their_states(self, tmp_path: Path) -> None:
        pods = (
            pod("a", "10.0.0.1"),
            pod("b", "10.0.0.2", ready=False),
            pod("c", "10.0.0.3", deleting=True),
            pod("d", None, ready=False, phase="Pending"),
            pod("e", "10.0.0.5", ready=False, phase="Succeeded"),
            pod("f", "10.0.0.6", ready=False, phase="Failed"),
            pod("g", "fd00::7"),
        )
        async with watching(tmp_path, *pods) as (_, watched):
            assert await watched.next() == {
                "a": "10.0.0.1:8000 ready",
                "b": "10.0.0.2:8000 starting",
                "c": "10.0.0.3:8000 draining",
                "g": "[fd00::7]:8000 ready",
            }
            assert watched.last[0].metrics == "http://10.0.0.1:8000/metrics"

    async def test_a_pods_life_is_followed(self, tmp_path: Path) -> None:
        async with watching(tmp_path) as (server, watched):
            assert await watched.next() == {}
            await watch_is_open(server)
            server.put(PODS, pod("a", None, ready=False, phase="Pending"))
            server.put(PODS, pod("a", "10.0.0.1", ready=False))
            assert await watched.next() == {"a": "10.0.0.1:8000 starting"}
            server.put(PODS, pod("a", "10.0.0.1"))
            assert await watched.next() == {"a": "10.0.0.1:8000 ready"}
            server.put(PODS, pod("a", "10.0.0.1", deleting=True))
            assert await watched.next() == {"a": "10.0.0.1:8000 draining"}
            server.delete(PODS, "a")
            assert await watched.next() == {}

    async def test_pods_with_other_labels_are_none_of_ours(self, tmp_path: Path) -> None:
        labels = {"labels": {"app": "engine", "tier": "gold"}, "ports": (8000,)}
        pods = (pod("a", "10.0.0.1", tier="gold"), pod("b", "10.0.0.2", tier="tin"))
        async with watching(tmp_path, *pods, **labels) as (server, watched):
            assert list(await watched.next()) == ["a"]
            selectors = {query["labelSelector"] for _, query in server.requests}
            assert selectors == {"app=engine,tier=gold"}

    async def test_ports_and_ranks_are_instances_of_their_own(self, tmp_path: Path) -> None:
        settings = {"labels": {"app": "engine"}, "ports": (8000, 8001), "ranks": 2}
        async with watching(tmp_path, pod("a", "10.0.0.1"), **settings) as (_, watched):
            assert await watched.next() == {
                "a:8000/0": "10.0.0.1:8000 ready",
                "a:8000/1": "10.0.0.1:8000 ready",
                "a:8001/0": "10.0.0.1:8001 ready",
                "a:8001/1": "10.0.0.1:8001 ready",
            }
            assert [one.rank for one in watched.last] == [0, 1, 0, 1]
            assert watched.last[1].headers == {"x-data-parallel-rank": "1"}

    async def test_the_engines_of_a_pod_number_their_event_ports(self, tmp_path: Path) -> None:
        settings = {"labels": {"app": "engine"}, "ports": (8000, 8001)}
        events = Events(port=5557, replay_port=5600)
        async with watching(tmp_path, pod("a", "10.0.0.1"), events=events, **settings) as (
            _,
            watched,
        ):
            await watched.next()
            first, second = (one.events for one in watched.last)
            assert first is None, "the pool's"
            assert second is not None
            assert (second.port, second.replay_port) == (5558, 5601)


class TestPools:
    async def test_a_pool_names_its_pods_and_ports(self, tmp_path: Path) -> None:
        objects = (pool("llm", 8000, 8001, app="engine"), pool("other", 1, app="x"))
        async with watching(tmp_path, *objects, pod("a", "10.0.0.1"), pool="llm") as (_, watched):
            assert await watched.next() == {
                "a:8000": "10.0.0.1:8000 ready",
                "a:8001": "10.0.0.1:8001 ready",
            }

    async def test_a_change_of_the_pool_counts(self, tmp_path: Path) -> None:
        pods = (pod("a", "10.0.0.1", v="1"), pod("b", "10.0.0.2", v="2"))
        objects = (pool("llm", 8000, app="engine", v="1"), *pods)
        async with watching(tmp_path, *objects, pool="llm") as (server, watched):
            assert await watched.next() == {"a": "10.0.0.1:8000 ready"}
            await watch_is_open(server, 2)
            server.put(POOLS, pool("llm", 9000, app="engine", v="1"))
            assert await watched.next() == {"a": "10.0.0.1:9000 ready"}
            server.put(POOLS, pool("llm", 9000, app="engine", v="2"))
            assert await watched.next() == {"b": "10.0.0.2:9000 ready"}
            server.put(PODS, pod("b", "10.0.0.2", ready=False, v="2"))
            assert await watched.next() == {"b": "10.0.0.2:9000 starting"}

    async def test_a_bookmark_of_the_pool_changes_nothing(self, tmp_path: Path) -> None:
        objects = (pool("llm", 8000, app="engine"), pod("a", "10.0.0.1"))
        async with watching(tmp_path, *objects, pool="llm") as (server, watched):
            await watched.next()
            await watch_is_open(server, 2)
            server.bookmark()
            server.put(POOLS, pool("llm", 9000, app="engine"))
            assert await watched.next() == {"a": "10.0.0.1:9000 ready"}

    @pytest.mark.parametrize(
        ("objects", "said"),
        [((), "no InferencePool llm in llm"), ((pool("llm", 8000),), "selects by no label")],
        ids=["missing", "all pods"],
    )
    async def test_a_pool_that_is_not_there_or_takes_all_is_an_error(
        self, tmp_path: Path, objects: tuple[dict[str, Any], ...], said: str
    ) -> None:
        async with watching(tmp_path, *objects, pool="llm") as (_, watched):
            with pytest.raises(DiscoveryError, match=said):
                await watched.next()

    async def test_a_pool_that_is_deleted_takes_no_instance_away(self, tmp_path: Path) -> None:
        objects = (pool("llm", 8000, app="engine"), pod("a", "10.0.0.1"))
        async with watching(tmp_path, *objects, pool="llm") as (server, watched):
            await watched.next()
            await watch_is_open(server, 2)
            server.delete(POOLS, "llm")
            with pytest.raises(DiscoveryError):
                await watched.next()


class TestWatches:
    async def test_a_list_is_read_page_by_page(self, tmp_path: Path) -> None:
        pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(7)]
        async with watching(tmp_path, *pods) as (server, watched):
            assert len(await watched.next()) == 7
            await watch_is_open(server)
            lists = [query for _, query in server.requests if "watch" not in query]
            assert len(lists) == 4

    async def test_a_watch_that_is_cut_goes_on_where_it_was(self, tmp_path: Path) -> None:
        async with watching(tmp_path, pod("a", "10.0.0.1")) as (server, watched):
            await watched.next()
            await watch_is_open(server)
            server.put(PODS, pod("b", "10.0.0.2"))
            assert len(await watched.next()) == 2
            seen = server.version
            server.cut()
            server.put(PODS, pod("c", "10.0.0.3"))
            assert len(await watched.next()) == 3
            lists = [query for _, query in server.requests if "watch" not in query]
            assert len(lists) == 1, "nothing is listed again"
            again = [query for _, query in server.requests if "watch" in query][-1]
            assert again["resourceVersion"] == str(seen)

    async def test_a_version_that_is_too_old_lists_everything_again(self, tmp_path: Path) -> None:
        async with watching(tmp_path, pod("a", "10.0.0.1"), pod("b", "10.0.0.2")) as (
            server,
            watched,
        ):
            await watched.next()
            await watch_is_open(server)
            # While nobody watches, one goes and one comes, and the history is forgotten.
            server.cut()
            server.delete(PODS, "a")
            server.put(PODS, pod("c", "10.0.0.3"))
            server.compact()
            assert list(await watched.next()) == ["b", "c"]

    async def test_a_bookmark_moves_the_version_on_without_a_change(self, tmp_path: Path) -> None:
        async with watching(tmp_path, pod("a", "10.0.0.1")) as (server, watched):
            await watched.next()
            await watch_is_open(server)
            following = asyncio.ensure_future(watched.next())
            for name in ("x", "y"):  # what others do in the cluster
                server.put(PODS, pod(name, "10.9.9.9") | {"metadata": {"name": name}})
            server.bookmark()
            server.compact()
            await asyncio.sleep(0)
            server.cut()
            await until(lambda: server.requests[-1][1].get("resourceVersion") == "103")
            await watch_is_open(server)
            server.put(PODS, pod("b", "10.0.0.2"))
            assert list(await following) == ["a", "b"]
            lists = [query for _, query in server.requests if "watch" not in query]
            assert len(lists) == 1

    async def test_a_list_that_expires_between_its_pages_begins_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pods = [pod(f"p{n}", f"10.0.0.{n}") for n in range(5)]
        async with watching(tmp_path, *pods) as (server, watched):
            lists = 0
            plain = ApiServer._list

            def expiring(self: ApiServer, request: Any) -> Any:
                nonlocal lists
                lists += 1
                answer = plain(self, request)
                if lists == 1:
                    server.put(PODS, pod("late", "10.0.0.9"))
                    server.compact()
                return answer

            monkeypatch.setattr(ApiServer, "_list", expiring)
            assert len(await watched.next()) == 6

    async def test_what_did_not_change_for_us_is_not_told(self, tmp_path: Path) -> None:
        async with watching(tmp_path, pod("a", "10.0.0.1")) as (server, watched):
            await watched.next()
            await watch_is_open(server)
            following = asyncio.ensure_future(watched.next())
            server.put(PODS, pod("a", "10.0.0.1"))
            server.put(PODS, pod("a", "10.0.0.1"))
            server.put(PODS, pod("b", "10.0.0.2"))
            assert len(await following) == 2


class TestTroubles:
    @pytest.mark.parametrize("status", [403, 404, 500])
    async def test_a_server_that_refuses_is_an_error(self, tmp_path: Path, status: int) -> None:
        async with watching(tmp_path) as (server, watched):
            server.status = status
            with pytest.raises(DiscoveryError, match=f"{PODS}: {status}"):
                await watched.next()

    async def test_a_server_that_goes_away_is_an_error_and_nobody_leaves(
        self, tmp_path: Path
    ) -> None:
        async with watching(tmp_path, pod("a", "10.0.0.1")) as (server, watched):
            await watched.next()
            await watch_is_open(server)
            server.status = 503
            server.cut()
            with pytest.raises(DiscoveryError, match="503"):
                await watched.next()

    async def test_nobody_listens_there(self, tmp_path: Path) -> None:
        async with apiserver(tmp_path) as (_, kubeconfig):
            pass
        settings = Settings(kind="kubernetes", kubeconfig=kubeconfig, **LABELS)
        with pytest.raises(DiscoveryError, match=PODS):
            await anext(KubernetesDiscovery(settings, True, None).watch())

    async def test_outside_of_a_cluster_a_kubeconfig_is_needed(self) -> None:
        settings = Settings(kind="kubernetes", namespace=NAMESPACE, **LABELS)
        with pytest.raises(DiscoveryError, match="Kubernetes: "):
            await anext(KubernetesDiscovery(settings, True, None).watch())
