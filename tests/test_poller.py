"""gRPC's way of reading is chosen in time, and not against the operator."""

import subprocess
import sys

import pytest

from extproc.poller import CHOICE, VARIABLE

CHOOSE = "from extproc.poller import read_where_it_is_waited_for as choose; choose()"
SERVE = "from extproc.cli import main; main(['serve', '--config', 'none.yaml'])"
TELL = f"import os; print(os.environ.get('{VARIABLE}'))"


def told(program: str, **variables: str) -> tuple[str, str]:
    """What is chosen after the program, and what was said on stderr."""
    command = [sys.executable, "-c", f"{program}\n{TELL}"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    return run.stdout.strip(), run.stderr


@pytest.mark.parametrize(
    ("program", "variables", "chosen"),
    [
        (CHOOSE, {}, CHOICE),
        (CHOOSE, {VARIABLE: "tcp_rcv_lowat"}, "tcp_rcv_lowat"),
        ("import grpc; " + CHOOSE, {}, "None"),
        (CHOOSE + "; import grpc", {}, CHOICE),
    ],
    ids=["nothing said", "the operator chose", "too late", "gRPC knows the choice"],
)
def test_what_is_chosen(program: str, variables: dict[str, str], chosen: str) -> None:
    assert told(program, **variables) == (chosen, "")


def test_serve_chooses_before_it_imports_grpc() -> None:
    chosen, complaint = told(SERVE)
    assert chosen == CHOICE
    assert "none.yaml" in complaint
