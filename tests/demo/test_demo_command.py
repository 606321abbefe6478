"""`homing demo` as a user runs it: a process of its own, whole."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.demo.test_stack import complete, is_free

pytestmark = pytest.mark.slow


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The command, with its temporary folder in `folder`; terminated if a test leaves it."""
    with subprocess.Popen(
        [sys.executable, "-m", "extproc", "demo", *options],
        env=os.environ | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def addresses(folder: Path) -> list[str]:
    """Everything that the running demo listens on."""
    (file,) = folder.glob("homing-*/homing.yaml")
    config = YAML(typ="safe").load(file)
    engines = [instance["endpoint"] for instance in config["pools"][0]["instances"]]
    envoy = config["envoy"]
    return [config["listen"], config["admin"], envoy["listen"], envoy["admin"], *engines]


def lines_until(process: subprocess.Popen[str], start: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith(start):
            return lines
    raise AssertionError(f"no line starts with {start!r}: {lines} {process.communicate()[1]}")


def test_the_demo_brings_every_turn_home_and_beats_round_robin(tmp_path: Path) -> None:
    with demo(tmp_path) as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "\x1b" not in out
    ratios = {
        name: float(ratio)
        for name, ratio in re.findall(r"^(round robin|homing) .* ([\d.]+)% ", out, re.MULTILINE)
    }
    assert ratios["homing"] > ratios["round robin"] + 10
    assert len(re.findall(r"^(?:shop|review|sql) \d ", out, re.MULTILINE)) == 2 * 4 * 5
    assert out.splitlines()[-1].startswith("Every turn came home: each of the 16 later turns")
    assert list(tmp_path.iterdir()) == []


def test_turns_that_alternate_between_replicas_come_home_and_so_they_do_when_one_is_killed(
    tmp_path: Path,
) -> None:
    with demo(tmp_path, "--replicas", "2", "--log", "etcd", "--turns", "4") as process:
        out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    before, killed, after = out.partition("SIGKILL of homing-1\n")
    assert killed
    row = re.compile(r"^((?:shop|review|sql) \d) +\d+  (homing-[12]) ", re.MULTILINE)
    pickers: dict[str, list[str]] = {}
    for conversation, picker in row.findall(before):
        pickers.setdefault(conversation, []).append(picker)
    assert len(pickers) == 4
    for picked in pickers.values():
        assert len(picked) == 4
        assert sum(a != b for a, b in pairwise(picked)) >= 2
    assert {picker for _, picker in row.findall(after)} == {"homing-2"}
    assert len(row.findall(after)) == 2 * 4
    assert out.splitlines()[-1].startswith("Every turn came home: each of the 20 later turns")
    assert list(tmp_path.iterdir()) == []


def test_replicas_that_share_nothing_are_refused(tmp_path: Path) -> None:
    with demo(tmp_path, "--replicas", "2") as process:
        _, err = process.communicate()
    assert (process.returncode, err.strip()[-14:]) == (2, "add --log etcd")


def test_keep_leaves_a_stack_that_answers_until_ctrl_c(tmp_path: Path) -> None:
    with demo(tmp_path, "--turns", "2", "--conversations", "1", "--keep") as process:
        lines = lines_until(process, "· Ctrl-C")
        assert any("curl -i http://127.0.0.1:" in line for line in lines)
        (url,) = re.findall(r"Envoy listens on (http://[\d.:]+)", "\n".join(lines))
        assert complete(url)[0].startswith("engine-")
        listening = addresses(tmp_path)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert all(is_free(address) for address in listening)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["· starting 3", "· starting Envoy", "Homing: "])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_time_ends_every_process(
    tmp_path: Path, when: str, number: signal.Signals
) -> None:
    with demo(tmp_path) as process:
        lines_until(process, when)
        listening = addresses(tmp_path)
        process.send_signal(number)
        _, err = process.communicate()
    assert (process.returncode, err) == (130, "")
    assert all(is_free(address) for address in listening)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_tokenizer_is_named(tmp_path: Path) -> None:
    with demo(tmp_path, "--tokenizer", str(tmp_path / "none")) as process:
        _, err = process.communicate()
    assert process.returncode == 1
    assert f"{tmp_path / 'none'} is not a folder" in err
    assert "Traceback" not in err
