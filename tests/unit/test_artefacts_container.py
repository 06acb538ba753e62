"""The probe container's archive holds together: every digest names what is really inside."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

from tests.lab.artefacts import container


def test_manifest_config_and_layer_agree(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"\x7fELF not really")
    container.assemble(busybox, tmp_path / "image.tar")

    with tarfile.open(tmp_path / "image.tar") as tar:
        contents = {m.name: tar.extractfile(m).read() for m in tar if m.isreg()}  # type: ignore[union-attr]
    (image,) = json.loads(contents["manifest.json"])
    assert image["RepoTags"] == [container.IMAGE]
    config = contents[image["Config"]]
    assert image["Config"] == f"{hashlib.sha256(config).hexdigest()}.json"
    (layer,) = (contents[name] for name in image["Layers"])
    described = json.loads(config)
    assert described["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as root:
        program = described["config"]["Cmd"][0].lstrip("/")
        assert root.getmember(program).mode == 0o755
        page = root.extractfile("www/index.html")
        assert page is not None
        assert page.read().decode().strip() == container.ANSWER
