"""The virtual rack: its machines, their LAN, and the directory they live in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from tests.lab.images import RELEASES, Image, ensure_image
from tests.lab.machine import Machine, Spec, base_of
from tests.lab.network import Network
from tests.lab.process import LabError
from tests.lab.warm import TAG, booted_disk

DEFAULT_DIRECTORY = Path(".lab")
DEFAULT_RELEASE = "debian-13"

SPECS = {
    spec.name: spec
    for spec in (
        Spec("rack", variant="rack", host_number=10, memory_mib=2048, cpus=2),
        Spec("neighbour", variant="neighbour", host_number=20, memory_mib=768, cpus=1),
        Spec("nas", variant="nas", host_number=30, memory_mib=768, cpus=1),
    )
}

NOT_ON_TRIAL = ("neighbour", "nas")
"""Machines whose own boot proves nothing, and which therefore start as copies of booted ones."""


class Lab:
    """A lab in a directory. Use it as a context manager to have its power cut at the end.

        with Lab.create(Path(".lab"), release="debian-13") as lab:
            lab.start()
            lab.rack.succeed("true")

    `Lab.create` clears away what a killed run left behind; `Lab.open` joins a lab that runs.
    """

    def __init__(self, directory: Path, releases: dict[str, str]) -> None:
        self.directory = directory.absolute()
        self.releases = releases
        self.network = Network(self.directory)
        self.machines = {
            name: Machine(self.directory / name, SPECS[name], self._image(name, release))
            for name, release in releases.items()
        }

    def _image(self, name: str, release: str) -> Image:
        """The image a machine's disk stands on; for a machine without one, today's recipe's."""
        variant = SPECS[name].variant
        base = base_of(self.directory / name)
        return Image(release, variant, base) if base else ensure_image(release, variant)

    @classmethod
    def create(
        cls,
        directory: Path = DEFAULT_DIRECTORY,
        *,
        release: str = DEFAULT_RELEASE,
        machines: Iterable[str] = tuple(SPECS),
    ) -> Lab:
        """A new lab with nothing running; what lived in that directory is destroyed first.

        `release` is the rack's; its neighbours always run the default release, because they are
        not what is being proved. Raises LabError for unknown names or images that cannot be built.
        """
        releases = _releases(machines, release)
        if (directory / "lab.json").exists():
            destroy(directory)
        directory.mkdir(parents=True, exist_ok=True)
        lab = cls(directory, releases)
        lab._record()
        return lab

    @classmethod
    def open(cls, directory: Path = DEFAULT_DIRECTORY) -> Lab:
        """The lab that lives in a directory.

        Raises LabError when there is none.
        """
        record = directory / "lab.json"
        if not record.exists():
            raise LabError(
                f"there is no lab in {directory}: start one with `python -m tests.lab up`"
            )
        return cls(directory, json.loads(record.read_text()))

    def with_machines(self, machines: Iterable[str], release: str = DEFAULT_RELEASE) -> Lab:
        """This lab with more machines; those it has keep their release and their disks."""
        lab = Lab(self.directory, {**_releases(machines, release), **self.releases})
        lab._record()
        return lab

    def _record(self) -> None:
        record = self.directory / "lab.json"
        record.write_text(json.dumps(self.releases, indent=2) + "\n")

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.power_off()

    def __getattr__(self, name: str) -> Machine:
        """`lab.rack`, `lab.neighbour`, `lab.nas`."""
        machines: dict[str, Machine] = self.__dict__.get("machines", {})
        if name in machines:
            return machines[name]
        raise AttributeError(f"this lab has no machine named {name}")

    def machine(self, name: str) -> Machine:
        """A machine by its name.

        Raises LabError when this lab has none of that name.
        """
        if name not in self.machines:
            raise LabError(f"this lab has no {name}, only {', '.join(self.machines)}")
        return self.machines[name]

    def __iter__(self) -> Iterator[Machine]:
        return iter(self.machines.values())

    def start(self, *names: str, warm: Collection[str] = NOT_ON_TRIAL) -> None:
        """Start the named machines (all of them without names) and wait until each takes a login.

        A new machine named in `warm` is a copy of a booted one; the others boot.
        """
        self.network.start(list(SPECS))
        chosen = [self.machines[name] for name in names] or list(self)

        def bring_up(machine: Machine) -> None:
            if machine.name in warm and not machine.has_disk():
                machine.start_as_copy(booted_disk(machine.spec, machine.image), TAG)
            else:
                machine.start()
                machine.wait_for_boot()
            machine.wait_for_login()

        with ThreadPoolExecutor(len(chosen)) as pool:
            list(pool.map(bring_up, chosen))
        self.write_ssh_config()

    def write_ssh_config(self) -> Path:
        """Write `ssh_config`, with a `Host NAME-lan` for each machine that has had power."""
        path = self.directory / "ssh_config"
        path.write_text("".join(machine.ssh_settings() for machine in self if machine.has_port()))
        return path

    def power_off(self) -> None:
        """Cut every machine's power and stop the LAN; disks and logs stay for a look."""
        for machine in self:
            machine.crash()
        self.network.stop()

    def destroy(self) -> None:
        """Power off and delete everything the lab wrote."""
        self.power_off()
        destroy(self.directory)


def destroy(directory: Path) -> None:
    """Stop what runs in a lab's directory and delete it; needs no image and no valid record."""
    directory = directory.absolute()
    for name in SPECS:
        Machine.power_off_leftover(directory / name)
    Network(directory).stop()
    shutil.rmtree(directory, ignore_errors=True)


def _releases(machines: Iterable[str], rack_release: str) -> dict[str, str]:
    if rack_release not in RELEASES:
        raise LabError(f"{rack_release} is not one of {', '.join(RELEASES)}")
    unknown = set(machines) - set(SPECS)
    if unknown:
        raise LabError(f"{', '.join(sorted(unknown))} is not one of {', '.join(SPECS)}")
    return {
        name: rack_release if name == "rack" else DEFAULT_RELEASE
        for name in SPECS
        if name in set(machines)
    }
