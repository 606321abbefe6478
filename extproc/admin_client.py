"""Asks the admin port of a running Homing."""

import json
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlencode
from urllib.request import urlopen

from extproc.errors import ConfigError

PATIENCE_S = 10.0


def fetch_index(admin: str, pool: str | None, **query: str) -> str:
    """What the admin port says of a pool's index, ending in a line feed.

    pool: None for the first. Raises ConfigError where the port or the pool is not there.
    """
    if not admin.startswith(("http://", "https://")):
        raise ConfigError(f'"{admin}" is no URL; write http://host:port')
    base = admin.rstrip("/")
    if pool is None:
        pool = json.loads(_get(f"{base}/pools"))[0]["name"]
    text = _get(f"{base}/pools/{quote(pool, safe='')}/index?{urlencode(query)}")
    if query.get("dump") != "tree":
        text = json.dumps(json.loads(text), indent=2)
    return text.rstrip("\n") + "\n"


def _get(url: str) -> str:
    try:
        with urlopen(url, timeout=PATIENCE_S) as answer:  # noqa: S310 - http or https, checked
            return str(answer.read().decode())
    except HTTPError as error:
        raise ConfigError(f"{url}: {error.code} {error.read().decode(errors='replace')}") from None
    except (URLError, OSError) as error:
        raise ConfigError(f"{url}: {getattr(error, 'reason', error)}") from None
