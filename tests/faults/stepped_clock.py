"""`homing` with a wall clock that steps: `python -m tests.faults.stepped_clock FILE ARGUMENTS…`.

The file has the seconds by which the clock is off, and may change at any time. What reads a clock
that nobody sets (`time.monotonic`) is left alone. So is gRPC: it makes its deadlines from Python's
clock, and counts them down by the machine's, which here stays as it is.
"""

import datetime
import sys
import time
from pathlib import Path

from extproc.cli import main


def install(offset: Path) -> None:
    """Let Python's wall clocks read the file."""
    true_time = time.time

    def off() -> float:
        try:
            return float(offset.read_text() or 0)
        except FileNotFoundError:
            return 0.0

    def stepped() -> float:
        caller = sys._getframe(1).f_globals["__name__"]
        return true_time() if caller.startswith("grpc") else true_time() + off()

    class SteppedDatetime(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> "SteppedDatetime":
            return cls.fromtimestamp(stepped(), tz)

        @classmethod
        def utcnow(cls) -> "SteppedDatetime":
            return cls.fromtimestamp(stepped(), datetime.UTC).replace(tzinfo=None)

    time.time = stepped
    time.time_ns = lambda: int(stepped() * 1e9)
    datetime.datetime = SteppedDatetime  # type: ignore[misc]


if __name__ == "__main__":
    install(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
