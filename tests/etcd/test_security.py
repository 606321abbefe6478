"""TLS, certificates, users and roles; and what a replica does without them."""

import re
import shlex
from collections.abc import Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from extproc.config import EtcdTls
from extproc.index import Joined
from tests.etcd.replicas import Replica, alike, replica, until
from tests.etcd.server import Files, cluster
from tests.index.chains import A, held

PAGE = Path(__file__).parents[2] / "docs" / "replication.md"


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca = trustme.CA()
        folder.mkdir()
        self._ca.cert_pem.write_to_path(str(folder / "ca.crt"))

    def issue(self, name: str, *identities: str, days: int = 1) -> Files:
        """Written over what was there under this name. days: until it expires."""
        until = datetime.now(UTC) + timedelta(days=days)
        leaf = self._ca.issue_cert(*identities, not_after=until)
        cert, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        cert.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        leaf.private_key_pem.write_to_path(str(key))
        return Files(cert, key, self._folder / "ca.crt")


async def works(*replicas: Replica) -> None:
    replicas[0].append(Joined(A, 16), held(A, "xyz"))
    await replicas[0].settled()
    await alike(*replicas)


async def test_tls_and_a_certificate_of_ones_own(tmp_path: Path) -> None:
    issue = Authority(tmp_path / "tls").issue
    server, client = issue("etcd", "127.0.0.1", "etcd.internal"), issue("homing", "homing")
    tls = EtcdTls(ca=client.ca, cert=client.cert, key=client.key)
    async with (
        cluster(tmp_path / "etcd", server=server, client=client, mutual=True) as etcd,
        replica(etcd, tls=tls) as one,
        replica(etcd, tls=tls.model_copy(update={"name": "etcd.internal"})) as other,
    ):
        await works(one, other)


@pytest.mark.parametrize("lacking", ["nothing", "a certificate", "the right roots"])
async def test_without_what_etcd_asks_for_a_replica_starts_cold_and_says_why(
    lacking: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issue = Authority(tmp_path / "tls").issue
    other = Authority(tmp_path / "other").issue("x", "x")
    server, client = issue("etcd", "127.0.0.1"), issue("homing", "homing")
    tls = {
        "nothing": None,
        "a certificate": EtcdTls(ca=client.ca),
        "the right roots": EtcdTls(ca=other.ca, cert=client.cert, key=client.key),
    }[lacking]
    async with (
        cluster(tmp_path / "etcd", server=server, client=client, mutual=True) as etcd,
        replica(etcd, tls=tls, warm_timeout_s=0.5) as one,
    ):
        one.append(Joined(A, 16))
        await until(lambda: one.number("homing_log_failures_total", reason="unreachable") > 2)
    said = [text for text in caplog.messages if "goes on without" in text]
    assert len(said) == 1
    assert any("start cold" in text for text in caplog.messages)


async def test_a_certificate_that_expired_is_replaced_on_disk_and_all_goes_on(
    tmp_path: Path,
) -> None:
    issue = Authority(tmp_path / "tls").issue
    server, client = issue("etcd", "127.0.0.1"), issue("homing", "homing", days=-1)
    good = issue("root", "root")
    tls = EtcdTls(ca=client.ca, cert=client.cert, key=client.key)
    async with (
        cluster(tmp_path / "etcd", server=server, client=good, mutual=True) as etcd,
        replica(etcd, tls=tls, warm_timeout_s=0.2) as one,
    ):
        one.append(Joined(A, 16), held(A, "xyz"))
        await until(lambda: one.number("homing_log_failures_total", reason="unreachable") > 2)
        issue("homing", "homing")
        await one.settled()
        assert one.facts


def role() -> Iterator[list[str]]:
    """The commands of the page, without `etcdctl`."""
    block = re.search(r"<!-- the role.*?```sh\n(.*?)```", PAGE.read_text(), re.S)
    assert block
    for line in block[1].splitlines():
        command, *arguments = shlex.split(line)
        assert command == "etcdctl"
        yield ["right" if "cat etcd-password" in a else a for a in arguments]


@asynccontextmanager
async def guarded(folder: Path):  # type: ignore[no-untyped-def]
    """An etcd that asks who one is, with the page's role."""
    async with cluster(folder) as etcd:
        for command in role():
            await etcd.ctl(*command)
        await etcd.enable_auth()
        yield etcd


def password(tmp_path: Path, text: str) -> dict[str, object]:
    file = tmp_path / "etcd-password"
    file.write_text(f"{text}\n")
    return {"user": "homing", "password_file": file}


async def test_the_role_of_the_page_is_enough_for_everything_and_no_more(tmp_path: Path) -> None:
    settings = {**password(tmp_path, "right"), "snapshot_bytes": 300}
    async with guarded(tmp_path / "etcd") as etcd:
        async with replica(etcd, **settings) as one, replica(etcd, **settings) as other:
            for number in range(2):
                one.append(*(held(A, f"{number} {i}") for i in range(20)))
                await works(one, other)
                await until(
                    lambda number=number: (
                        sum(
                            each.number("homing_log_snapshots_total", result="written")
                            for each in (one, other)
                        )
                        > number
                    )
                )
            for each in (one, other):
                assert each.number("homing_log_snapshots_total", result="failed") == 0
                assert each.number("homing_log_failures_total", reason="denied") == 0
        status, _, said = await etcd.try_ctl("put", "/other", "x", user="homing:right")
        assert status != 0
        assert "permission denied" in said


async def test_a_wrong_password_is_told_once_and_a_right_one_is_used_when_it_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = password(tmp_path, "wrong")
    async with (
        guarded(tmp_path / "etcd") as etcd,
        replica(etcd, **settings, warm_timeout_s=0.2) as one,
    ):
        one.append(Joined(A, 16), held(A, "xyz"))
        await until(lambda: one.number("homing_log_failures_total", reason="denied") > 2)
        assert sum("denied" in text for text in caplog.messages) == 1
        assert "wrong" not in caplog.text
        password(tmp_path, "right")
        await one.settled()
        assert one.facts


async def test_a_token_that_is_no_longer_good_is_replaced(tmp_path: Path) -> None:
    """etcd forgets its tokens when it starts again."""
    settings = password(tmp_path, "right")
    async with guarded(tmp_path / "etcd") as etcd, replica(etcd, **settings) as one:
        await works(one)
        await etcd.kill()
        await etcd.start()
        await works(one)
