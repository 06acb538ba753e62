"""Mount units, model files and their proofs; copies are made on this machine's own disk."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploys.storage import _mount_files
from facts.storage import PROOFS, ModelState, StorageStates
from holdfast.settings import ModelFile, NfsMount, Storage
from holdfast.storage import checksums, mount_of, options, unit_name, what
from operations.storage import kept
from tests.unit.local_host import LocalHost

# `systemd-escape --path --suffix=mount PATH`, systemd 252.
ESCAPED = {
    "/": "-.mount",
    "/mnt/nas": "mnt-nas.mount",
    "/mnt/nas-models": r"mnt-nas\x2dmodels.mount",
    "/srv/a.b/c@d+e": r"srv-a.b-c\x40d\x2be.mount",
    "/.hidden/x": r"\x2ehidden-x.mount",
    "/mnt/a_b": "mnt-a_b.mount",
    "/mnt/./x": "mnt-x.mount",
    "/mnt/.dot": "mnt-.dot.mount",
    "/mnt/ä": r"mnt-\xc3\xa4.mount",
}
NAS = NfsMount(name="nas", server="nas", export="/srv/holdfast", path="/mnt/nas")
CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize("path", ESCAPED)
def test_unit_names_are_those_of_systemd(path: str) -> None:
    assert unit_name(path, "mount") == ESCAPED[path]


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("nas.home.arpa", "nas.home.arpa:/srv/holdfast"),
        ("10.77.0.30", "10.77.0.30:/srv/holdfast"),
        ("fd77::30", "[fd77::30]:/srv/holdfast"),
    ],
)
def test_what_is_mounted(server: str, expected: str) -> None:
    assert what(NAS.model_copy(update={"server": server})) == expected


def test_options_are_hard_nfs_42_and_say_read_only() -> None:
    assert options(NAS) == "vers=4.2,hard,_netdev,nosuid,nodev,noexec,rw"
    assert options(NAS.model_copy(update={"read_only": True})).endswith(",ro")


def test_the_innermost_mount_holds_a_path() -> None:
    inner = NAS.model_copy(update={"name": "models", "path": "/mnt/nas/models"})
    assert mount_of([NAS, inner], "/mnt/nas/models/a.gguf") == inner
    assert mount_of([NAS, inner], "/mnt/nas") == NAS
    assert mount_of([NAS, inner], "/mnt/nasty") is None


def test_unit_files_say_timeouts_as_systemd_reads_them_in_units() -> None:
    mount, automount = (file.content for file in _mount_files(NAS))
    assert "TimeoutSec=30\n" in mount
    assert "TimeoutIdleSec=600\n" in automount
    assert "x-systemd" not in mount + automount


def test_recorded_state() -> None:
    lines = [
        "model|tiny.gguf|867072|1795233462.123456789|644|root:root",
        "model|moved.gguf|10|1795233462.5|600|operator:operator",
        f"proof|tiny.gguf|{SHA256} 867072 1795233462.123456789",
        f"proof|moved.gguf|{SHA256} 10 1795233461.0",
        "guarded|/mnt/nas",
        "unit|mnt-nas.automount",
        r"unit|mnt-old\x2dnas.automount",
    ]
    state = StorageStates().process(lines)
    assert state.models == {
        "tiny.gguf": ModelState(867072, "644", "root:root", SHA256),
        "moved.gguf": ModelState(10, "600", "operator:operator", None),
    }
    assert state.guarded == {"/mnt/nas"}
    assert state.mount_units == {"mnt-nas.automount", r"mnt-old\x2dnas.automount"}


@pytest.fixture
def here(tmp_path: Path) -> LocalHost:
    """This machine, where giving a file to root is not ours to do."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "chown").write_text("#!/bin/sh\n")
    (programs / "chown").chmod(0o755)
    return LocalHost(programs=programs)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / PROOFS).mkdir(parents=True)
    return folder


def _storage(models: Path, source: str, size_mib: float = 1) -> Storage:
    model = ModelFile(
        name="tiny", source=source, sha256=SHA256, size_mib=size_mib, filename="tiny.gguf"
    )
    return Storage(models=[model], models_path=str(models))


def _on_nas(tmp_path: Path, content: bytes = CONTENT) -> str:
    (tmp_path / "nas.gguf").write_bytes(content)
    return str(tmp_path / "nas.gguf")


def _owner_is_ours(commands: list[str]) -> bool:
    return all(command.startswith("chown") for command in commands)


def test_a_copy_is_proved_once(here: LocalHost, models: Path, tmp_path: Path) -> None:
    storage = _storage(models, _on_nas(tmp_path))
    commands, failure = here.apply(kept, storage=storage)
    assert failure == ""
    assert len(commands) == 1
    assert (models / "tiny.gguf").read_bytes() == CONTENT
    assert (models / "tiny.gguf").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in models.iterdir()) == [PROOFS, "tiny.gguf"]
    again, _ = here.apply(kept, storage=storage)
    assert _owner_is_ours(again)


