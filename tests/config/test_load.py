from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from extproc.config import Config, Drain, EnvoyTls, Limits, MemoryLog, TlsFiles, load_config
from extproc.errors import ConfigError
from tests.config.cases import certificates

SMALL = """
pools:
  - name: main
    models: [{name: llama, tokenizer: tok}]
    instances: [{endpoint: "10.0.0.7:8000"}]
"""

FULL = """
listen: "[::1]:9002"
tls: {cert: tls.crt, key: tls.key, client_ca: ca.crt}
admin: unix:/run/homing/admin.sock
log: {kind: memory}
tracing: {otlp_endpoint: "http://127.0.0.1:4317", sample_ratio: 0}
explain: true
limits: {max_body_bytes: 1000, pick_timeout_ms: 50}
drain: {delay_s: 0, timeout_s: 1.5}
pools:
  - name: main
    block_size: 32
    capacity_blocks: 5000
    prefill_rate: 20000
    models:
      - name: qwen
        aliases: &names [q, "3"]
        tokenizer: tok
        chat_template: tok/chat.jinja
    instances:
      - {endpoint: "10.0.0.7:8000", name: one, capacity_blocks: 7000}
      - {endpoint: "[fe80:0::1]:8000"}
envoy:
  listen: 0.0.0.0:80
  admin: 127.0.0.1:9901
  pickers: ["127.0.0.1:9002", "unix:/run/homing/1.sock"]
  tls: {ca: ca.crt, name: homing.example, cert: envoy.crt, key: envoy.key}
  request_body_mode: FULL_DUPLEX_STREAMED
  buffer_limit_bytes: 5000000
  message_timeout_ms: 500
  idle_timeout_s: 60
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    (tmp_path / "tok" / "chat.jinja").write_text("")
    for name, pem in certificates().items():
        (tmp_path / name).write_bytes(pem)
    return tmp_path


def load(folder: Path, text: str) -> Config:
    file = folder / "homing.yaml"
    file.write_text(text)
    return load_config(file)


def test_a_pool_is_all_that_a_file_needs(folder: Path) -> None:
    config = load(folder, SMALL)
    assert config.listen == "127.0.0.1:9002"
    assert config.tls is None
    assert config.admin is None
    assert config.tracing is None
    assert config.explain is False
    assert config.log == MemoryLog(kind="memory")
    assert config.limits == Limits(max_body_bytes=32 * 1024 * 1024, pick_timeout_ms=150)
    assert config.drain == Drain(delay_s=5, timeout_s=20)
    assert config.envoy.tls == EnvoyTls()
    (pool,) = config.pools
    assert (pool.block_size, pool.prefill_rate, pool.capacity_blocks) == (16, 16_000.0, 32_768)
    assert pool.models[0].aliases == ()
    assert pool.models[0].chat_template is None


def test_every_field_is_read(folder: Path) -> None:
    config = load(folder, FULL)
    assert config.listen == "[::1]:9002"
    assert config.tls == TlsFiles(
        cert=folder / "tls.crt", key=folder / "tls.key", client_ca=folder / "ca.crt"
    )
    assert config.admin == "unix:/run/homing/admin.sock"
    assert config.tracing is not None
    assert config.tracing.otlp_endpoint == "http://127.0.0.1:4317"
    assert config.tracing.sample_ratio == 0.0
    assert config.explain is True
    assert (config.limits.max_body_bytes, config.limits.pick_timeout_ms) == (1000, 50)
    assert (config.drain.delay_s, config.drain.timeout_s) == (0, 1.5)
    (pool,) = config.pools
    assert (pool.name, pool.block_size, pool.prefill_rate) == ("main", 32, 20_000.0)
    assert (pool.models[0].name, pool.models[0].aliases) == ("qwen", ("q", "3"))
    envoy = config.envoy
    assert (envoy.listen, envoy.admin) == ("0.0.0.0:80", "127.0.0.1:9901")
    assert envoy.pickers == ("127.0.0.1:9002", "unix:/run/homing/1.sock")
    assert (envoy.tls.ca, envoy.tls.name) == (folder / "ca.crt", "homing.example")
    assert (envoy.tls.cert, envoy.tls.key) == (folder / "envoy.crt", folder / "envoy.key")
    assert envoy.request_body_mode == "FULL_DUPLEX_STREAMED"
    assert (envoy.buffer_limit_bytes, envoy.message_timeout_ms) == (5_000_000, 500)
    assert envoy.idle_timeout_s == 60


@pytest.mark.parametrize("words", ["off", "self-signed"])
def test_tls_can_be_a_word(folder: Path, words: str) -> None:
    assert load(folder, f"listen: 0.0.0.0:9002\ntls: {words}\n{SMALL}").tls == words


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "127.8.0.1:1", "[::1]:1", "unix:/run/1"])
def test_what_only_this_machine_reaches_needs_no_tls(folder: Path, listen: str) -> None:
    assert load(folder, f'listen: "{listen}"\n{SMALL}').tls is None


def test_a_key_with_a_passphrase_is_named_and_not_shown(folder: Path) -> None:
    key = load_pem_private_key(certificates()["tls.key"], None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (folder / "tls.key").write_bytes(locked)
    with pytest.raises(ConfigError, match=r"tls\.key: .*tls\.key has a passphrase; write it"):
        load(folder, f"tls: {{cert: tls.crt, key: tls.key}}\n{SMALL}")


def test_paths_are_relative_to_the_file_that_names_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    (model,) = load(folder, FULL).pools[0].models
    assert model.tokenizer == folder / "tok"
    assert model.chat_template == folder / "tok" / "chat.jinja"


def test_absolute_paths_stay(folder: Path) -> None:
    (model,) = load(folder, SMALL.replace(": tok", f": {folder}/tok")).pools[0].models
    assert model.tokenizer == folder / "tok"


def test_an_instance_without_a_name_is_called_by_its_endpoint(folder: Path) -> None:
    one, other = load(folder, FULL).pools[0].instances
    assert (one.id, one.endpoint) == ("one", "10.0.0.7:8000")
    assert (other.id, other.endpoint) == ("[fe80::1]:8000", "[fe80::1]:8000")


def test_an_instance_has_the_capacity_of_its_pool_unless_it_says_its_own(folder: Path) -> None:
    (pool,) = load(folder, FULL).pools
    assert [pool.capacity_of(instance) for instance in pool.instances] == [7000, 5000]
    (pool,) = load(folder, SMALL).pools
    assert pool.capacity_of(pool.instances[0]) == 32_768


def test_one_endpoint_can_serve_two_pools(folder: Path) -> None:
    second = SMALL.removeprefix("\npools:\n").replace("main", "other").replace("llama", "qwen")
    config = load(folder, SMALL + second)
    assert len({i.endpoint for pool in config.pools for i in pool.instances}) == 1


def test_an_anchor_repeats_a_value(folder: Path) -> None:
    second = "  - {name: b, models: [{name: x, tokenizer: tok}], instances: *engines}\n"
    config = load(folder, SMALL.replace("instances: ", "instances: &engines ") + second)
    assert config.pools[0].instances == config.pools[1].instances


def test_a_byte_order_mark_is_no_content(folder: Path) -> None:
    assert load(folder, "\ufeff" + SMALL.lstrip()).pools[0].name == "main"


def test_json_is_a_configuration_too(folder: Path) -> None:
    config = load(folder, SMALL)
    file = folder / "again.json"
    file.write_text(config.model_dump_json(exclude_unset=True))
    assert load_config(file) == config


def test_a_configuration_does_not_change(folder: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(folder, SMALL).listen = "127.0.0.1:1"  # type: ignore[misc]
