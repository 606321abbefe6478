"""`homing register`: a sidecar of an engine, which registers it in etcd."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from extproc import telemetry
from extproc.config import EtcdLog, EtcdTls, ListedInstance
from extproc.errors import ConfigError


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """The etcd of the Homings' log.

    Parameters
    ----------
    etcd
        A member, host:port; give the option again for each.
    prefix
        What all keys begin with (`log.prefix`).
    tls
        Speak TLS, with public roots where no other is given.
    ca
        Roots of its certificates, PEM.
    cert
        The certificate to show, PEM.
    key
        Its private key, PEM.
    user
        The user to log in as.
    password_file
        File with the user's password.
    """

    etcd: list[str]
    prefix: str = "/homing"
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password_file: Path | None = None

    def settings(self) -> EtcdLog:
        """As the configuration has them. Raises ValidationError."""
        secured = self.tls or self.ca or self.cert
        return EtcdLog(
            kind="etcd",
            endpoints=tuple(self.etcd),
            prefix=self.prefix,
            tls=EtcdTls(ca=self.ca, cert=self.cert, key=self.key) if secured else "off",
            user=self.user,
            password_file=self.password_file,
        )


def register(
    endpoint: str,
    *,
    pool: str,
    options: EtcdOptions,
    name: str | None = None,
    rank: int | None = None,
    metrics: str | None = None,
    health: str = "/health",
    drain_s: Annotated[float, Parameter(name="--drain-s")] = 20.0,
) -> None:
    """Register an engine in etcd, for pools with `discovery: {kind: etcd}`, until SIGTERM.

    Then no new requests come, and the engine is gone after `--drain-s`, or at a second SIGTERM.

    Parameters
    ----------
    endpoint
        Where the engine listens: ip:port or [ipv6]:port.
    pool
        The pool that it belongs to.
    name
        What to call it; the endpoint if not given.
    rank
        Which of the data-parallel ranks behind the endpoint it is.
    metrics
        URL of its metrics; http://ENDPOINT/metrics if not given.
    health
        Path that answers 200 once the engine is ready; "" for one that is ready at once.
    drain_s
        Seconds from SIGTERM to the end.

    Raises ConfigError where an option cannot be used, or the extra `etcd` is missing.
    """
    try:
        entry = ListedInstance.model_validate(
            {"endpoint": endpoint, "name": name, "rank": rank, "metrics": metrics}
        )
        settings = options.settings()
    except ValidationError as error:
        raise ConfigError(
            "\n".join(f"{one['loc'][0]}: {one['msg']}" for one in error.errors())
        ) from None
    try:
        from extproc.engines.registration import Registration, keep
    except ImportError as missing:
        raise ConfigError(
            f"register needs the extra `etcd`: pip install 'homing[etcd]' ({missing.name})"
        ) from missing

    async def work() -> None:
        url = f"http://{entry.endpoint}{health}" if health else None
        await keep(Registration(settings, pool, entry, url), drain_s)

    telemetry.configure()
    asyncio.run(work())
