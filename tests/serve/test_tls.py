"""TLS between real gRPC clients, a real Envoy, and Homing."""

import asyncio
import logging
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc
import pytest
import trustme
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.config import Config, EnvoyTls, TlsFiles
from extproc.envoy import bootstrap_yaml
from extproc.errors import ConfigError
from extproc.serve import App
from extproc.serve.reload import Reloader
from tests.envoy_config.configs import config as envoy_config
from tests.envoy_config.running import Envoy, running_envoy, upstreams
from tests.serve.certificates import Secret, chain
from tests.serve.proxy import LONG, ask, chat, config, sample

CA = trustme.CA()
CLIENTS = trustme.CA()
NAME = "homing.example"


@pytest.fixture
def secret(tmp_path: Path) -> Secret:
    made = Secret(tmp_path / "tls")
    made.put(CA.issue_cert(NAME), CLIENTS)
    return made


@asynccontextmanager
async def serving(settings: Config) -> AsyncIterator[tuple[App, int]]:
    """A ready Homing, and its port."""
    app = App(settings)
    port = await app.start()
    try:
        yield app, port
    finally:
        await app.stop()


def channel(
    port: int,
    name: str = NAME,
    own: trustme.LeafCert | None = None,
    root: bytes = CA.cert_pem.bytes(),
) -> grpc.aio.Channel:
    """A client that trusts one root; own: its certificate."""
    pair = (own.private_key_pem.bytes(), chain(own)) if own else (None, None)
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        grpc.ssl_channel_credentials(root, *pair),
        options=[
            ("grpc.ssl_target_name_override", name),
            # Connections of one target are shared otherwise, and nothing new would be seen.
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


async def is_served(client: grpc.aio.Channel) -> bool:
    """Whether the client gets through to Homing."""
    request = health_pb2.HealthCheckRequest()
    async with client:
        code = await health_pb2_grpc.HealthStub(client).Check(request).code()
    assert code in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    return code is grpc.StatusCode.OK


async def test_requests_are_picked_for_over_tls(secret: Secret) -> None:
    async with serving(config(tls=secret.files)) as (_, port), channel(port) as client:
        first, name = await ask(client, chat(LONG))
        second, again = await ask(client, chat(LONG + "And then?"))
        assert again == name
        await first.end()
        await second.end()


async def test_who_speaks_plaintext_to_tls_is_not_served(secret: Secret) -> None:
    async with serving(config(tls=secret.files)) as (_, port):
        assert not await is_served(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        assert await is_served(channel(port))


async def test_a_renewed_certificate_is_shown_to_new_connections_and_cuts_none(
    secret: Secret, tmp_path: Path
) -> None:
    async with serving(config(tls=secret.files)) as (app, port), channel(port) as client:
        reloader = Reloader(app, tmp_path / "homing.yaml")
        open_before, name = await ask(client, chat(LONG))
        secret.put(CA.issue_cert("renewed.example"))
        await reloader.look()
        await reloader.look()
        assert await is_served(channel(port, "renewed.example"))
        assert not await is_served(channel(port, NAME))
        assert sample(app, "homing_reloads_total", what="certificate", result="taken") == 1
        await open_before.answer(200)
        await open_before.end()
        after, again = await ask(client, chat(LONG))
        assert again == name
        await after.end()


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"tls.crt": b"nonsense"}, "tls.cert: .* is no certificate in PEM"),
        ({"tls.key": CA.issue_cert("x").private_key_pem.bytes()}, "tls.key: .* does not belong"),
        ({"ca.crt": b""}, "tls.client_ca: .* is no certificate in PEM"),
    ],
    ids=["certificate", "key", "clients' roots"],
)
async def test_a_certificate_that_cannot_be_used_is_refused_and_the_old_one_stays(
    secret: Secret,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    broken: dict[str, bytes],
    said: str,
) -> None:
    async with serving(config(tls=secret.mutual)) as (app, port):
        reloader = Reloader(app, tmp_path / "homing.yaml")
        good = {file.name: file.read_bytes() for file in app.tls.files} if app.tls else {}
        secret.put_bytes({**good, **broken})
        for _ in range(4):
            await reloader.look()
        assert sample(app, "homing_reloads_total", what="certificate", result="refused") == 1
        (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert re.search(said, record.getMessage())
        assert await is_served(channel(port, own=CLIENTS.issue_cert("envoy")))
        secret.put(CA.issue_cert("renewed.example"), CLIENTS)
        await reloader.look()
        await reloader.look()
        client = channel(port, "renewed.example", own=CLIENTS.issue_cert("envoy"))
        assert await is_served(client)


async def test_a_change_is_not_taken_over_before_it_has_rested(
    secret: Secret, tmp_path: Path
) -> None:
    async with serving(config(tls=secret.files)) as (app, port):
        reloader = Reloader(app, tmp_path / "homing.yaml")
        for number in range(3):
            secret.put(CA.issue_cert(f"{number}.example"))
            await reloader.look()
            assert await is_served(channel(port, NAME))
        await reloader.look()
        assert await is_served(channel(port, "2.example"))


async def test_only_clients_of_the_ca_are_served_where_there_is_one(
    secret: Secret, tmp_path: Path
) -> None:
    async with serving(config(tls=secret.mutual)) as (app, port):
        ours, strangers = CLIENTS.issue_cert("envoy"), trustme.CA()
        assert await is_served(channel(port, own=ours))
        assert not await is_served(channel(port))
        assert not await is_served(channel(port, own=strangers.issue_cert("envoy")))
        secret.put(CA.issue_cert(NAME), strangers)
        await Reloader(app, tmp_path / "homing.yaml").reload()
        assert not await is_served(channel(port, own=ours))
        assert await is_served(channel(port, own=strangers.issue_cert("envoy")))


async def test_a_self_signed_certificate_is_new_at_each_start() -> None:
    shown = []
    for _ in range(2):
        async with serving(config(tls="self-signed")) as (app, port):
            pem = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
            assert await is_served(channel(port, "homing", root=pem.encode()))
            assert not await is_served(channel(port, "homing"))
            certificate = x509.load_pem_x509_certificate(pem.encode())
            expiry = sample(app, "homing_certificate_expiry_timestamp_seconds")
            assert expiry == certificate.not_valid_after_utc.timestamp()
            shown.append(certificate.public_key())
    assert shown[0] != shown[1]


async def test_a_certificate_that_cannot_be_used_at_the_start_is_an_error(tmp_path: Path) -> None:
    files = TlsFiles(cert=tmp_path / "tls.crt", key=tmp_path / "tls.key")
    with pytest.raises(ConfigError, match=r"tls\.cert: .*tls\.crt cannot be read: No such file"):
        App(config(tls=files))


@asynccontextmanager
async def behind_envoy(
    server: TlsFiles | str, envoy: EnvoyTls, folder: Path
) -> AsyncIterator[tuple[Envoy, aiohttp.ClientSession]]:
    """Homing with TLS, a real Envoy that meets it as told, and a client of Envoy's."""
    async with upstreams("a") as (engine,):
        settings = envoy_config([engine.endpoint], listen="127.0.0.1:0").model_copy(
            update={"tls": server, "explain": True}
        )
        async with serving(settings) as (_, port):
            options = settings.envoy.model_copy(
                update={"tls": envoy, "pickers": (f"127.0.0.1:{port}",)}
            )
            written = bootstrap_yaml(settings.model_copy(update={"envoy": options}))
            async with (
                running_envoy(written, folder) as running,
                aiohttp.ClientSession(running.url) as http,
            ):
                yield running, http


async def why(http: aiohttp.ClientSession) -> str | None:
    async with http.get("/v1/models") as answer:
        assert answer.status == 200
        return answer.headers.get("x-homing-why")


async def test_envoy_meets_a_self_signed_homing_without_being_told_more(tmp_path: Path) -> None:
    async with behind_envoy("self-signed", EnvoyTls(), tmp_path) as (envoy, http):
        await envoy.until("cluster.homing.membership_healthy", 1)
        assert await why(http) == "load (other_path)"
        assert await envoy.statistic("cluster.homing.ssl.handshake")


@pytest.mark.parametrize(
    ("name", "clients", "met"),
    [
        (NAME, CLIENTS, True),
        (None, CLIENTS, True),
        ("x.example", CLIENTS, False),
        (NAME, CA, False),
    ],
    ids=["right", "any name", "another name", "a client of another CA"],
)
async def test_envoy_and_homing_verify_each_other(
    secret: Secret, tmp_path: Path, name: str | None, clients: trustme.CA, met: bool
) -> None:
    own = clients.issue_cert("envoy")
    files = {"ca.pem": CA.cert_pem.bytes(), "envoy.crt": chain(own)}
    for file, pem in {**files, "envoy.key": own.private_key_pem.bytes()}.items():
        (tmp_path / file).write_bytes(pem)
    tls = EnvoyTls(
        ca=tmp_path / "ca.pem",
        name=name,
        cert=tmp_path / "envoy.crt",
        key=tmp_path / "envoy.key",
    )
    async with behind_envoy(secret.mutual, tls, tmp_path) as (envoy, http):
        if met:
            await envoy.until("cluster.homing.membership_healthy", 1)
        else:
            async with asyncio.timeout(20):
                while not await envoy.statistic("cluster.homing.health_check.failure"):
                    await asyncio.sleep(0.02)
            assert not await envoy.statistic("cluster.homing.health_check.success")
        assert (await why(http) is not None) is met
