"""Everything about one program of ours that systemd runs, as data.

A capability declares its programs; `holdfast.service.units` derives the texts of their units, and
`operations.program` places the files and settles the units. For example::

    Program(
        service=Service(name="echo", unit="holdfast-echo.service", user="echo", tier="T1"),
        description="Holdfast: the echo",
        command=("/usr/bin/echo-server", "--socket", "/run/holdfast/holdfast-echo/echo.sock"),
        runtime="holdfast/holdfast-echo",
        restart="always",
        isolated=True,
        relaxed=(Directive("MemoryDenyWriteExecute", "no", "it compiles what it repeats"),),
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import ClassVar, Literal

from facts.places import SYSTEM
from holdfast.artefact import Archive
from holdfast.doors import Door
from holdfast.python_environment import PythonEnvironment
from holdfast.sandbox import Directive, sandbox
from holdfast.secrets import Secret
from holdfast.settings import Service
from holdfast.shipping import path_of

Words = tuple[str, ...]
"""A command, a word each. ``%`` and ``$`` mean in it what they mean to systemd."""

PROXY = "/usr/sbin/haproxy"
"""The distribution's HAProxy: behind each door of a program without a network, and each router."""

PROXY_FILES = Directive("LimitNOFILE", "65536", "two for each connection that it may hold")
"""What every proxy sets for itself."""

TUNABLE = frozenset(
    {
        *("AllowedCPUs", "CPUWeight", "LimitMEMLOCK", "LimitNOFILE", "MemoryMin", "MemorySwapMax"),
        *("OOMScoreAdjust", "KillMode", "KillSignal", "RemainAfterExit", "RestartMaxDelaySec"),
        *("RestartSteps", "RuntimeDirectoryPreserve"),
    }
)
"""What a program may set for itself: its resources, and how it starts and ends. All else may widen
its sandbox, and is written as a relaxation with its reason."""


@dataclass(frozen=True)
class File:
    """A file of a program, of root; everyone may read it, so it holds no secret."""

    path: str
    text: str
    read_at_start: bool = True
    """The program is restarted when the file changes."""


@dataclass(frozen=True)
class Credential:
    """A secret that root alone may read, and that systemd hands to the program."""

    name: str
    """The program finds it as ``%d/<name>``."""
    path: str
    text: Callable[[Callable[[str], Secret]], str]
    """Its text, by what reads a secret of that name; so the declaration holds no secret."""


@dataclass(frozen=True)
class UnixSocket:
    """A Unix socket that systemd holds for a program, and the one user who may connect."""

    path: str
    user: str
    dependency: Literal["Requires", "BindsTo"] = "Requires"
    """What its program does when it goes: `BindsTo` ends the program in every case."""
    is_open: ClassVar[bool] = True


@dataclass(frozen=True)
class Slice:
    """A slice of a program's own: memory and CPU time are shared out between slices first."""

    name: str
    description: str
    lines: tuple[Directive, ...]


@dataclass(frozen=True)
class Timer:
    """When a program that does its work and ends is started."""

    often: str
    """In words, such as ``every five minutes``."""
    lines: tuple[Directive, ...]


@dataclass(frozen=True)
class Proxied:
    """How callers come from a program's doors to its Unix socket: by a proxy for each door."""

    doors: tuple[Door, ...]
    socket: str
    """Where the program listens; only its own user may connect."""
    configuration: str
    """The beginning of the path of each proxy's configuration; the door's name follows."""
    posted: tuple[str, ...] = ()
    """The paths that may be posted, exactly; empty: every one, and every path may be read."""
    read: tuple[str, ...] = ()
    """The paths that may be read by all callers."""
    read_here: tuple[str, ...] = ()
    """The paths that may be read from this host too."""
    may_be_held: bool = False
    """Whether each proxy has a socket by which root keeps callers out for a while."""

    def configuration_of(self, door: Door) -> str:
        """The path of the configuration of a door's proxy."""
        return f"{self.configuration}{door.name}.cfg"


