"""Every benchmark runs, says what it measures, and prints one JSON object."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("[!_]*.py"))


def test_there_are_benchmarks() -> None:
    assert SCRIPTS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_prints_one_object_of_figures(script: str) -> None:
    command = [sys.executable, f"benchmarks/{script}", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parent, timeout=580)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert isinstance(figures, dict)
    assert any(isinstance(value, (int, float)) for value in figures.values()), figures
