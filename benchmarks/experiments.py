"""The three drawbacks of plain stickiness, and what else a policy must stand: experiments.

Each replays the product's own index and policies in virtual time, on fresh seeds, and answers with
figures and a plot of docs/policy.md:

growth    one hot tenant on one host
loss      one of eight instances is killed, later two come
sweep     locality against load: the rate of requests up to what the pool can do
crowd     many come for one prefix at once
overload  more live conversations than the caches hold, with admission and without
hints     what it would be worth to know when conversations come back

    python benchmarks/experiments.py [--json] [--quick] [--only NAME …]
        [--plots docs/plots] [--page docs/policy.md]
        [--traces DIR]  # the folder with mooncake_conversation.jsonl.gz, for sweep and hints
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from _experiments import crowd, growth, hints, loss, overload, sweep
from _experiments.result import Result

from extproc.replay.plots import svg

EXPERIMENTS: dict[str, Callable[[bool, Path | None], Result]] = {
    "growth": growth.run,
    "loss": loss.run,
    "sweep": sweep.run,
    "crowd": crowd.run,
    "overload": overload.run,
    "hints": hints.run,
}
"""By name: short or not, the folder with traces → what it answers."""


def fill(page: str, name: str, table: str) -> str:
    """The page with the table between the experiment's marks; unchanged where it has none."""
    marks = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}{table}\n{found[2]}", page)


def main() -> None:
    """Run them one after the other."""
    parser = argparse.ArgumentParser(description="The experiments of docs/policy.md.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="short runs, some seconds in all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these experiments")
    parser.add_argument("--plots", type=Path, help="write an SVG file each into this folder")
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    parser.add_argument("--traces", type=Path, help="folder with the published traces")
    args = parser.parse_args()
    figures: dict[str, float] = {}
    for name in args.only or EXPERIMENTS:
        start = time.monotonic()
        result = EXPERIMENTS[name](args.quick, args.traces)
        figures |= result.figures(name)
        if args.plots:
            args.plots.mkdir(parents=True, exist_ok=True)
            (args.plots / f"{name}.svg").write_text(svg(result.draw(), name))
        if args.page:
            args.page.write_text(fill(args.page.read_text(), name, result.table()))
        if not args.json:
            print(f"{name} ({time.monotonic() - start:.0f} s)\n{result.table()}\n")
    if args.json:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
