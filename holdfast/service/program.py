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
"""A command as a list of words. systemd expands ``%`` and ``$`` in them."""

ON_FAILURE = "holdfast-notify@%n.service"
"""The unit that each program names in ``OnFailure=``: `holdfast.alerts.NOTIFY`."""

PROXY = "/usr/sbin/haproxy"
"""The distribution's HAProxy, which serves each door and each router."""

PROXY_FILES = Directive("LimitNOFILE", "65536", "it needs two files for each connection")
"""The limit that every proxy sets for itself."""

TUNABLE = frozenset(
    {
        *("AllowedCPUs", "CPUWeight", "IOSchedulingClass", "LimitMEMLOCK", "LimitNOFILE"),
        *("MemoryMin", "MemorySwapMax", "Nice", "OOMScoreAdjust", "DynamicUser", "KillMode"),
        *("KillSignal", "LogLevelMax", "RemainAfterExit", "RestartMaxDelaySec", "RestartSteps"),
        *("RuntimeDirectoryPreserve", "SuccessExitStatus"),
    }
)
"""The lines that a program may set without a reason: its resources, and how it starts and stops.
Any other line may widen its sandbox, so it must be a relaxation with a reason."""


@dataclass(frozen=True)
class File:
    """A file of a program. root owns it and every user may read it, so it holds no secret."""

    path: str
    text: str
    read_at_start: bool = True
    """Whether the program is restarted when the file changes."""
    mode: str = "644"
    validate: str | None = None
    """As in `operations.host_files.HostFile`."""


@dataclass(frozen=True)
class Credential:
    """A secret in a file that only root may read; systemd passes it to the program."""

    name: str
    """The program reads it as ``%d/<name>``."""
    path: str
    text: Callable[[Callable[[str], Secret]], str]
    """A function that makes its text from a function that returns a secret by its name. So the
    declaration itself holds no secret."""


@dataclass(frozen=True)
class UnixSocket:
    """A Unix socket that systemd opens for a program, and the only user who may connect."""

    path: str
    user: str
    dependency: Literal["Requires", "BindsTo"] = "Requires"
    """How its program depends on it: `BindsTo` stops the program whenever the socket stops."""
    is_open: ClassVar[bool] = True


@dataclass(frozen=True)
class Slice:
    """A slice of a program's own. The kernel first divides memory and CPU time among slices."""

    name: str
    description: str
    lines: tuple[Directive, ...]


@dataclass(frozen=True)
class Timer:
    """When systemd starts a program that does its work and exits."""

    often: str
    """In words, such as ``every five minutes``."""
    lines: tuple[Directive, ...]
    armed: bool = True
    """Whether it runs: a host may have the program and no use for it."""


EVERY_MINUTE = Timer(
    "every minute",
    (
        Directive("OnActiveSec", "1min"),
        Directive("OnUnitInactiveSec", "1min"),
        Directive("AccuracySec", "5s"),
    ),
)
UNRATIONED = Directive("StartLimitIntervalSec", "0", "The number of starts is not limited.")
"""The line of [Unit] for a program that is started often; systemd would refuse a sixth start."""
STAYS = Directive("RemainAfterExit", "yes", "It stays active when its work is done.")
"""The line of [Service] for a oneshot that runs once for each boot."""
LOGS_NO_STARTS = Directive(
    "LogLevelMax", "notice", "Log actions and failures, but not every start and end."
)


