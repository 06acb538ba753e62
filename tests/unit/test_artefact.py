"""Pinned downloads, fetched from loopback and unpacked on this machine."""

from __future__ import annotations

import bz2
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import facts.artefacts
import holdfast.artefact
import operations.artefact
from holdfast.settings import Artefact
from operations.artefact import installed
from tests.unit.local_host import LocalHost


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL it is served under."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where programs are installed."""
    folder = tmp_path / "opt"
    for module in (facts.artefacts, holdfast.artefact, operations.artefact):
        monkeypatch.setattr(module, "PROGRAMS", str(folder))
    return folder


def _publish(
    served: tuple[Path, str], version: str, content: bytes, name: str = "thing"
) -> Artefact:
    folder, url = served
    (folder / f"{name}-{version}").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return Artefact(version=version, url=f"{url}/{name}-{version}", sha256=digest)


def _archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(f"llama-1/{name}")
            member.size, member.mode = len(content), 0o755
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def test_an_archive_is_unpacked_once(served: tuple[Path, str], root: Path) -> None:
    artefact = _publish(served, "b1", _archive(server=b"#!/bin/sh\necho hello\n"))
    here = LocalHost()
    arguments = {
        "program": "llama.cpp",
        "artefact": artefact,
        "unpack": "tar.gz",
        "strip_components": 1,
    }
    commands, failure = here.apply(installed, **arguments)
    assert failure == ""
    assert len(commands) == 1
    program = root / "llama.cpp/b1/server"
    assert program.read_bytes() == b"#!/bin/sh\necho hello\n"
    assert program.stat().st_mode & 0o777 == 0o755
    assert here.apply(installed, **arguments) == ([], "")
    assert sorted(path.name for path in (root / "llama.cpp").iterdir()) == ["b1"]


def test_a_compressed_program_takes_its_name(served: tuple[Path, str], root: Path) -> None:
    artefact = _publish(served, "0.19.1", bz2.compress(b"#!/bin/sh\n"))
    _, failure = LocalHost().apply(
        installed, program="restic", artefact=artefact, unpack="bz2", file="restic"
    )
    assert failure == ""
    program = root / "restic/0.19.1/restic"
    assert program.read_bytes() == b"#!/bin/sh\n"
    assert program.stat().st_mode & 0o777 == 0o755


def test_a_wrong_checksum_installs_nothing_and_says_both(
    served: tuple[Path, str], root: Path
) -> None:
    artefact = _publish(served, "1", b"as released")
    (served[0] / "thing-1").write_bytes(b"as tampered with")
    _, failure = LocalHost().apply(installed, program="tool", artefact=artefact, file="tool")
    got = hashlib.sha256(b"as tampered with").hexdigest()
    assert failure == (
        f"tool 1: {artefact.url} has sha256 {got} but the inventory declares"
        f" {artefact.sha256}; nothing was installed"
    )
    assert list((root / "tool").iterdir()) == []


def test_a_missing_download_installs_nothing(served: tuple[Path, str], root: Path) -> None:
    artefact = _publish(served, "1", b"x")
    (served[0] / "thing-1").unlink()
    _, failure = LocalHost().apply(installed, program="tool", artefact=artefact, file="tool")
    assert "404" in failure
    assert list((root / "tool").iterdir()) == []


def test_one_older_version_is_kept(served: tuple[Path, str], root: Path) -> None:
    here = LocalHost()
    for version in ("1", "2", "3"):
        artefact = _publish(served, version, version.encode())
        assert here.apply(installed, program="tool", artefact=artefact, file="tool")[1] == ""
    assert sorted(path.name for path in (root / "tool").iterdir()) == ["2", "3"]
    assert here.apply(installed, program="tool", artefact=artefact, file="tool") == ([], "")


def test_a_corrected_checksum_replaces_the_version(served: tuple[Path, str], root: Path) -> None:
    here = LocalHost()
    first = _publish(served, "1", b"first")
    here.apply(installed, program="tool", artefact=first, file="tool")
    second = _publish(served, "1", b"second")
    here.apply(installed, program="tool", artefact=second, file="tool")
    assert (root / "tool/1/tool").read_bytes() == b"second"


def test_one_file_must_be_named(served: tuple[Path, str], root: Path) -> None:
    artefact = _publish(served, "1", b"x")
    with pytest.raises(ValueError, match="file="):
        LocalHost().apply(installed, program="tool", artefact=artefact)
