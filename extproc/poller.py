"""Which of gRPC's two ways of reading from sockets serves: chosen before gRPC is imported.

Since 1.80 gRPC reads in threads of its own, which hand what they read to the thread that waits for
it. The way of before reads in the waiting thread: half the context switches of a request, a tenth
of its CPU and a fifth of what it adds to the latency less (`benchmarks/overhead.py`, alternating).
"""

import os
import sys
from importlib.metadata import version

VARIABLE = "GRPC_EXPERIMENTS"
CHOICE = "-event_engine_listener"

_LAST_KNOWN = (1, 85)
"""Later versions may have lost the choice, and would complain of it on stderr."""


def read_where_it_is_waited_for() -> None:
    """Choose the way of before, where there is a choice; what the operator chose stays."""
    known = tuple(map(int, version("grpcio").split(".")[:2])) <= _LAST_KNOWN
    if known and "grpc" not in sys.modules:
        os.environ.setdefault(VARIABLE, CHOICE)