@dataclass(frozen=True)
class Proxied:
    """The proxies that forward requests from a program's doors to its Unix socket, one per door."""

    doors: tuple[Door, ...]
    socket: str
    """The socket on which the program listens; only its own user may connect."""
    configuration: str
    """The beginning of the path of each proxy's configuration; the door's name follows."""
    posted: tuple[str, ...] = ()
    """The exact paths to which callers may POST; empty: every path and method is allowed."""
    read: tuple[str, ...] = ()
    """The paths that all callers may GET."""
    read_here: tuple[str, ...] = ()
    """The paths that only callers on this host may GET as well."""
    may_be_held: bool = False
    """Whether each proxy has an admin socket, on which root can refuse callers for a while."""

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
    """When systemd regards it as started: when it runs, when it reports so itself (notify), or when
    it has done its work and exited (oneshot)."""
    source: ModuleType | None = None
    """The module of `holdfast.host_programs` that the command runs; it is placed on the host."""
    packages: tuple[str, ...] = ()
    """Distribution packages that it needs, besides those that its other fields imply."""
    packages_read: tuple[File, ...] = ()
    """Files that its packages read while they are installed."""
    archive: Archive | None = None
    python: PythonEnvironment | None = None
    image: str = ""
    """The container image that its command runs, by name and digest."""
    before: tuple[Words, ...] = ()
    """Commands that must succeed before it starts."""
    ready: tuple[Words, ...] = ()
    """Commands that must succeed before it is regarded as started: they request what callers do."""
    stop: Words = ()
    """The command that stops it; default: a signal."""
    after: tuple[Words, ...] = ()
    """Commands that run after it has ended, for any reason."""
    then: tuple[Words, ...] = ()
    """Commands that a oneshot runs after `command`, each if the previous one has succeeded."""
    reload: Words = ()
    """The command that makes it read its files again; then a change reloads it, not restarts it."""
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
    stop_seconds: int | Literal["infinity"] | None = None
    restart: Literal["no", "on-abnormal", "on-failure", "always"] = "no"
    restart_seconds: int | None = None
    starts: tuple[int, int] | None = None
    """Limit of starts: how many in how many seconds; then it stays down and an alert is raised."""
    at_boot: bool = False
    wanted_by: tuple[str, ...] = ("multi-user.target",)
    """Units that start it, where it is started at boot."""
    along_with: tuple[str, ...] = ()
    """Targets with which it starts and stops; the program itself is not started at boot."""
    slice: Slice | None = None
    order: tuple[Directive, ...] = ()
    """Lines of [Unit]: units that it needs, and units that start before it."""
    tuned: tuple[Directive, ...] = ()
    """Lines of [Service], each of `TUNABLE`: its resources, and how it starts and stops."""
    isolated: bool = False
    """Whether it has no network; callers reach it through sockets of systemd, or through files."""
    relaxed: tuple[Directive, ...] = ()
    """Exceptions from its sandbox, each with a reason."""
    socket: Door | UnixSocket | None = None
    """The socket that systemd opens for it; a connection starts the program."""
    timer: Timer | None = None
    proxied: Proxied | None = None
    alerts: bool = True
    """Whether an alert is raised when it fails."""

    def __post_init__(self) -> None:
        self.sandbox()
        wider = [line.name for line in self.tuned if line.name not in TUNABLE]
        if wider:
            raise ValueError(
                f"{self.unit}: move {', '.join(wider)} to relaxed, with a reason"
                " (holdfast.service.program.TUNABLE lists the lines that need none)"
            )

    @property
    def unit(self) -> str:
        """The name of its service unit."""
        return self.service.unit

    @property
    def stem(self) -> str:
        """The beginning of its units' names."""
        return self.unit.removesuffix(".service")

    @property
    def is_template(self) -> bool:
        """Whether its unit is a template, of which others start instances by name."""
        return self.stem.endswith("@")

    @property
    def ends(self) -> bool:
        """Whether it is no longer active once its work is done."""
        return self.kind == "oneshot" and not any(
            line.name == "RemainAfterExit" for line in self.tuned
        )

    def path(self, kind: Literal["service", "socket", "timer"]) -> str:
        """The path of its unit of this kind."""
        return f"{SYSTEM}/{self.stem}.{kind}"

    def sandbox(self) -> list[Directive]:
        """The lines that confine it."""
        return sandbox(self.service, isolated=self.isolated, relaxed=self.relaxed)

    @property
    def restart_after(self) -> list[str]:
        """The files that it reads at start; when one changes, the program is restarted."""
        return [
            self.path("service"),
            *([f"{SYSTEM}/{self.slice.name}"] if self.slice else []),
            *([path_of(self.source)] if self.source else []),
            *(file.path for file in self.files if file.read_at_start),
            *(credential.path for credential in self.credentials),
            *self.reads,
        ]