def test_a_stopped_copy_goes_on_where_it_was(here: LocalHost, models: Path, tmp_path: Path) -> None:
    part = models / f".{SHA256}.part"
    part.write_bytes(CONTENT[:200_000])
    # The rest alone is right at the source: a copy begun again could not have the checksum.
    source = _on_nas(tmp_path, b"\0" * 200_000 + CONTENT[200_000:])
    assert here.apply(kept, storage=_storage(models, source))[1] == ""
    assert (models / "tiny.gguf").read_bytes() == CONTENT


def test_a_complete_part_only_takes_its_name(here: LocalHost, models: Path) -> None:
    (models / f".{SHA256}.part").write_bytes(CONTENT)
    assert here.apply(kept, storage=_storage(models, "/nowhere/at/all"))[1] == ""
    assert (models / "tiny.gguf").read_bytes() == CONTENT


def test_a_file_put_there_by_hand_is_proved_and_not_fetched(here: LocalHost, models: Path) -> None:
    (models / "tiny.gguf").write_bytes(CONTENT)
    assert here.apply(kept, storage=_storage(models, "/nowhere/at/all"))[1] == ""
    assert (models / PROOFS / "tiny.gguf").read_text().startswith(SHA256)


def test_a_wrong_checksum_replaces_nothing_and_names_all_three(
    here: LocalHost, models: Path, tmp_path: Path
) -> None:
    (models / "tiny.gguf").write_bytes(b"the old one")
    source = _on_nas(tmp_path, b"something else")
    _, failure = here.apply(kept, storage=_storage(models, source))
    got = hashlib.sha256(b"something else").hexdigest()
    assert failure == (
        f"model tiny: {source} has sha256 {got} and the inventory wants {SHA256};"
        " tiny.gguf was not replaced"
    )
    assert (models / "tiny.gguf").read_bytes() == b"the old one"
    assert sorted(path.name for path in models.iterdir()) == [PROOFS, "tiny.gguf"]


def test_a_changed_file_is_looked_at_again(here: LocalHost, models: Path, tmp_path: Path) -> None:
    storage = _storage(models, _on_nas(tmp_path))
    here.apply(kept, storage=storage)
    (models / "tiny.gguf").write_bytes(CONTENT[:-1] + b"!")
    assert here.apply(kept, storage=storage)[1] == ""
    assert (models / "tiny.gguf").read_bytes() == CONTENT


def test_no_space_is_said_before_anything_is_fetched(
    here: LocalHost, models: Path, tmp_path: Path
) -> None:
    _, failure = here.apply(kept, storage=_storage(models, _on_nas(tmp_path), size_mib=2**40))
    assert f"it needs {2**40} MiB" in failure
    assert not (models / f".{SHA256}.part").exists()


def test_an_absent_source_asks_about_the_nas(here: LocalHost, models: Path) -> None:
    _, failure = here.apply(kept, storage=_storage(models, "/nowhere/at/all"))
    assert failure == (
        "model tiny: /nowhere/at/all cannot be read; is the NAS up, and the file there?"
    )


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A server that cannot continue a download, as many cannot."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/tiny.gguf").write_bytes(CONTENT)
    handler = partial(_Quiet, directory=str(tmp_path / "served"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("begun", [b"", b"the beginning of something"])
def test_a_download_begins_again_where_it_cannot_go_on(
    here: LocalHost, models: Path, url: str, begun: bytes
) -> None:
    if begun:
        (models / f".{SHA256}.part").write_bytes(begun)
    assert here.apply(kept, storage=_storage(models, f"{url}/tiny.gguf"))[1] == ""
    assert (models / "tiny.gguf").read_bytes() == CONTENT


def test_a_download_that_is_not_there_says_so(here: LocalHost, models: Path, url: str) -> None:
    _, failure = here.apply(kept, storage=_storage(models, f"{url}/other.gguf"))
    assert f"model tiny: {url}/other.gguf is not to be had there" in failure


def test_an_undeclared_mount_is_withdrawn() -> None:
    state = StorageStates().process(
        ["guarded|/mnt/nas", "unit|mnt-nas.automount", r"unit|mnt-old\x2dnas.automount"]
    )
    here = LocalHost(facts={StorageStates: state})
    (command,) = here.planned(kept, storage=Storage(mounts=[NAS]))
    assert r"'mnt-old\x2dnas.mount'" in command
    assert "mnt-nas.mount" not in command


def test_a_failed_check_has_every_model_looked_at_again(
    here: LocalHost, models: Path, tmp_path: Path
) -> None:
    storage = _storage(models, _on_nas(tmp_path))
    here.apply(kept, storage=storage)
    # Bits that rot change neither size nor mtime.
    file = models / "tiny.gguf"
    before = file.stat()
    file.write_bytes(b"!" + CONTENT[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _owner_is_ours(here.apply(kept, storage=storage)[0])
    assert here.programs is not None
    systemctl = here.programs / "systemctl"
    systemctl.write_text("#!/bin/sh\n")
    systemctl.chmod(0o755)
    commands, failure = here.apply(kept, storage=storage)
    assert failure == ""
    assert "reset-failed" in commands[-1]
    assert file.read_bytes() == CONTENT


def test_checksums_are_in_the_form_sha256sum_reads(models: Path) -> None:
    assert checksums(_storage(models, "/x")) == f"{SHA256}  {models}/tiny.gguf\n"
