"""`homing index`: what operators see of the index of one or two running Homings.

What takes long shows how far it is, on stderr; the answer is on stdout.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from cyclopts import App, Parameter, validators
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from extproc.admin_client import PoolClient, pool_client
from extproc.errors import ConfigError
from extproc.index import (
    EdgeRow,
    Overview,
    RunDifference,
    arrange,
    overviews_differ,
    render,
    rows_differ,
)

DIFFER = 1
"""Exit status where two indexes are not the same."""

RECHECK_S = 1.0
"""A replica may be between two facts of one revision: it is asked again so much later."""

index = App(name="index", help="Look into the prefix index of a running Homing.")

AdminUrl = Annotated[str, Parameter(name="--admin")]
Limit = Annotated[int, Parameter(validator=validators.Number(gte=1))]


@index.command
def stat(*, admin: AdminUrl = "http://127.0.0.1:9090", pool: str | None = None) -> None:
    """Print the index in numbers, as JSON.

    Parameters
    ----------
    admin
        Where the admin port of the Homing is.
    pool
        Which pool; the first if not given.
    """
    print(json.dumps(pool_client(admin, pool).index(), indent=2))


@index.command
def dump(
    *,
    admin: AdminUrl = "http://127.0.0.1:9090",
    pool: str | None = None,
    json: bool = False,
    limit: Limit = 10_000,
) -> None:
    """Print the index as a tree: edges with their lengths, who holds them, and how long ago.

    Block keys are not shown, but short names made from them and the pool's secret. A large index
    is read a page at a time; edges that change meanwhile may show twice or not at all.

    Parameters
    ----------
    admin
        Where the admin port of the Homing is.
    pool
        Which pool; the first if not given.
    json
        Print every edge as a line of JSON instead, after a first line with the instances.
    limit
        Most edges of the tree to print, heads first.
    """
    client = pool_client(admin, pool)
    if json:
        _print_json(client)
        return
    numbers = client.index()
    print(render(_overview(numbers), arrange(_rows(client, numbers), limit)))


@index.command
def diff(one: str, other: str, /, *, pool: str | None = None, limit: Limit = 20) -> int:
    """Compare the index of two replicas: their digests at one revision, then what differs.

    Exit status 1: they are not the same.

    Parameters
    ----------
    one
        The admin port of a Homing, such as http://10.0.0.2:9090.
    other
        That of another one.
    pool
        Which pool; the first if not given.
    limit
        Most differences to print.
    """
    clients = (pool_client(one, pool), pool_client(other, pool))
    revision, equal = _compare(*clients)
    if equal:
        print(f"the same at revision {revision}")
        return 0
    print(f"not the same at revision {revision}" if revision >= 0 else "no revision in common")
    numbers = [client.index() for client in clients]
    for client, found in zip(clients, numbers, strict=True):
        print(f"{client.admin}: revision {found['revision']}, digest {found['digest']}")
    for instance, what in overviews_differ(*map(_overview, numbers)).items():
        print(f"  {instance}: {_against(what)}")
    here, there = (list(_rows(*each)) for each in zip(clients, numbers, strict=True))
    differences = list(rows_differ(here, there))
    for difference in differences[:limit]:
        print(f"  {_difference_text(difference)}")
    if len(differences) > limit:
        print(f"  and {len(differences) - limit} more")
    return DIFFER


@index.command
def clear(
    instance: str, *, admin: AdminUrl = "http://127.0.0.1:9090", pool: str | None = None
) -> None:
    """Forget what an instance holds, in all replicas: for one whose cache was emptied unseen.

    Homing takes this from its own machine only.

    Parameters
    ----------
    instance
        The instance's name.
    admin
        Where the admin port of the Homing is.
    pool
        Which pool; the first if not given.
    """
    blocks = pool_client(admin, pool).clear(instance)
    print(f"{instance}: {blocks} blocks forgotten")


def _print_json(client: PoolClient) -> None:
    numbers = client.index()
    print(json.dumps(numbers))
    for row in _rows(client, numbers):
        print(json.dumps(row))


def _compare(one: PoolClient, other: PoolClient) -> tuple[int, bool]:
    """The latest revision that both know the digest of (-1: none), and whether those are equal."""
    both = _latest(one, other)
    if not both[1]:
        time.sleep(RECHECK_S)
        both = _latest(one, other)
    return both


def _latest(one: PoolClient, other: PoolClient) -> tuple[int, bool]:
    here, there = (client.digests() for client in (one, other))
    for what, meaning in (("fold", "fold versions differ"), ("keyed", "not replicas of one pool")):
        if here[what] != there[what]:
            raise ConfigError(f"{one.admin} and {other.admin} cannot be compared: {meaning}")
    left, right = (dict(side["digests"]) for side in (here, there))
    revision = max(left.keys() & right.keys(), default=-1)
    return revision, revision >= 0 and left[revision] == right[revision]


def _rows(client: PoolClient, numbers: dict[str, Any]) -> Iterator[EdgeRow]:
    """All edges, with a bar for who watches at a terminal."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(f"edges of {client.admin}", total=numbers["edges"])
        for page in client.edges():
            yield from page
            progress.advance(task, len(page))


def _overview(numbers: dict[str, Any]) -> Overview:
    return {
        "facts": numbers["facts"],
        "digest": numbers["digest"],
        "instances": numbers["instances"],
    }


def _difference_text(difference: RunDifference) -> str:
    run = difference.run
    text = f"[{run.depth}, {run.depth + run.blocks}) {run.first[:6]}…{run.last[:6]} "
    for instance, planes in difference.has.items():
        text += f" {instance}: {_against(planes)}"
    return text


def _against(what: Mapping[str, tuple[object, object]]) -> str:
    return ", ".join(f"{name} {here} against {there}" for name, (here, there) in what.items())
