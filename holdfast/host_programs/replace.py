#!/usr/bin/python3 -I
"""Replace an engine's configuration, and restore the previous one if the new one does not serve.

It is copied to hosts as one file, so it uses only the standard library of Python 3.11. Reads
``/etc/holdfast/engines/NAME.json``; the new configuration lies beside the one that it names, with
the ending ``.next``.

It runs in its own unit, which outlives the login or the deploy that started it and follows it.
After a signal or with a full disk, the program itself restores the previous configuration. After a
kill, systemd starts a second unit for this (``--undo``) and restarts it until it completes. The
last step is in ``/var/lib/holdfast/engines/NAME.json``, written before every step that a power cut
must not leave unfinished; `recover` runs at boot before any engine starts.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from holdfast.host_programs.shared.undoing import (
    Ended,
    Failed,
    await_end,
    end_at_signals,
    in_unit,
    last_line,
    locked,
    say,
    sentence,
    undisturbed,
    within,
)

JOBS = Path("/etc/holdfast/engines")
STATE = Path("/var/lib/holdfast/engines")

STILL = 3
"""Consecutive checks at which an engine must be idle, because its gauges lag behind its
requests."""
PAUSE_SECONDS = 1.0
ASK_SECONDS = 300
ANSWER_BYTES = 16 << 20
"""Limit of an answer. An engine's metrics are some hundred KiB; a compromised engine may answer for
ever."""

HELD = "held"
"""Callers are refused; the engine serves."""
STOPPING = "stopping"
"""The engine may have been stopped; the configuration in place is the last that served."""
SWAPPED = "swapped"
"""The only step after which the configuration in place is not the last that served."""

HALF_DONE = (HELD, STOPPING, SWAPPED)
UNDER_WAY = "another replacement of this engine is running"
UNDO_UNIT = "holdfast-replace-undo@{}.service"
"""Undoes an unfinished replacement of the engine in the braces."""


@dataclass(frozen=True)
class Job:
    """One engine, described by its deploy; paths are on the host."""

    name: str
    unit: str
    socket: str
    """The engine's socket."""
    doors: list[str]
    """Admin sockets of the proxies in front of it."""
    configuration: str
    model_key: str
    """The key of the configuration that names the model's folder."""
    cache: str
    questions: list[list[Any]]
    """Path and body of each test request."""
    model: str
    """The name that every model of this engine accepts."""
    key: str
    """The file with its API key."""
    running_metric: str
    waiting_metric: str
    memory: list[str] = field(default_factory=list)
    """The command that waits until its cards are free; empty without cards."""
    drain_seconds: float = 300
    free_mib: int = 1024
    """Required free space for records, and for the compiled kernels of a new model."""

    @property
    def current(self) -> Path:
        """The configuration in force."""
        return Path(self.configuration)

    @property
    def next(self) -> Path:
        """The new configuration."""
        return Path(f"{self.configuration}.next")

    @property
    def previous(self) -> Path:
        """The previous configuration."""
        return Path(f"{self.configuration}.previous")


