"""A container image for the attack probes: one static busybox that serves one sentence.

The probes need something real behind a published port. The image is a plain `docker load` archive
made here, so the guest needs no registry.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path

from tests.lab.artefacts import archive, store
from tests.lab.artefacts.debian import Suite

SUITE = "trixie"
IMAGE = "holdfast-probe:1"
ANSWER = "holdfast-container"
# Without an address busybox opens one socket for both families, or for IPv4 where that is all.
COMMAND = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]


def _layer(busybox: Path, folder: Path) -> None:
    (folder / "bin").mkdir(parents=True)
    (folder / "www").mkdir()
    (folder / "tmp").mkdir()
    shutil.copyfile(busybox, folder / "bin/busybox")
    (folder / "bin/busybox").chmod(0o755)
    (folder / "bin/sh").symlink_to("busybox")
    (folder / "www/index.html").write_text(f"{ANSWER}\n")


def _build(target: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="holdfast-container-") as scratch_name:
        scratch = Path(scratch_name)
        suite = Suite(SUITE, scratch / "apt")
        tree = suite.unpack("busybox-static")
        version = suite.version("busybox-static")
        assemble(tree / "usr/bin/busybox", target / "holdfast-probe.tar")
    return version


def assemble(busybox: Path, target: Path) -> None:
    """Write the image of a given busybox as an archive for `docker load`."""
    with tempfile.TemporaryDirectory(prefix="holdfast-image-") as scratch_name:
        scratch = Path(scratch_name)
        _layer(busybox, scratch / "layer")
        image = scratch / "image"
        image.mkdir()
        archive.pack(scratch / "layer", image / "layer.tar", ".")
        layer = store.sha256(image / "layer.tar")
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": COMMAND, "ExposedPorts": {"80/tcp": {}}},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer}"]},
        }
        text = json.dumps(config, sort_keys=True)
        name = f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        (image / name).write_text(text)
        manifest = [{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
        (image / "manifest.json").write_text(json.dumps(manifest))
        archive.pack(image, target, ".")


def build() -> store.Entry:
    """The archive `holdfast-probe.tar` for `docker load`; the image is `IMAGE`."""
    inputs = {"suite": SUITE, "image": IMAGE, "answer": ANSWER, "command": " ".join(COMMAND)}
    return store.stored("container", inputs, _build)
