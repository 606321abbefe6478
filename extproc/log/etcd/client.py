"""One connection to etcd, to whichever endpoint answers: TLS, user and password, failing over.

The calls are etcd3aio's. Two things are not: its channel takes IP addresses only and spreads calls
over all endpoints, so that a frozen one would fail every third; and its watch resumes from the
revision in a response's header, which may be ahead of events that were not sent yet.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar

import grpc
import grpc.aio
from etcd3aio import EtcdError, EtcdPermissionDeniedError, EtcdUnauthenticatedError
from etcd3aio._protobuf import WatchRequest, WatchResponse, WatchStub
from etcd3aio.auth import AuthService
from etcd3aio.kv import KVService
from etcd3aio.lease import LeaseService

from extproc.config import EtcdLog, EtcdTls
from extproc.errors import HomingError
from extproc.log.etcd.keys import after

logger = logging.getLogger("homing.log")

T = TypeVar("T")

CALL_TIMEOUT_S = 2.0
"""Of one call; a member that is frozen is left after it."""

SIGN_S = 2.5
"""How often a watch is asked for a sign of life."""

UNANSWERED = 2
"""So many times it is asked in vain before it is given up. Not a time: a process that was frozen
finds that much of it has passed, and nothing wrong."""

QUIET_S = 5.0
"""What did not go wrong for so long is over."""

MAX_MESSAGE_BYTES = 512 * 1024 * 1024
"""Of one answer: a page of the log's largest records fits many times."""


class Away(HomingError):
    """Etcd did not do what it was asked; it may do later, or elsewhere.

    reason: `unreachable`, `denied` (user, password or role), `no_space` (its quota is used up),
    `too_large`, `compacted` (a revision is no longer there) or `other`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Connection:
    """A channel to one endpoint, with etcd's services on it."""

    def __init__(self, channel: grpc.aio.Channel, endpoint: str) -> None:
        self.endpoint = endpoint
        self.channel = channel
        self.kv = KVService(channel, max_attempts=1)
        self.lease = LeaseService(channel, max_attempts=1)
        self.auth = AuthService(channel, max_attempts=1)
        self.closed = False
        self._watch = WatchStub(channel)
        self._token: str | None = None

    def use(self, token: str) -> None:
        """Show this token from here on."""
        self._token = token
        for service in (self.kv, self.lease, self.auth):
            service.set_token(token)

    async def keep_alive(self, lease: int) -> int:
        """Prolong a lease; the seconds that it has now, 0 if it is over."""
        stream = self.lease.keep_alive(lease)
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await stream.read()
        finally:
            stream.cancel()
        if answer is grpc.aio.EOF:
            raise Away("unreachable", "the lease's stream ended")
        return max(int(answer.TTL), 0)

    async def close(self) -> None:
        """End it; calls that are under way fail."""
        self.closed = True
        await self.channel.close()

    async def watch(
        self, prefix: bytes, revision: int, *, puts_only: bool = False
    ) -> AsyncGenerator[WatchResponse, None]:
        """Responses with what changes under the prefix from this revision on, in order.

        Ends only by an error: gRPC's, or Away. Close it when you leave it.
        """
        # A member that lost its cluster's leader would go on, and send nothing.
        metadata = [("hasleader", "true"), *([("token", self._token)] if self._token else [])]
        stream = self._watch.Watch(metadata=metadata)
        unanswered = 0

        async def ask() -> None:
            nonlocal unanswered
            await asyncio.sleep(SIGN_S)
            while unanswered < UNANSWERED:
                await stream.write(WatchRequest(progress_request={}))
                unanswered += 1
                await asyncio.sleep(SIGN_S)
            stream.cancel()

        asking: asyncio.Task[None] | None = None
        try:
            create = {
                "key": prefix,
                "range_end": after(prefix),
                "start_revision": revision,
                "filters": [1] if puts_only else [],  # NODELETE
                "fragment": True,
            }
            await stream.write(WatchRequest(create_request=create))
            asking = asyncio.ensure_future(ask())
            while (response := await stream.read()) is not grpc.aio.EOF:
                unanswered = 0
                if response.compact_revision:
                    raise Away("compacted", "the log's next record is no longer in etcd's history")
                if response.canceled:
                    raise Away("unreachable", response.cancel_reason or "the watch was cancelled")
                yield response
            raise Away("unreachable", "the watch ended")
        finally:
            if asking is not None:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
            stream.cancel()


