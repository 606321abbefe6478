import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from extproc import __version__
from extproc.cli import app, main
from extproc.demo.engine import DEMO_TOKENIZER

COMMANDS = (
    "check",
    "config-schema",
    "demo",
    "engine",
    "envoy-config",
    "parity",
    "register",
    "replay",
    "serve",
)

RIGHT = f"""
listen: 127.0.0.1:9002
limits: {{pick_timeout_ms: 75}}
pools:
  - name: main
    models:
      - {{name: demo-model, aliases: [demo], tokenizer: {DEMO_TOKENIZER}}}
    instances:
      - {{endpoint: "10.0.0.7:8000", name: gpu-a, capacity_blocks: 5000}}
      - endpoint: "[fd00::8]:8000"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "homing.yaml"
    file.write_text(RIGHT)
    return file


def homing(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    run = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-m", "extproc", *arguments],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )
    assert isinstance(run, subprocess.CompletedProcess)
    return run


def test_help_names_every_command_and_what_it_does() -> None:
    run = homing("--help")
    assert run.returncode == 0
    described = re.findall(r"^│ ([a-z][a-z-]+)  +(\S.*)│$", run.stdout, re.MULTILINE)
    assert sorted(name for name, _ in described) == sorted([*COMMANDS, "index"])
    assert all(len(text.strip()) > 15 for _, text in described)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_that_describes_every_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: homing {command}")
    for option in app[command].assemble_argument_collection(parse_docstring=True):
        if option.show:
            assert option.names[0] in shown
            assert (option.parameter.help or "").strip(), option.names


def test_help_loads_nothing_that_takes_time() -> None:
    program = (
        "import sys\nfrom extproc.cli import main\nmain(['--help'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = set(run.stderr.split())
    assert "cyclopts" in loaded
    assert not loaded & {"aiohttp", "grpc", "pydantic", "tokenizers", "envoy_data_plane", "jinja2"}


def test_version_is_that_of_the_package() -> None:
    assert homing("--version").stdout.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serv"], 'Did you mean "serve"?'),
        (["serve"], "--config"),
        (["check", "--config"], "--config"),
        (["check", "--config", "homing.yaml", "--fast"], "--fast"),
        (["engine", "--port", "x"], "--port"),
    ],
)
def test_a_wrong_command_line_is_explained(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert said in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize("command", ["check", "envoy-config", "serve"])
def test_every_command_that_reads_a_configuration_names_what_is_wrong(
    command: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(RIGHT.replace("10.0.0.7:8000", "10.0.0.7").replace("limits", "limit"))
    assert main([command, "--config", str(config)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        f'{config}:3: limit: unknown key; did you mean "limits"?',
        f'{config}:9: pools[0].instances[0].endpoint: "10.0.0.7" has no port;'
        " write ip:port, such as 10.0.0.7:8000",
    ]


def test_check_says_what_would_run(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for fact in (
        f"{config} is right",
        "127.0.0.1:9002",
        "picks 75 ms",
        "pool main: 1 model, 2 instances, blocks of 16 tokens",
        "model demo-model = demo",
        f"tokenizer {DEMO_TOKENIZER}",
        "instance gpu-a at 10.0.0.7:8000: 5,000 blocks",
        "instance [fd00::8]:8000: 32,768 blocks",
    ):
        assert fact in shown.out
    assert re.search(r'a chat that says "Hello" is \d\d tokens', shown.out)


NEEDS_OVERRIDE = "proxy.mode_override is off"
OF_ALIASES = "- answers to aliases of demo-model keep its own name"
REWRITES = RIGHT.replace("aliases: [demo]", "aliases: [demo], rewrite_aliases: true")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RIGHT, {NEEDS_OVERRIDE}),
        (REWRITES, {NEEDS_OVERRIDE, OF_ALIASES}),
        (REWRITES + "proxy: {mode_override: true}", set()),
        (REWRITES + "proxy: {response_body_mode: STREAMED}", set()),
        (REWRITES + "envoy: {request_body_mode: FULL_DUPLEX_STREAMED}", set()),
    ],
    ids=["no rewriting", "rewriting", "on", "all answers are shown", "Envoy does not follow it"],
)
def test_check_tells_what_needs_mode_override_where_it_is_off(
    text: str, told: set[str], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(text)
    assert main(["check", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    assert {note for note in (NEEDS_OVERRIDE, OF_ALIASES) if note in shown} == told


def test_check_names_every_model_that_cannot_be_loaded(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{}")
    config.write_text(RIGHT.replace("models:", "models:\n      - {name: other, tokenizer: broken}"))
    assert main(["check", "--config", str(config)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith(f"{config}: pools[0].models[0]: {tmp_path / 'broken'}")


def test_check_tells_of_a_model_whose_chats_have_no_template(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").mkdir()
    shutil.copy(DEMO_TOKENIZER / "tokenizer.json", tmp_path / "plain")
    config.write_text(RIGHT.replace(str(DEMO_TOKENIZER), "plain"))
    assert main(["check", "--config", str(config)]) == 0
    assert "chats are routed by load: no_chat_template" in capsys.readouterr().out


def test_envoy_config_without_its_extra_says_what_to_install(config: Path) -> None:
    program = (
        "import sys\nsys.modules['envoy_data_plane'] = None\nfrom extproc.cli import main\n"
        f"sys.exit(main(['envoy-config', '--config', {str(config)!r}]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "pip install 'homing[envoy]'" in run.stderr


def test_a_reader_that_has_seen_enough_is_no_error(config: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "extproc", "envoy-config", "--config", config],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config-schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["pools"]


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_by_itself_when_it_is_asked_to(stop: signal.Signals, config: Path) -> None:
    config.write_text(RIGHT.replace("127.0.0.1:9002", "127.0.0.1:0") + "drain: {delay_s: 0}\n")
    with subprocess.Popen(
        [sys.executable, "-m", "extproc", "serve", "--config", config],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        log = ""
        while "ready" not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
        process.send_signal(stop)
        log += process.stderr.read()
    assert process.returncode == 0, log
    assert "Traceback" not in log


def test_serve_names_an_address_that_is_taken(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(RIGHT.replace("127.0.0.1:9002", listen))
        run = homing("serve", "--config", str(config))
    assert run.returncode == 2
    assert f"listen: cannot bind {listen}" in run.stderr
    assert "Traceback" not in run.stderr
