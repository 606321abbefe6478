"""The command `homing`. Imports what a command needs when it runs, so that help is quick."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from extproc import __version__
from extproc.errors import ConfigError, HomingError

FAILED = 2
"""Exit status where the command line or the configuration is wrong."""

ConfigFile = Annotated[Path, Parameter(name=("--config", "-c"))]

app = App(
    name="homing",
    help="""Sends each turn of an LLM conversation home: to the engine instance whose KV cache
    holds its prefix. An Envoy external processor (ext_proc).

    Begin with `homing demo`; then write a homing.yaml, and `homing check` it.""",
    version=__version__,
    help_format="markdown",
)


@app.command
def serve(*, config: ConfigFile) -> None:
    """Serve ext_proc to Envoy until SIGTERM or Ctrl-C; then let open requests end.

    Parameters
    ----------
    config
        The configuration, a YAML file.
    """
    from extproc.config import load_config
    from extproc.poller import read_where_it_is_waited_for

    read_where_it_is_waited_for()
    settings = load_config(config)
    from extproc.serve import run

    run(settings, config)


@app.command
def check(*, config: ConfigFile) -> None:
    """Say what is wrong with a configuration and where, or what it would run.

    Loads every tokenizer and chat template, connects to nothing. Exit status 2: something is
    wrong, a line a finding on stderr.

    Parameters
    ----------
    config
        The configuration, a YAML file.
    """
    from extproc.check import describe
    from extproc.config import load_config

    print(describe(load_config(config), config), end="")


@app.command(name="envoy-config")
def envoy_config(*, config: ConfigFile) -> None:
    """Print a complete Envoy bootstrap for a configuration, as YAML.

    Parameters
    ----------
    config
        The configuration, a YAML file; the section `envoy` has what only this command reads.
    """
    from extproc.config import load_config

    settings = load_config(config)
    try:
        from extproc.envoy import bootstrap_yaml
    except ImportError as missing:
        raise ConfigError(
            f"envoy-config needs the extra `envoy`: pip install 'homing[envoy]' ({missing.name})"
        ) from missing
    print(bootstrap_yaml(settings), end="")


@app.command
def parity(requests: Path, *, config: ConfigFile, engine: str, model: str | None = None) -> int:
    """Compare the tokens that Homing computes with those of a live engine, request by request.

    Prints a line for each request that differs, then the counts. Nothing of a request's text is
    printed. Exit status 1: one differs.

    Parameters
    ----------
    requests
        A file of JSON lines, each an object with `path` and `request` (the body).
    config
        The configuration, a YAML file.
    engine
        The engine's URL, such as http://10.0.0.7:8000.
    model
        Which of the configuration's models; the first if not given.
    """
    import asyncio

    from extproc.config import load_config
    from extproc.parity import run

    return asyncio.run(run(load_config(config), model, engine, requests))


app.command(
    "extproc.index_command:index",
    name="index",
    help="Look into the prefix index of a running Homing.",
)


@app.command(name="config-schema")
def config_schema() -> None:
    """Print the JSON schema of the configuration, for editors and linters."""
    import json

    from extproc.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


app.command(
    "extproc.register:register",
    name="register",
    help="Register an engine in etcd, as its sidecar: it joins, drains and leaves by itself.",
)
app.command(
    "extproc.demo.demo:demo",
    name="demo",
    help="Show turns coming home: simulated engines, Homing and a real Envoy on this machine.",
)
app.command(
    "extproc.replay.command:run_replay",
    name="replay",
    help="Replay a trace in virtual time and compare routing policies.",
)
app.command(
    "extproc.demo.engine:engine",
    name="engine",
    help="Run one simulated engine: vLLM's API, prefix cache and metrics, no GPU.",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. arguments: the process's own where not given."""
    try:
        status = app(
            arguments, exit_on_error=False, result_action="return_int_as_exit_code_else_zero"
        )
        sys.stdout.flush()
    except CycloptsError:  # already printed
        return FAILED
    except HomingError as error:
        print(error, file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(status)
