"""The report: one page that needs nothing else, with what the replay saw."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from extproc.cli import main
from extproc.replay.baselines import BASELINES
from extproc.replay.curves import SHARES, Curves, curves
from extproc.replay.engine import Job
from extproc.replay.formats import SharedPrefix
from extproc.replay.lab import Setting, replay
from extproc.replay.outcome import Outcome
from extproc.replay.plots import svg, ttft
from extproc.replay.report import page
from extproc.replay.traffic import Request
from extproc.terms import PackedKeys

NONE = PackedKeys(b"")


def outcome(*jobs: tuple[int, float, float, float, int, int]) -> Outcome:
    """Of (engine, arrival, prefill's begin, its end, prompt, cached) each, two engines."""
    made = Outcome(2)
    for engine, at, begin, end, prompt, cached in jobs:
        job = Job(Request(at, 1, 0, NONE, prompt, 1, NONE), at, cached, end - begin, end, end)
        made.placed(engine, at)
        made.first_token(job, engine, cached)
        made.ended(job, engine, end)
    made.finish([1.0, 1.0])
    return made


@pytest.fixture(scope="module")
def drawn() -> tuple[dict[str, Outcome], dict[str, Curves]]:
    setting = Setting(instances=4, capacity_tokens=100_000)
    traffic = {
        name: SharedPrefix(groups=12, requests=200, rate=10.0, seed=1)
        for name in ("round-robin", "longest-prefix")
    }
    outcomes = {name: replay(each, BASELINES[name](), setting) for name, each in traffic.items()}
    return outcomes, {name: curves(each) for name, each in outcomes.items()}


def test_a_prefill_is_load_on_its_engine_in_each_window_that_it_touches() -> None:
    found = curves(outcome((0, 0, 0, 3, 10, 0), (1, 1, 2, 3, 10, 0), (0, 1, 3, 4, 10, 0)), 2)
    assert found.ends.tolist() == [2.0, 4.0]
    assert found.load.tolist() == [[1.0, 1.0], [0.0, 0.5]]


def test_an_engine_that_got_nothing_has_no_load() -> None:
    assert not curves(outcome((0, 0, 0, 3, 10, 0))).load[1].any()


def test_the_hit_ratio_of_a_window_is_that_of_the_tokens_that_arrived_in_it() -> None:
    found = curves(
        outcome((0, 0, 0, 1, 100, 0), (0, 1, 1, 2, 300, 300), (0, 3.5, 3.6, 4, 50, 5)), 4
    )
    assert found.hit[0] == 0.0
    assert found.hit[1] == 1.0
    assert np.isnan(found.hit[2])
    assert found.hit[3] == 0.1


def test_the_distribution_goes_from_the_shortest_to_the_longest() -> None:
    found = curves(outcome(*((0, at, at, at + 1 + at / 10, 10, 0) for at in range(11))))
    assert found.ttft[0] == 1.0
    assert found.ttft[-1] == 2.0
    assert np.interp(0.5, SHARES, found.ttft) == pytest.approx(1.5)


def test_the_load_over_all_windows_is_what_engines_worked(
    drawn: tuple[dict[str, Outcome], dict[str, Curves]],
) -> None:
    for name, each in drawn[0].items():
        seen = drawn[1][name]
        seconds = seen.load.sum() * (seen.ends[1] - seen.ends[0])
        assert seconds == pytest.approx(sum(each.prefill_s))
        assert seen.load.max() <= 1 + 1e-9


class Links(HTMLParser):
    """Collects what a browser would load or run, and every id."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe"):
            self.outside.append(tag)
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(
                ("#", "data:")
            ):
                self.outside.append(value or "")


@pytest.fixture(scope="module")
def made(drawn: tuple[dict[str, Outcome], dict[str, Curves]]) -> str:
    summaries = {name: each.summary() for name, each in drawn[0].items()}
    return page("a <trace>", {"instances": "4"}, summaries, drawn[1])


def test_the_page_loads_nothing_and_runs_nothing(made: str) -> None:
    links = Links()
    links.feed(made)
    assert links.outside == []
    assert "@import" not in made
    assert "url(http" not in made


def test_every_id_of_the_page_is_there_once_and_every_reference_has_one(made: str) -> None:
    links = Links()
    links.feed(made)
    assert len(links.ids) > 20
    assert sorted(links.ids) == sorted(set(links.ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', made)) <= set(links.ids)


def test_the_page_has_the_table_best_first_and_the_best_figures_marked(made: str) -> None:
    rows = re.findall(r"<tr><td>([^<]+)</td>(.*)</tr>", made)
    assert [name for name, _ in rows] == ["longest-prefix", "round-robin"]
    assert rows[0][1].startswith('<td class="best">')
    assert not rows[1][1].startswith('<td class="best">')


def test_a_trace_s_name_is_text_and_not_markup(made: str) -> None:
    assert "a &lt;trace&gt;" in made
    assert "<trace>" not in made


def test_the_plots_are_whole_svg_and_name_every_policy(made: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", made, re.DOTALL)
    assert len(plots) == 3
    for plot in plots:
        ElementTree.fromstring(plot)
        assert "round-robin" in plot
        assert "longest-prefix" in plot


def test_the_same_curves_give_the_same_plot_to_the_byte(
    drawn: tuple[dict[str, Outcome], dict[str, Curves]],
) -> None:
    assert svg(ttft(drawn[1]), "one") == svg(ttft(drawn[1]), "one")


def test_the_command_writes_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, html = tmp_path / "turns.jsonl", tmp_path / "report.html"
    trace.write_text("[[200, 60], [40, 30]]\n" * 30)
    arguments = ["replay", str(trace), "--policy", "priced", "--instances", "3", "--html"]
    assert main([*arguments, str(html)]) == 0
    text = html.read_text()
    assert "turns.jsonl" in text
    assert '<tr class="own"><td>priced</td>' in text
    assert "<dt>instances</dt><dd>3</dd>" in text
    assert "priced" in capsys.readouterr().out  # the table is printed all the same


WITHOUT = """
import sys
sys.modules["matplotlib"] = None
from extproc.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_without_matplotlib_the_command_says_what_to_install_before_it_replays(
    tmp_path: Path,
) -> None:
    trace = tmp_path / "turns.jsonl"
    trace.write_text("[[200, 60], [40, 30]]\n")
    command = [sys.executable, "-c", WITHOUT, "replay", str(trace)]
    done = subprocess.run(
        [*command, "--html", str(tmp_path / "r.html")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "--html needs the extra `report`: pip install 'homing[report]'" in done.stderr
    assert not (tmp_path / "r.html").exists()
    plain = subprocess.run(
        [*command, "--policy", "priced"], capture_output=True, text=True, timeout=60
    )
    assert plain.returncode == 0, plain.stderr
