"""A rack on this very machine, for the fast tests: fake NVML, fake nvidia-smi, a state of its own.

Root is not needed: the user who runs the tests is the one who may change settings.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.doubles import library
from tests.doubles.rack import Rack

_SMI = Path(__file__).parent / "nvidia_smi.py"


@dataclass
class FakeMachine:
    """A machine in ``folder`` that has the cards of ``rack``.

    ``programs`` is a folder for PATH with ``nvidia-smi`` in it, ``environment`` what makes any
    program that loads libnvidia-ml find the fake one.
    """

    folder: Path
    rack: Rack

    def __post_init__(self) -> None:
        self.programs = self.folder / "programs"
        self.state = self.folder / "state"
        self.environment = {
            "HOLDFAST_RACK": str(self.folder / "rack.json"),
            "HOLDFAST_RACK_STATE": str(self.state),
            "LD_LIBRARY_PATH": str(self.folder / "lib"),
        }
        self.rack.administrator = os.geteuid()
        self.write()
        library.place(self.folder / "lib", self.rack.driver.library)
        self.programs.mkdir()
        exports = " ".join(f"{name}='{value}'" for name, value in self.environment.items())
        program = self.programs / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{exports} exec '{sys.executable}' '{_SMI}' \"$@\"\n")
        program.chmod(0o755)

    def write(self) -> None:
        """Make the machine what ``rack`` says now."""
        self.rack.write(self.folder / "rack.json")

    def reload_driver(self) -> None:
        """Forget what was set, as unloading and loading the module does."""
        for file in self.state.glob("*"):
            file.unlink()

    def smi(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run nvidia-smi."""
        return subprocess.run(
            [str(self.programs / "nvidia-smi"), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *python: str) -> subprocess.Popen[str]:
        """Start Python with these arguments as a client of NVML; lines in, lines out."""
        return subprocess.Popen(
            [sys.executable, *python],
            env={**os.environ, **self.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, program: str) -> str:
        """What a program that has imported all of pynvml and initialised it prints.

        Raises:
            AssertionError: it failed; the message is what it said.
        """
        client = self.start("-c", f"from pynvml import *\nnvmlInit()\n{program}")
        said, failed = client.communicate(timeout=60)
        assert client.returncode == 0, failed
        return said.strip()
