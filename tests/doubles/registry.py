"""A registry of container images: a folder, and what serves it over HTTP as Docker asks for it.

`lay` makes the folder on the controller; `holdfast-registry` is this file, started on the rack.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PORT = 5000
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"


def _kept(folder: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (folder / digest).write_bytes(content)
    return f"sha256:{digest}"


def lay(archive: Path, folder: Path, versions: Sequence[str]) -> list[str]:
    """Write an image for each of ``versions`` into ``folder``; returns the digests.

    All have the layer of the image in ``archive``, which is one for `docker load`; the version is
    in the variable HOLDFAST_VERSION of their processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        names = {name.removeprefix("./"): name for name in packed.getnames()}

        def read(name: str) -> bytes:
            file = packed.extractfile(names[name])
            assert file is not None, name
            return file.read()

        (described,) = json.loads(read("manifest.json"))
        layers = [read(name) for name in described["Layers"]]
        config = json.loads(read(described["Config"]))
    for layer in layers:
        _kept(folder, layer)
    digests = []
    for version in versions:
        config["config"]["Env"] = [f"HOLDFAST_VERSION={version}"]
        text = json.dumps(config, sort_keys=True).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": len(text), "digest": _kept(folder, text)},
            "layers": [
                {"mediaType": LAYER, "size": len(layer), "digest": _kept(folder, layer)}
                for layer in layers
            ],
        }
        digests.append(_kept(folder, json.dumps(manifest).encode()))
    return digests


class Registry(BaseHTTPRequestHandler):
    """Answers for manifests and blobs by their digests; there are no tags."""

    folder: Path

    def do_GET(self) -> None:
        """Send what is asked for."""
        self._answer(send=True)

    def do_HEAD(self) -> None:
        """Say whether it is there."""
        self._answer(send=False)

    def _answer(self, send: bool) -> None:
        if self.path == "/v2/":
            self._say(b"{}", "application/json", send)
            return
        kind, _, digest = self.path.rpartition("/")
        file = self.folder / digest.removeprefix("sha256:")
        if not digest.startswith("sha256:") or "/" in digest or not file.is_file():
            self.send_error(404)
            return
        is_manifest = kind.endswith("/manifests")
        self._say(file.read_bytes(), MANIFEST if is_manifest else "application/octet-stream", send)

    def _say(self, content: bytes, kind: str, send: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Docker-Content-Digest", f"sha256:{hashlib.sha256(content).hexdigest()}")
        self.end_headers()
        if send:
            self.wfile.write(content)


if __name__ == "__main__":
    Registry.folder = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", PORT), Registry).serve_forever()