@dataclass(frozen=True)
class Program:
    """One program of ours that systemd runs.

    Raises:
        ValueError: a relaxation gives no reason, or a line of `tuned` is none of `TUNABLE`.
    """

    service: Service
    description: str
    command: Words
    documentation: str = ""
    kind: Literal["exec", "notify", "oneshot"] = "exec"
    """When it counts as started: it runs, it says so itself, or it has done its work and ended."""
    source: ModuleType | None = None
    """The module of `holdfast.host_programs` that the command runs; it is placed on the host."""
    packages: tuple[str, ...] = ()
    """Distribution packages that it needs, beside those that its other fields imply."""
    packages_read: tuple[File, ...] = ()
    """Files that its packages read while they are installed."""
    archive: Archive | None = None
    python: PythonEnvironment | None = None
    before: tuple[Words, ...] = ()
    """What must succeed before it is started."""
    ready: tuple[Words, ...] = ()
    """What must succeed before it counts as started: that what its callers ask is answered."""
    environment: Mapping[str, str] = field(default_factory=dict)
    credentials: tuple[Credential, ...] = ()
    files: tuple[File, ...] = ()
    reads: tuple[str, ...] = ()
    """Paths that it reads at start and that others place, such as a model."""
    runtime: str = ""
    """Its folder below /run."""
    runtime_mode: str = "0700"
    state: str = ""
    """Its folder below /var/lib, with mode 700."""
    cache: str = ""
    """Its folder below /var/cache, with mode 700."""
    folders: tuple[str, ...] = ()
    """Paths of its other folders, with mode 700."""
    working_directory: str = ""
    start_seconds: int | None = None
    stop_seconds: int | None = None
    restart: Literal["no", "on-failure", "always"] = "no"
    restart_seconds: int | None = None
    starts: tuple[int, int] | None = None
    """It may be started so often in so many seconds; then it stays down and an alert is raised."""
    at_boot: bool = False
    along_with: tuple[str, ...] = ()
    """Targets: it runs while one of them does, and is not started at boot itself."""
    slice: Slice | None = None
    order: tuple[Directive, ...] = ()
    """What it needs and what it starts after: lines of [Unit]."""
    tuned: tuple[Directive, ...] = ()
    """Its resources, and how it starts and ends: lines of [Service], each of `TUNABLE`."""
    isolated: bool = False
    """It has no network: it is reached through sockets that systemd holds, or through files."""
    relaxed: tuple[Directive, ...] = ()
    """What its sandbox cannot keep closed, each with a reason."""
    socket: Door | UnixSocket | None = None
    """What systemd holds for it and starts it by."""
    timer: Timer | None = None
    proxied: Proxied | None = None

    def __post_init__(self) -> None:
        self.sandbox()
        wider = [line.name for line in self.tuned if line.name not in TUNABLE]
        if wider:
            raise ValueError(
                f"{self.unit}: write {', '.join(wider)} under relaxed, and say why"
                " (holdfast.service.program.TUNABLE lists what a program sets for itself)"
            )

    @property
    def unit(self) -> str:
        """The name of its service unit."""
        return self.service.unit

    @property
    def stem(self) -> str:
        """The beginning of its units' names."""
        return self.unit.removesuffix(".service")

    def path(self, kind: Literal["service", "socket", "timer"]) -> str:
        """Where its unit of this kind lies."""
        return f"{SYSTEM}/{self.stem}.{kind}"

    def sandbox(self) -> list[Directive]:
        """The lines that confine it."""
        return sandbox(self.service, isolated=self.isolated, relaxed=self.relaxed)

    @property
    def restart_after(self) -> list[str]:
        """What it reads at start: it is restarted when one of these files changes."""
        return [
            self.path("service"),
            *([f"{SYSTEM}/{self.slice.name}"] if self.slice else []),
            *([path_of(self.source)] if self.source else []),
            *(file.path for file in self.files if file.read_at_start),
            *(credential.path for credential in self.credentials),
            *self.reads,
        ]
