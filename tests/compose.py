"""docker-compose.yml read as Docker would, and its services run as local processes instead.

A service's address 172.30.92.N becomes 127.X.92.N, X by process: all of 127.0.0.0/8 is loopback on
Linux, so every service keeps its ports. A container's file system becomes a folder.
"""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "Dockerfile"

NETWORK = "172.30.92."
LOOPBACK = f"127.{2 + os.getpid() % 250}.92."

BUILT_IMAGE = "homing"
"""The one image that is built from this repository, its entry point `homing`."""

PROGRAMS = {
    "homing": [sys.executable, "-m", "extproc"],
    "python": [sys.executable],
    "bash": ["bash"],
    "etcd": [str(Path(sys.executable).with_name("etcd")), "--log-level=warn"],
    "etcdctl": [str(Path(sys.executable).with_name("etcdctl"))],
    "envoy": [str(Path(sys.executable).with_name("envoy")), "--disable-hot-restart"],
}
"""What the images have on their path, as it is started here."""


@dataclass(frozen=True)
class Service:
    """One service of the file."""

    name: str
    fields: dict[str, Any]

    @property
    def image(self) -> str:
        """Name and tag."""
        image: str = self.fields["image"]
        return image

    @property
    def command(self) -> list[str]:
        """The whole command line, the image's entry point included where it is ours."""
        command = list(self.fields.get("command", ()))
        return ["homing", *command] if self.image == BUILT_IMAGE else command

    @property
    def address(self) -> str:
        """Its address in the network."""
        address: str = self.fields["networks"]["homing"]["ipv4_address"]
        return address

    @property
    def mounts(self) -> dict[str, Path]:
        """Path in the container → file of this repository. All are read-only."""
        found = {}
        for volume in self.fields.get("volumes", ()):
            if volume.startswith("./"):
                source, target, mode = volume.split(":")
                assert mode == "ro", f"{self.name}: {volume} must not be written to"
                found[target] = ROOT / source
        return found

    @property
    def data(self) -> dict[str, str]:
        """Path in the container → volume that is written to."""
        named = (v.split(":") for v in self.fields.get("volumes", ()) if not v.startswith("./"))
        return {target: source for source, target in named}

    @property
    def published(self) -> dict[int, int]:
        """Port of the host → port of the container."""
        ports = (entry.rsplit(":", 2) for entry in self.fields.get("ports", ()))
        return {int(host): int(container) for _, host, container in ports}

    @property
    def healthcheck(self) -> list[str]:
        """The command that says whether it can be used; empty where there is none."""
        test: list[str] = self.fields.get("healthcheck", {}).get("test", ["CMD"])
        assert test[0] == "CMD"
        return test[1:]

    @property
    def waits_for(self) -> dict[str, str]:
        """Name of another service → the condition that it must fulfil first."""
        waits = self.fields.get("depends_on", {})
        return {name: entry["condition"] for name, entry in waits.items()}

    def option(self, name: str) -> str:
        """The argument after an option of the command."""
        return self.command[self.command.index(name) + 1]


class Compose:
    """The file."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
        self.services = {
            name: Service(name, fields) for name, fields in self.fields["services"].items()
        }

    @cached_property
    def homings(self) -> list[Service]:
        """The replicas of Homing."""
        return [s for s in self.services.values() if s.command[:2] == ["homing", "serve"]]

    @cached_property
    def engines(self) -> list[Service]:
        """The simulated engines."""
        return [s for s in self.services.values() if s.command[:2] == ["homing", "engine"]]


def build_steps(instruction: str) -> Iterator[list[str]]:
    """The words after each instruction of this kind in the Dockerfile."""
    for line in DOCKERFILE.read_text().splitlines():
        word, *rest = line.split() or [""]
        if word == instruction:
            yield rest


def container(folder: Path, service: Service) -> Path:
    """Lay out the container's files under the folder, addresses replaced. Returns its root."""
    root = folder / service.name
    ((workdir,),) = build_steps("WORKDIR")
    if service.image == BUILT_IMAGE:
        for *sources, target in build_steps("COPY"):
            for source in sources:
                copy = root / workdir.lstrip("/") / target
                copy = copy / source if target.endswith("/") else copy
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.symlink_to(ROOT / source)
    for target, file in service.mounts.items():
        mounted = root / target.lstrip("/")
        mounted.parent.mkdir(parents=True, exist_ok=True)
        mounted.write_text(_local(file.read_text(), service))
    return root


def local_command(command: list[str], service: Service, root: Path) -> list[str]:
    """A command of a container, to be run here."""
    program, *arguments = (_local(word, service) for word in command)
    return [
        *PROGRAMS[program],
        *(str(root / word.lstrip("/")) if word.startswith("/") else word for word in arguments),
    ]


def _local(text: str, service: Service) -> str:
    """Addresses of the network as loopback ones; a container's own are its service's."""
    own = service.address.replace(NETWORK, LOOPBACK)
    return text.replace(NETWORK, LOOPBACK).replace("0.0.0.0", own).replace("127.0.0.1", own)
