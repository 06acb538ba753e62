"""Install distribution packages: one remote command when they are there."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.packages import InstalledPackages

PYTHON = "python3"
"""Runs the programs of ours that lie on a host."""

APT_GET = (
    "DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none NEEDRESTART_SUSPEND=holdfast"
    " apt-get --quiet --assume-yes --no-install-recommends"
    " -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0"
    " -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
)
"""apt-get that asks nothing, waits five minutes for another one and keeps files edited here.

apt-listchanges and needrestart look after upgrades; what Holdfast installs, it starts itself.
"""

# A package that was torn while it was unpacked can be configured only once it is unpacked
# again, which apt-get does only when asked to; what else can be configured is.
_MEND = (
    "DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure -a;"
    f" {APT_GET} update && dpkg-query --show --showformat='${{db:Status-Eflag}} ${{Package}}\\n'"
    f" | sed -n 's/^reinstreq //p' | xargs --no-run-if-empty env {APT_GET} install --reinstall"
)


@operation()
def present(packages: list[str]) -> Generator[StringCommand, None, None]:
    """Have ``packages`` installed, in the version that the host's sources offer."""
    installed = host.get_fact(InstalledPackages, packages=packages)
    missing = [package for package in packages if package not in installed]
    if missing:
        install = f"{APT_GET} install {' '.join(map(shlex.quote, missing))}"
        # A first attempt fails on package lists that are absent or older than the archive, and on
        # packages that a power cut left unpacked. It waits for the holder of dpkg's lock, such as
        # the upgrades of a machine that has just booted; dpkg itself would give up at once.
        yield StringCommand(f"{install} || {{ {_MEND}; {install}; }}")
