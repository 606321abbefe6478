"""Asks the admin port of a running Homing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from extproc.errors import ConfigError
from extproc.index import EdgeRow

PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class PoolClient:
    """One pool of one Homing. Every method raises ConfigError where there is no answer."""

    admin: str
    url: str

    def index(self) -> dict[str, Any]:
        """The index in numbers."""
        found: dict[str, Any] = json.loads(_ask(f"{self.url}/index"))
        return found

    def digests(self) -> dict[str, Any]:
        """Recent digests, by revision."""
        found: dict[str, Any] = json.loads(_ask(f"{self.url}/index/digests"))
        return found

    def edges(self) -> Iterator[list[EdgeRow]]:
        """All edges, a page an item."""
        at = 1
        while at:
            page = json.loads(_ask(f"{self.url}/index/edges?from={at}"))
            yield page["edges"]
            at = page["next"]

    def clear(self, instance: str) -> int:
        """Forget what an instance holds; how many blocks those were."""
        answer = _ask(f"{self.url}/index/clear", json.dumps({"instance": instance}).encode())
        return int(json.loads(answer)["blocks"])


def pool_client(admin: str, pool: str | None) -> PoolClient:
    """pool: None for the first. Raises ConfigError where the port is not there."""
    if not admin.startswith(("http://", "https://")):
        raise ConfigError(f'"{admin}" is no URL; write http://host:port')
    base = admin.rstrip("/")
    if pool is None:
        pool = json.loads(_ask(f"{base}/pools"))[0]["name"]
    return PoolClient(base, f"{base}/pools/{quote(pool, safe='')}")


def _ask(url: str, body: bytes | None = None) -> str:
    request = Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked
    try:
        with urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310 - http or https, checked
            return str(answer.read().decode())
    except HTTPError as error:
        said = error.read().decode(errors="replace").strip()
        raise ConfigError(f"{url}: {error.code} {said}") from None
    except (URLError, OSError) as error:
        raise ConfigError(f"{url}: {getattr(error, 'reason', error)}") from None