class Client:
    """The connection that all parts of a log share."""

    def __init__(self, settings: EtcdLog) -> None:
        self._settings = settings
        self._endpoints = list(settings.endpoints)
        # Replicas start at different ones, or all would use the first.
        random.shuffle(self._endpoints)
        self._connection: Connection | None = None
        self._connecting = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._troubles: dict[str, float] = {}

    async def call(self, ask: Callable[[Connection], Awaitable[T]]) -> T:
        """What etcd answers, within CALL_TIMEOUT_S a call. Raises Away."""
        async with self.using() as connection:
            answer = await ask(connection)
        self._settled()
        return answer

    @asynccontextmanager
    async def using(self) -> AsyncIterator[Connection]:
        """The connection. What fails inside is raised as Away, and the next use is elsewhere."""
        async with self._connecting:
            connection = self._connection
            if connection is None:
                connection = await self._connect()
                self._connection = connection
        try:
            yield connection
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: our call or its channel was ended, which gRPC says this way.
            raise self._lost(connection, Away("unreachable", "the call was ended")) from None
        except (EtcdError, grpc.aio.AioRpcError, TimeoutError, Away) as error:
            raise self._lost(connection, explain(error)) from error

    async def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._drop(self._connection)
        await asyncio.gather(*self._closing)

    async def _connect(self) -> Connection:
        endpoint = self._endpoints[0]
        channel: grpc.aio.Channel | None = None
        try:
            credentials = await asyncio.to_thread(_credentials, self._settings.tls)
            channel = _channel(endpoint, credentials, self._settings.tls)
            connection = Connection(channel, endpoint)
            if self._settings.user is not None:
                password = await asyncio.to_thread(_password, self._settings)
                answer = await connection.auth.authenticate(
                    self._settings.user, password, timeout=CALL_TIMEOUT_S
                )
                connection.use(answer.token)
        except (EtcdError, grpc.aio.AioRpcError, TimeoutError, OSError, ValueError) as error:
            if channel is not None:
                await channel.close()
            self._endpoints.append(self._endpoints.pop(0))
            away = explain(error)
            self._warn(away, endpoint)
            raise away from error
        return connection

    def _drop(self, connection: Connection) -> None:
        if self._connection is connection:
            self._connection = None
            self._endpoints.append(self._endpoints.pop(0))
            task = asyncio.ensure_future(connection.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _lost(self, connection: Connection, away: Away) -> Away:
        """Something failed on the connection: the next use may be elsewhere."""
        if away.reason in ("unreachable", "denied"):
            self._drop(connection)
        self._warn(away, connection.endpoint)
        return away

    def _warn(self, away: Away, endpoint: str) -> None:
        """Say what is wrong, once for each reason until it has not been seen for a while."""
        if away.reason == "compacted":
            return
        if away.reason not in self._troubles:
            logger.warning("etcd at %s: %s; goes on without, and tries again", endpoint, away)
        self._troubles[away.reason] = monotonic()

    def _settled(self) -> None:
        """Something was answered: what went wrong long ago is over."""
        if self._troubles:
            now = monotonic()
            for reason, last in list(self._troubles.items()):
                if now - last > QUIET_S:
                    del self._troubles[reason]
                    logger.info("etcd is well again (it was %s)", reason)


def explain(error: Exception) -> Away:
    """The error as one of ours."""
    if isinstance(error, Away):
        return error
    if isinstance(error, EtcdUnauthenticatedError | EtcdPermissionDeniedError):
        return Away("denied", str(error))
    if isinstance(error, grpc.aio.AioRpcError):
        detail = error.details() or error.code().name
        for reason, part in _DETAILS:
            if part in detail:
                return Away(reason, detail)
        return Away("unreachable" if error.code() in _LOST else "other", detail)
    if isinstance(error, OSError | ValueError) and not isinstance(error, TimeoutError):
        return Away("unreachable", str(error))
    return Away("unreachable", str(error) or "no answer in time")


_LOST = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    )
)
"""How gRPC says that a connection is gone; INTERNAL from a stream that was being written to."""

_DETAILS = (
    ("no_space", "database space exceeded"),
    ("too_large", "request is too large"),
    ("compacted", "has been compacted"),
    ("denied", "invalid user ID or password"),
    ("denied", "authentication is not enabled"),
    ("denied", "permission denied"),
    ("denied", "user name is empty"),
)
"""What etcd's errors are told apart by, besides their codes (etcd 3.5, api/v3rpc/rpctypes)."""


def _credentials(tls: EtcdTls | str | None) -> grpc.ChannelCredentials | None:
    """Files are read each time, so that a new certificate is used. Raises OSError."""
    if not isinstance(tls, EtcdTls):
        return None
    return grpc.ssl_channel_credentials(_read(tls.ca), _read(tls.key), _read(tls.cert))


def _channel(
    endpoint: str, credentials: grpc.ChannelCredentials | None, tls: EtcdTls | str | None
) -> grpc.aio.Channel:
    """Not connected yet."""
    options: list[tuple[str, Any]] = [
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.enable_retries", 0),
    ]
    if credentials is None:
        return grpc.aio.insecure_channel(endpoint, options=options)
    if isinstance(tls, EtcdTls) and tls.name:
        options.append(("grpc.ssl_target_name_override", tls.name))
    return grpc.aio.secure_channel(endpoint, credentials, options=options)


def _read(file: Path | None) -> bytes | None:
    return None if file is None else file.read_bytes()


def _password(settings: EtcdLog) -> str:
    file = settings.password_file
    return file.read_text().removesuffix("\n") if file else ""
