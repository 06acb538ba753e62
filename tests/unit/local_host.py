"""Runs operations on this machine, as pyinfra runs them on a host: facts asked, commands run."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyinfra.api import FactBase, FunctionCommand, StringCommand
from pyinfra.context import ctx_host


@dataclass
class LocalHost:
    """A host on which every command is a local `sh -c`; ``programs`` come first in its PATH."""

    programs: Path | None = None
    facts: dict[type, Any] = field(default_factory=dict)
    """Answers that no command is run for."""
    name: str = "here"
    print_prefix: str = "[here] "
    connector: object = None

    def _run(self, command: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        path = f"{self.programs}:{os.environ['PATH']}" if self.programs else os.environ["PATH"]
        return subprocess.run(
            ["sh", "-c", command],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PATH": path},
        )

    def get_fact(self, fact: type[FactBase[Any]], **arguments: Any) -> Any:
        """What the fact says about this machine."""
        if fact in self.facts:
            return self.facts[fact]
        probe: Any = fact()
        done = self._run(probe.command(**arguments))
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        return probe.process(lines) if lines else probe.default()

    def apply(self, operation: Any, **arguments: Any) -> tuple[list[str], str]:
        """Run the operation; returns its commands, and what the one that failed had to say."""
        commands: list[str] = []
        with ctx_host.use(self):
            for command in operation._inner(**arguments):
                if isinstance(command, FunctionCommand):
                    return [*commands, "stop"], str(command.args[0])
                assert isinstance(command, StringCommand)
                text = command.get_raw_value()
                commands.append(text)
                done = self._run(text, str(command.connector_arguments.get("_stdin") or ""))
                if done.returncode != 0:
                    return commands, done.stderr.strip()
        return commands, ""

    def planned(self, operation: Any, **arguments: Any) -> list[str]:
        """The commands the operation would run, none of which is run."""
        with ctx_host.use(self):
            return [command.get_raw_value() for command in operation._inner(**arguments)]
