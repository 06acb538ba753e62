"""llama.cpp's server as an archive laid out like upstream's release, running on any lab guest.

It is taken from Debian's testing suite, where llama.cpp is packaged, because that takes seconds
where a build takes many minutes of two cores. Its glibc is newer than Debian 12's and 13's, so the
archive carries its own loader and libraries.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.artefacts import archive, store
from tests.lab.artefacts.debian import Suite

SUITE = "forky"
PACKAGE = "llama.cpp-tools"
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
# The engine picks the best of these at start. Wider ones never run under emulation.
CPU_BACKENDS = ("x64", "sse42", "haswell")

# The loader is stored under the server's name: what the kernel executes is what `ss -p`, `ps` and
# the journal show, and an operator looks for "llama-server" there. The engine also looks for its
# CPU backends beside the file that was executed.
LAUNCHER = """#!/bin/sh
lib=$(dirname "$(readlink -f "$0")")/lib
exec "$lib/llama-server" --library-path "$lib" --argv0 "$0" "$lib/llama-server.elf" "$@"
"""


def _needed(tree: Path, loader: Path) -> list[Path]:
    """The libraries that the server links against, as the loader itself resolves them."""
    search = f"{tree / LIBRARIES}:{tree / LIBRARIES / 'llama'}"
    listing = subprocess.run(
        [loader, "--library-path", search, "--list", tree / "usr/bin/llama-server"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    resolved = re.findall(r"=> (\S+) \(", listing)
    return [Path(path) for path in resolved if Path(path) != loader]


def _collect(tree: Path, folder: Path) -> None:
    """Lay out the launcher, the loader, the server and its libraries in `folder`."""
    lib = folder / "lib"
    lib.mkdir(parents=True)
    loader = (tree / LIBRARIES / "ld-linux-x86-64.so.2").resolve()
    backends = tree / LIBRARIES / "ggml" / "backends0"
    for source in (
        *_needed(tree, loader),
        *(backends / f"libggml-cpu-{name}.so" for name in CPU_BACKENDS),
    ):
        shutil.copyfile(source, lib / source.name)
    shutil.copyfile(loader, lib / "llama-server")
    shutil.copyfile(tree / "usr/bin/llama-server", lib / "llama-server.elf")
    (folder / "llama-server").write_text(LAUNCHER)
    for path in (lib / "llama-server", lib / "llama-server.elf", folder / "llama-server"):
        path.chmod(0o755)


def _build(target: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-llama-") as scratch:
        suite = Suite(SUITE, Path(scratch) / "apt")
        tree = suite.unpack(PACKAGE)
        version = suite.version(PACKAGE).split(":")[-1].split("+")[0]
        folder = Path(scratch) / "bundle"
        _collect(tree, folder)
        archive.pack(folder, target / "llama-server.tar.gz", f"llama-{version}")
    return version


def build() -> store.Entry:
    """The archive `llama-server.tar.gz`: `llama-<version>/llama-server` and its `lib/`."""
    inputs = {
        "suite": SUITE,
        "package": PACKAGE,
        "backends": " ".join(CPU_BACKENDS),
        "launcher": LAUNCHER,
        "layout": "1",
    }
    return store.stored("llama", inputs, _build)
