"""The I/O shell: gRPC server, health, admin port; wires all other parts."""

from extproc.serve.app import App
from extproc.serve.run import run

__all__ = ["App", "run"]
