"""The I/O shell: gRPC server, health, admin port; wires all other parts."""

from extproc.serve.app import App, run

__all__ = ["App", "run"]
