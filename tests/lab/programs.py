"""Programs of a host's on a machine of the lab that no deploy has come to."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.lab.container_machine import ContainerMachine


def put(box: ContainerMachine, path: str, text: str) -> None:
    """Write a file on a machine."""
    done = box.run(f"mkdir -p $(dirname {path}) && cat > {path}", stdin=text.encode())
    assert done.returncode == 0


def bring_python(box: ContainerMachine) -> None:
    """Have a machine run Python programs of ours, which use the standard library alone."""
    # The image has none, which the deploy installs. The controller's runs there as well.
    python = Path("/usr/bin/python3").resolve()
    linked = subprocess.run(["ldd", python], check=True, capture_output=True, text=True).stdout
    libraries = re.findall(r"=> (\S*/lib(?:z|expat)\.\S+)", linked)
    packed = subprocess.run(
        ["tar", "-c", "--dereference", "--exclude=test", "--exclude=dist-packages", str(python)]
        + [f"/usr/lib/{python.name}", *libraries],
        check=True,
        capture_output=True,
    ).stdout
    unpack = f"tar -x -C / && ln -sf {python} /usr/bin/python3 && python3 -I -c 'import json, http'"
    done = box.run(unpack, stdin=packed)
    assert done.returncode == 0, done.stderr
