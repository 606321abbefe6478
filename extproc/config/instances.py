"""The file that a file discovery reads: a list of instances, as in the configuration."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from extproc.config.checks import check_instances
from extproc.config.load import load_file
from extproc.config.model import Instance, Section
from extproc.config.source import Finding


class ListedInstance(Instance):
    """An instance, and how far it is."""

    state: Literal["starting", "ready", "draining"] = "ready"
    """`starting` takes no requests yet; `draining` no new ones any more."""


class InstanceList(Section):
    """The whole file."""

    instances: tuple[ListedInstance, ...]
    """All instances; none is fine."""


def load_instances(path: Path) -> tuple[ListedInstance, ...]:
    """The instances in the file. Raises ConfigError as `load_config` does."""
    return load_file(path, InstanceList, _check).instances


def _check(read: InstanceList) -> Iterator[Finding]:
    return check_instances(("instances",), read.instances)
