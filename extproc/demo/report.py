"""What the demo prints: a line a turn as it ends, then the comparison. Plain lines where no
terminal reads them."""

from collections.abc import Sequence
from statistics import fmean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from extproc.demo.player import Turn

PLAIN_WIDTH = 140
"""Columns where no terminal has a say, as in a CI log."""

WARM, COLD = 0.9, 0.5
"""Shares of cached tokens from which a turn is shown in green, and below which in yellow."""


class Report:
    """Prints to one console."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(highlight=False)
        if not console.is_terminal:
            console.width = PLAIN_WIDTH
        self._console = console

    def progress(self, text: str) -> None:
        """What is being done."""
        self._console.print(Text(f"· {text}", style="dim"))

    def opening(self, title: str, pickers: bool = False) -> None:
        """The head of a run's table. pickers: whether its turns say which Homing picked."""
        self._console.print()
        self._console.print(Text(title, style="bold"))
        names = ("conversation", "turn", "instance", "prompt", "cached", "", "TTFT ms", "why")
        self._line(_columns(*names, picker="picked by" if pickers else ""), style="bold dim")

    def turn(self, turn: Turn) -> None:
        """One turn, when it has ended."""
        share = turn.cached_tokens / turn.prompt_tokens
        style = "green" if share >= WARM else "yellow" if share < COLD else ""
        ttft = "–" if turn.ttft_ms is None else f"{turn.ttft_ms:.0f}"
        tokens = (f"{turn.prompt_tokens:,}", f"{turn.cached_tokens:,}", f"{share:.0%}")
        columns = (turn.conversation, str(turn.number), turn.served, *tokens, ttft, turn.why)
        self._line(_columns(*columns, picker=turn.picker), style)

    def comparison(self, runs: Sequence[tuple[str, Sequence[Turn]]]) -> None:
        """Hit ratio and mean TTFT of each run, in all and after the first turns, which are cold."""
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="bold dim")
        table.add_column("")
        names = ("prompt tokens", "cached tokens", "hit ratio", "mean TTFT ms", "later turns ms")
        for name in names:
            table.add_column(name, justify="right")
        for name, turns in runs:
            prompt, cached = sum_tokens(turns)
            later = [turn for turn in turns if turn.number > 1]
            table.add_row(
                name,
                f"{prompt:,}",
                f"{cached:,}",
                f"{cached / prompt:.1%}",
                _mean_ttft(turns),
                _mean_ttft(later),
            )
        self._console.print()
        self._console.print(table)
        self.progress("TTFT: of the streamed turns; the client cannot see it in the others (–).")

    def event(self, text: str) -> None:
        """What happened between two turns."""
        self._console.print(Text(text, style="bold yellow"))

    def verdict(self, came_home: bool, text: str) -> None:
        """The last sentence."""
        self._console.print()
        self._console.print(Text(text, style="bold green" if came_home else "bold red"))

    def plain(self, text: str) -> None:
        """Text to copy: never wrapped, cut or coloured."""
        self._console.print(Text(text), soft_wrap=True)

    def _line(self, text: str, style: str) -> None:
        self._console.print(Text(text, style=style), no_wrap=True, overflow="ellipsis")


def sum_tokens(turns: Sequence[Turn]) -> tuple[int, int]:
    """(prompt tokens, cached tokens) over all turns."""
    return sum(turn.prompt_tokens for turn in turns), sum(turn.cached_tokens for turn in turns)


def _mean_ttft(turns: Sequence[Turn]) -> str:
    seen = [turn.ttft_ms for turn in turns if turn.ttft_ms is not None]
    return f"{fmean(seen):.0f}" if seen else "–"


def _columns(
    conversation: str,
    number: str,
    served: str,
    prompt: str,
    cached: str,
    share: str,
    ttft: str,
    why: str,
    *,
    picker: str,
) -> str:
    picked = f"  {picker:<9}" if picker else ""
    return (
        f"{conversation:<12} {number:>4}{picked}  {served:<10} {prompt:>7} {cached:>7} {share:>4} "
        f"{ttft:>8}  {why}"
    )
