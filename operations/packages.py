"""Install distribution packages: one remote command if they are there."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.packages import InstalledPackages

PYTHON = "python3"
"""Needed by our programs on a host."""

APT_GET = (
    "DEBIAN_FRONTEND=noninteractive APT_LISTCHANGES_FRONTEND=none NEEDRESTART_SUSPEND=holdfast"
    " apt-get --quiet --assume-yes --no-install-recommends"
    " -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0"
    " -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
)
"""apt-get without questions; it waits five minutes for another one and keeps locally edited files.
apt-listchanges and needrestart are for upgrades; Holdfast starts what it installs itself.
"""

# An interrupted package must be unpacked again before it can be configured, which apt-get only does
# on request. All other packages are configured.
_MEND = (
    "DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure -a;"
    f" {APT_GET} update && dpkg-query --show --showformat='${{db:Status-Eflag}} ${{Package}}\\n'"
    f" | sed -n 's/^reinstreq //p' | xargs --no-run-if-empty env {APT_GET} install --reinstall"
)


@operation()
def present(packages: list[str]) -> Generator[StringCommand, None, None]:
    """Install ``packages``, in the version of the host's sources.

    For example::

        packages.present(name="Install the proxy", packages=["haproxy"])
    """
    installed = host.get_fact(InstalledPackages, packages=packages)
    missing = [package for package in packages if package not in installed]
    if missing:
        install = f"{APT_GET} install {' '.join(map(shlex.quote, missing))}"
        # A first attempt fails if package lists are absent or outdated, or if a power cut left
        # packages unpacked. It waits for dpkg's lock, which upgrades may hold after a boot; dpkg
        # itself would give up at once.
        yield StringCommand(f"{install} || {{ {_MEND}; {install}; }}")