def read_job(name: str, jobs: Path = JOBS) -> Job:
    """The job of the engine ``name``.

    Raises:
        Failed: there is no such engine here.
    """
    try:
        return Job(**json.loads((jobs / f"{name}.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(path.stem for path in jobs.glob("*.json"))) or "none"
        raise Failed(f"there is no engine {name} here; there are: {known}") from None


def write_whole(path: Path, text: str) -> None:
    """Replace a file so that after a power cut it is the old or the new one."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as file:
        # Independent of the unit's umask, because the engine's user reads its configuration.
        os.fchmod(file.fileno(), 0o644)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def connect(connection: socket.socket, path: str) -> None:
    """Connect to the socket at ``path`` itself, which belongs to the owner of its folder.

    That is a service, which could replace it with a link to a socket of root.

    Raises:
        OSError: nothing listens there, or the socket belongs to another user.
    """
    found = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        if os.fstat(found).st_uid != Path(path).parent.stat().st_uid:
            raise PermissionError(f"{path} and its folder belong to different users")
        connection.connect(f"/proc/self/fd/{found}")
    finally:
        os.close(found)


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("engine", timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        connect(self.sock, self.path)


class Replacement:
    """One replacement of one engine."""

    def __init__(self, job: Job, state: Path = STATE) -> None:
        self.job = job
        self.record = state / f"{job.name}.json"
        state.mkdir(parents=True, exist_ok=True)

    def note(self, step: str, **more: object) -> None:
        """Write the reached step to the disk, and print it.

        Raises:
            OSError: it cannot be written.
        """
        told = {"engine": self.job.name, "step": step, "at": time.strftime("%FT%T%z"), **more}
        write_whole(self.record, json.dumps(told) + "\n")
        say(f"{self.job.name}: {step}" + "".join(f", {value}" for value in more.values()))

    def noted(self) -> str:
        """The last recorded step; empty if it cannot be read."""
        try:
            return str(json.loads(self.record.read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError):
            return ""

    @contextlib.contextmanager
    def alone(self, wait: bool = False) -> Iterator[None]:
        """Hold the lock of this engine; ``wait`` until it is free.

        Raises:
            Failed: another replacement of it is running.
        """
        with locked(self.record.with_suffix(".lock"), wait, UNDER_WAY):
            yield

    def check(self) -> None:
        """Check that the replacement can succeed, before anything is stopped.

        Raises:
            Failed: it cannot.
        """
        if not self.job.next.exists():
            raise Failed(f"{self.job.next} does not exist: deploy it first")
        folder = _model_in(self.job.next.read_text(encoding="utf-8"), self.job.model_key)
        if folder is None or not Path(folder).is_dir():
            raise Failed(f"the model {folder} is not on this host")
        done = _run("sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS", cwd=folder)
        if done.returncode:
            raise Failed(f"{folder} does not match its SHA256SUMS: {last_line(done)}")
        Path(self.job.cache).mkdir(parents=True, exist_ok=True)
        for place in (self.job.cache, str(self.record.parent), str(self.job.current.parent)):
            free = shutil.disk_usage(place).free >> 20
            if free < self.job.free_mib:
                raise Failed(f"{place} has {free} MiB to spare, but {self.job.free_mib} are needed")

        if self.job.memory:
            self._check_cards()

    def _check_cards(self) -> None:
        """Check that no other process uses the memory: otherwise neither model could start."""
        group = _run("systemctl", "show", "--property=ControlGroup", "--value", self.job.unit)
        program, _, *rest = self.job.memory
        besides = f"/sys/fs/cgroup{group.stdout.strip()}/cgroup.procs"
        done = _run(program, "0", *rest, BESIDES=besides)
        if done.returncode:
            raise Failed(f"its cards would not be free: {last_line(done)}")

    def run(self, now: bool) -> None:
        """Replace; ``now`` does not wait for running requests.

        Raises:
            Failed: the engine serves the previous model, or none, if the sentence says so.
        """
        self.undo("the previous replacement was killed")
        self.check()
        try:
            self.note(HELD)
            if now:
                self._doors("maint")
            else:
                self.hold(self.job.drain_seconds)
            self._keep()
            self.note(STOPPING)
            began = time.monotonic()
            self._stop()
            self._swap()
            loading = time.monotonic()
            self._start()
            self._doors("ready")
            ended = time.monotonic()
            away, load = f"{ended - began:.0f} s", f"{ended - loading:.0f} s"
            self.note("done", away=f"{away} without answers, {load} of them to load and test it")
        except BaseException as failure:
            self.undo(sentence(failure))
            raise

    def hold(self, seconds: float) -> None:
        """Refuse new callers, and wait up to ``seconds`` until no request is running.

        Raises:
            Failed: a request is still running; callers are accepted again.
        """
        self._doors("maint")
        try:
            self._drain(seconds)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Accept all callers."""
        self._doors("ready")

    def recover(self) -> None:
        """At boot: undo an untested replacement, before the engine starts.

        Raises:
            Failed: this is not a boot; a replacement is running.
        """
        with self.alone():
            step = self.noted()
            if step == SWAPPED:
                self._restore()
                self.note("rolled back", why="power was lost before the new model had answered")
            elif step in (HELD, STOPPING):
                self.note("given up", why="power was lost before anything was changed")

    def _doors(self, state: str) -> None:
        for door in self.job.doors:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as admin:
                # A stopped door has no admin socket and no callers.
                admin.settimeout(10)
                connect(admin, door)
                admin.sendall(f"set server engine/engine state {state}\n".encode())
                admin.recv(4096)

    def _busy(self) -> float:
        wanted = (self.job.running_metric, self.job.waiting_metric)
        try:
            status, text = self._ask("GET", "/metrics", None, 10)
        except OSError as error:
            raise Failed(f"the engine does not report its load: {error}") from error
        found = re.findall(r"^(\S+?)(?:\{.*\})? ([0-9.e+]+)$", text, re.MULTILINE)
        values = [float(value) for name, value in found if name in wanted]
        if status != 200 or len(values) < len(wanted):
            raise Failed("the engine does not report its load")
        return sum(values)

    def _drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        still = 0
        while still < STILL:
            busy = self._busy()
            still = still + 1 if busy == 0 else 0
            if busy and time.monotonic() >= deadline:
                raise Failed(
                    f"{busy:g} requests are still running after {seconds:g} s; wait, or use --now"
                )
            time.sleep(PAUSE_SECONDS)

    def _stop(self) -> None:
        done = _run("systemctl", "stop", self.job.unit)
        if done.returncode:
            raise Failed(f"{self.job.unit} did not stop: {last_line(done)}")
        if self.job.memory and (done := _run(*self.job.memory)).returncode:
            raise Failed(f"its memory was not released: {last_line(done)}")

    def _keep(self) -> None:
        # Before anything is stopped, so that the rollback needs no disk space.
        write_whole(self.job.previous, self.job.current.read_text(encoding="utf-8"))

    def _swap(self) -> None:
        self.note(SWAPPED)
        self.job.next.replace(self.job.current)

    def _start(self) -> None:
        _run("systemctl", "reset-failed", self.job.unit)
        done = _run("systemctl", "start", self.job.unit)
        if done.returncode:
            raise Failed(f"{self.job.unit} did not start: {last_line(done)}")
        self._prove()

    def _prove(self) -> None:
        for path, body in self.job.questions:
            try:
                status, text = self._ask("POST", path, body, ASK_SECONDS)
                serves = status == 200 and _is_answer(json.loads(text), self.job.model)
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise Failed(f"a request to {path} failed: {error!r}") from error
            if not serves:
                raise Failed(f"it answers {path} with HTTP {status} and {text[:200]!r}")

    def undo(self, why: str) -> None:
        """Restore the previous configuration, as far as the record shows changes.

        Only SIGKILL stops it; a full disk does not.

        Raises:
            Failed: it does not serve either.
        """
        with undisturbed():
            step = self.noted()
            if step not in HALF_DONE:
                return
            say(f"{self.job.name}: {why}; going back")
            try:
                if step == SWAPPED:
                    self._restore()
                if step != HELD:
                    # An engine with wrong answers still runs; a failed one would restart by itself.
                    _run("systemctl", "stop", self.job.unit)
                    self._start()
            except (Failed, OSError) as failure:
                self._note_if_possible("down", why=why, then=sentence(failure))
                raise Failed(
                    f"{why}; and the previous model does not serve either: {sentence(failure)}"
                ) from failure
            finally:
                self._doors("ready")
            self._note_if_possible("given up" if step == HELD else "rolled back", why=why)

    def _note_if_possible(self, step: str, **more: object) -> None:
        with contextlib.suppress(OSError):
            self.note(step, **more)

    def _restore(self) -> None:
        """Install the previous configuration. Only by renaming, because the disk may be full."""
        if not self.job.previous.exists():
            return  # it was installed already
        # Kept for inspection, under a name that no replacement uses.
        failed = Path(f"{self.job.configuration}.failed")
        with contextlib.suppress(OSError):
            failed.unlink(missing_ok=True)
            failed.hardlink_to(self.job.current)
        self.job.previous.replace(self.job.current)
        _sync(self.job.current.parent)

    def _ask(self, method: str, path: str, body: Any, seconds: float) -> tuple[int, str]:
        connection = UnixConnection(self.job.socket, seconds)
        key = Path(self.job.key).read_text(encoding="utf-8").strip()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        try:
            text = json.dumps(body) if body is not None else None
            with within(seconds):
                connection.request(method, path, text, headers)
                answer = connection.getresponse()
                read = answer.read(ANSWER_BYTES + 1)
            if len(read) > ANSWER_BYTES:
                raise OSError(f"its answer is longer than {ANSWER_BYTES >> 20} MiB")
            return answer.status, read.decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(repr(error)) from error
        finally:
            connection.close()


def _is_answer(answer: Any, model: str) -> bool:
    """Whether each part of a model's answer has words or numbers; in a chat, reasoning counts."""
    parts = answer.get("choices") or answer.get("data") or []
    return answer["model"] == model and bool(parts) and all(map(_has_words, parts))


def _has_words(part: dict[str, Any]) -> bool:
    message = part.get("message") or {}
    said = [part.get("text"), part.get("embedding"), message.get("content")]
    return any([*said, message.get("reasoning_content"), message.get("reasoning")])


def _model_in(configuration: str, key: str) -> str | None:
    found = re.search(rf"^{re.escape(key)}: *(\S+)$", configuration, re.MULTILINE)
    return found[1] if found else None


def _run(
    *command: str, cwd: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def follow(job: Job, options: list[str]) -> int:
    """Run it in a unit and print its output; return its exit status.

    The unit outlives this program.

    Raises:
        Failed: another one is running.
    """
    unit = f"{job.unit.removesuffix('.service')}-replace"
    undo = UNDO_UNIT.format(job.name)
    await_end(unit, UNDER_WAY)
    program = (sys.executable, "-I", str(Path(__file__).resolve()))
    command = in_unit(unit, undo, *program, job.name, "--here", *options)
    try:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode
        if status:
            # It has started by itself if there is something to undo; wait for its end.
            _run("systemctl", "start", undo)
        return status
    except KeyboardInterrupt:
        say(f"{job.name}: the replacement continues; `systemctl stop {unit}` undoes it")
        return 1


def main(arguments: list[str]) -> int:
    """Replace one engine's configuration, or undo an unfinished replacement at boot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", nargs="?")
    parser.add_argument("--now", action="store_true", help="do not wait for running requests")
    parser.add_argument(
        "--recover", action="store_true", help="at boot: undo an unfinished replacement"
    )
    parser.add_argument(
        "--undo", action="store_true", help="undo an unfinished replacement, and serve"
    )
    parser.add_argument("--here", action="store_true", help="in this process, not in its own unit")
    parser.add_argument("--hold", type=float, metavar="SECONDS", help="only drain, with this limit")
    parser.add_argument("--release", action="store_true", help="only accept callers again")
    parser.add_argument("--jobs", type=Path, default=JOBS)
    parser.add_argument("--state", type=Path, default=STATE)
    asked = parser.parse_args(arguments)
    if asked.engine is None and not asked.recover:
        parser.error("name an engine")
    try:
        if asked.recover:
            return _recover_all(asked.jobs, asked.state)
        replacement = Replacement(read_job(asked.engine, asked.jobs), asked.state)
        with replacement.alone(wait=asked.undo):
            if asked.undo:
                replacement.undo("it was killed")
                return 0
            if asked.release:
                replacement.release()
                return 0
            if asked.hold is not None or asked.here:
                end_at_signals()
                if asked.hold is not None:
                    replacement.hold(asked.hold)
                else:
                    replacement.run(asked.now)
                return 0
        options = [f"--jobs={asked.jobs}", f"--state={asked.state}"]
        return follow(replacement.job, [*options, *(["--now"] if asked.now else [])])
    except (Failed, Ended, OSError) as failure:
        say(f"{asked.engine}: {sentence(failure)}")
        return 1


def _recover_all(jobs: Path, state: Path) -> int:
    status = 0
    for path in sorted(jobs.glob("*.json")):
        try:
            Replacement(read_job(path.stem, jobs), state).recover()
        except (Failed, OSError, ValueError, TypeError) as failure:
            # The other engines start with their previous configuration.
            say(f"{path.stem}: {sentence(failure)}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
