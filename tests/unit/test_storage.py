"""Mount units, model files and their proofs; copies are made on this machine's own disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploys.storage import _mount_files
from facts.storage import PROOFS, CheckpointState, ModelState, StorageStates
from holdfast.service import texts
from holdfast.settings import Checkpoint, HostSettings, ModelFile, NfsMount, Storage
from holdfast.storage import (
    CHECKSUMS,
    WRITE_SUMS,
    checkpoint_path,
    checksums,
    mount_of,
    options,
    programs,
    unit_name,
    what,
)
from operations.storage import kept
from tests.unit.local_host import LocalHost
from tests.unit.recorded_facts import read

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
    state = read(StorageStates)
    assert state.models == {
        "tiny.gguf": ModelState(867072, "644", "root:root", "a" * 64),
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


def test_a_locale_with_a_decimal_comma_leaves_the_proof_good(
    here: LocalHost, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert here.programs is not None
    program, real = here.programs / "stat", shutil.which("stat")
    program.write_text(f'#!/bin/sh\n[ "$LC_ALL" = C ] && exec {real} "$@"; {real} "$@" | tr . ,\n')
    program.chmod(0o755)
    storage = _storage(models, _on_nas(tmp_path))
    assert here.apply(kept, storage=storage)[1] == ""
    assert _owner_is_ours(here.apply(kept, storage=storage)[0])


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
    state = read(
        StorageStates,
        ["guarded|/mnt/nas", "unit|mnt-nas.automount", r"unit|mnt-old\x2dnas.automount"],
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


LIST = "SHA256SUMS"
FILES = {"config.json": b"{}", "empty.txt": b"", "model.safetensors": CONTENT}


def _sums(files: dict[str, bytes]) -> bytes:
    return b"".join(
        f"{hashlib.sha256(content).hexdigest()}  {name}\n".encode()
        for name, content in files.items()
    )


SUMS = _sums(FILES)


@pytest.fixture
def nas(tmp_path: Path) -> Path:
    """A folder as its publisher wrote it."""
    folder = tmp_path / "nas"
    folder.mkdir()
    for name, content in {**FILES, LIST: SUMS}.items():
        (folder / name).write_bytes(content)
    return folder


def _keeping(
    models: Path, source: Path | str, sums: bytes = SUMS, size_mib: float = 1
) -> tuple[Storage, Path]:
    """Settings with one checkpoint, and the folder it belongs in."""
    checkpoint = Checkpoint(
        name="tiny",
        source=str(source),
        sha256=hashlib.sha256(sums).hexdigest(),
        size_mib=size_mib,
        description="/nowhere",
    )
    storage = Storage(checkpoints=[checkpoint], models_path=str(models))
    return storage, Path(checkpoint_path(storage, checkpoint))


def _is_right(folder: Path) -> bool:
    held = {path.name: path.read_bytes() for path in folder.iterdir()}
    return held == {**FILES, LIST: SUMS} and not folder.is_symlink()


def _part(folder: Path) -> Path:
    part = folder.with_name(f".{folder.name}.part")
    part.mkdir()
    (part / LIST).write_bytes(SUMS)
    return part


def test_a_checkpoint_is_copied_whole_and_proved_once(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas)
    (nas / "unlisted.py").write_text("not proved")
    commands, failure = here.apply(kept, storage=storage)
    assert failure == ""
    assert len(commands) == 1
    assert _is_right(folder)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    assert sorted(path.name for path in models.iterdir()) == [PROOFS, folder.name]
    assert [path.name for path in (models / PROOFS).iterdir()] == [folder.name]
    again, _ = here.apply(kept, storage=storage)
    assert _owner_is_ours(again)


def test_a_checkpoint_is_downloaded(here: LocalHost, models: Path, nas: Path, url: str) -> None:
    storage, folder = _keeping(models, f"{url}/tiny/")
    failure = here.apply(kept, storage=storage)[1]
    assert f"{url}/tiny/{LIST} is not to be had there" in failure
    nas.rename(models.parent / "served/tiny")
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)


def test_the_checkpoint_before_stays(here: LocalHost, models: Path, nas: Path) -> None:
    before, old = _keeping(models, nas)
    here.apply(kept, storage=before)
    (nas / "config.json").write_bytes(b'{"new": 1}')
    sums = _sums({**FILES, "config.json": b'{"new": 1}'})
    (nas / LIST).write_bytes(sums)
    after, new = _keeping(models, nas, sums)
    assert here.apply(kept, storage=after)[1] == ""
    assert (new / "config.json").read_bytes() == b'{"new": 1}'
    assert _is_right(old)
    assert _owner_is_ours(here.apply(kept, storage=before)[0])


@pytest.mark.parametrize("name", FILES)
def test_a_wrong_file_leaves_the_checkpoint_out(
    here: LocalHost, models: Path, nas: Path, name: str
) -> None:
    storage, folder = _keeping(models, nas)
    (nas / name).write_bytes(b"something else")
    got, wanted = (hashlib.sha256(data).hexdigest() for data in (b"something else", FILES[name]))
    assert here.apply(kept, storage=storage)[1] == (
        f"checkpoint tiny: {nas}/{name} has sha256 {got} and SHA256SUMS wants {wanted};"
        f" {folder.name} was not replaced"
    )
    assert not folder.exists()
    (nas / name).write_bytes(FILES[name])
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)


def test_another_list_is_told_by_its_checksum(here: LocalHost, models: Path, nas: Path) -> None:
    storage, folder = _keeping(models, nas)
    (nas / LIST).write_bytes(SUMS + b"\n")
    got = hashlib.sha256(SUMS + b"\n").hexdigest()
    _, failure = here.apply(kept, storage=storage)
    assert f"{nas}/{LIST} has sha256 {got} and the inventory wants" in failure
    assert not folder.exists()


@pytest.mark.parametrize("name", [LIST, "model.safetensors"])
def test_a_missing_file_is_named(here: LocalHost, models: Path, nas: Path, name: str) -> None:
    storage, folder = _keeping(models, nas)
    (nas / name).unlink()
    assert here.apply(kept, storage=storage)[1] == (
        f"checkpoint tiny: {nas}/{name} cannot be read; is the NAS up, and the file there?"
    )
    assert not folder.exists()


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{}  ../evil", "has no checksum of a plain file in line 4"),
        ("{}  /etc/evil", "has no checksum of a plain file in line 4"),
        ("{}  sub/../evil", "has no checksum of a plain file in line 4"),
        ("{}  sub/.evil", "has no checksum of a plain file in line 4"),
        ("{}  .sub/evil", "has no checksum of a plain file in line 4"),
        ("{}  sub//evil", "has no checksum of a plain file in line 4"),
        ("{}  sub/", "has no checksum of a plain file in line 4"),
        ("{}  .evil", "has no checksum of a plain file in line 4"),
        ("{}  -evil", "has no checksum of a plain file in line 4"),
        ("{}  $(touch evil)", "has no checksum of a plain file in line 4"),
        ("{}  evil two", "has no checksum of a plain file in line 4"),
        ("{}  evil\r", "has no checksum of a plain file in line 4"),
        ("{}  e\0vil", "has no checksum of a plain file in line 4"),
        ("{} *evil", "has no checksum of a plain file in line 4"),
        ("abc  evil", "has no checksum of a plain file in line 4"),
        ("{}  good\n", "has no checksum of a plain file in line 5"),
        ("{}  SHA256SUMS", "lists itself"),
    ],
)
def test_a_list_of_anything_but_plain_files_is_refused(
    here: LocalHost, models: Path, nas: Path, line: str, wrong: str
) -> None:
    sums = SUMS + line.format(SHA256).encode() + b"\n"
    (nas / LIST).write_bytes(sums)
    storage, _ = _keeping(models, nas, sums)
    commands, failure = here.apply(kept, storage=storage)
    assert len(commands) == 1
    assert failure == (
        f"checkpoint tiny: {nas}/{LIST} {wrong};"
        f" remove it and write it again there with: {WRITE_SUMS}"
    )
    assert [path.name for path in models.iterdir()] == [PROOFS]


POOLED = {
    "config.json": b'{"auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": ["other--a.B"]}}',
    "modeling_x.py": b"class X: ...",
    "model.safetensors.index.json": b'{"weight_map": {"a": "deep/er/one.safetensors"}}',
    "deep/er/one.safetensors": CONTENT,
    "modules.json": json.dumps(
        [
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]
    ).encode(),
    "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
}


@pytest.fixture
def pooled(tmp_path: Path) -> Path:
    """A folder with sub-folders, whose list its publisher wrote with the documented command."""
    folder = tmp_path / "pooled"
    for name, content in {**POOLED, ".hidden": b"", "1_Pooling/.hidden": b""}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    subprocess.run(["sh", "-c", WRITE_SUMS], cwd=folder, check=True)
    return folder


def _held(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LIST]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_checkpoint_with_folders_is_copied_whole(
    here: LocalHost, models: Path, pooled: Path
) -> None:
    storage, folder = _keeping(models, pooled, (pooled / LIST).read_bytes())
    assert here.apply(kept, storage=storage)[1] == ""
    assert _held(folder) == POOLED
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_dir()} == {0o755}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    assert _owner_is_ours(here.apply(kept, storage=storage)[0])
    # What changes in a sub-folder is seen and mended, and what was begun there goes on.
    (folder / "1_Pooling/config.json").write_bytes(b"{}")
    part = folder.with_name(f".{folder.name}.part")
    (part / "1_Pooling").mkdir(parents=True)
    (part / "1_Pooling/.config.json.part").write_bytes(b'{"pooling')
    assert here.apply(kept, storage=storage)[1] == ""
    assert _held(folder) == POOLED


@pytest.mark.parametrize(
    ("name", "who"),
    [
        ("1_Pooling/config.json", "modules.json"),
        ("deep/er/one.safetensors", "model.safetensors.index.json"),
        ("modeling_x.py", "config.json"),
    ],
)
def test_what_the_model_names_must_be_listed(
    here: LocalHost, models: Path, pooled: Path, name: str, who: str
) -> None:
    (pooled / name).unlink()
    subprocess.run(["sh", "-c", WRITE_SUMS], cwd=pooled, check=True)
    storage, _ = _keeping(models, pooled, (pooled / LIST).read_bytes())
    failure = here.apply(kept, storage=storage)[1]
    assert f"{pooled}/{LIST} lists no {name}, which {who} names; remove it and write" in failure
    assert [path.name for path in models.iterdir()] == [PROOFS]


@pytest.mark.parametrize("text", [b"[]", b"{", b'{"weight_map": 5}', b"\xff"])
def test_a_description_that_cannot_be_read_is_refused(
    here: LocalHost, models: Path, pooled: Path, text: bytes
) -> None:
    (pooled / "model.safetensors.index.json").write_bytes(text)
    subprocess.run(["sh", "-c", WRITE_SUMS], cwd=pooled, check=True)
    storage, _ = _keeping(models, pooled, (pooled / LIST).read_bytes())
    failure = here.apply(kept, storage=storage)[1]
    assert "lists an index that cannot be read" in failure


def test_a_list_of_something_else_is_refused(here: LocalHost, models: Path, nas: Path) -> None:
    (_, *without_config) = SUMS.splitlines(keepends=True)
    sums = b"".join(without_config)
    (nas / LIST).write_bytes(sums)
    storage, _ = _keeping(models, nas, sums)
    assert "lists no config.json" in here.apply(kept, storage=storage)[1]


def test_a_list_may_end_without_a_newline(here: LocalHost, models: Path, nas: Path) -> None:
    sums = SUMS.removesuffix(b"\n")
    (nas / LIST).write_bytes(sums)
    storage, folder = _keeping(models, nas, sums)
    assert here.apply(kept, storage=storage)[1] == ""
    assert (folder / "model.safetensors").read_bytes() == CONTENT


def test_a_stopped_checkpoint_goes_on_where_it_was(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas)
    part = _part(folder)
    (part / ".model.safetensors.part").write_bytes(CONTENT[:200_000])
    (part / "config.json").write_bytes(FILES["config.json"])
    # What is here already is wrong at the source: nothing of it could have been fetched again.
    (nas / LIST).unlink()
    (nas / "config.json").unlink()
    (nas / "model.safetensors").write_bytes(b"\0" * 200_000 + CONTENT[200_000:])
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)
    assert not part.exists()


def test_the_right_folder_is_proved_and_not_fetched(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, "/nowhere/at/all")
    nas.rename(folder)
    (folder / "config.json").chmod(0o600)
    # Left by a copy that was stopped before.
    (_part(folder) / ".model.safetensors.part").write_bytes(b"the beginning")
    weights = (folder / "model.safetensors").stat().st_ino
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)
    assert (folder / "model.safetensors").stat().st_ino == weights
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o644
    assert _owner_is_ours(here.apply(kept, storage=storage)[0])


def test_what_is_not_listed_is_removed(here: LocalHost, models: Path, nas: Path) -> None:
    storage, folder = _keeping(models, nas)
    here.apply(kept, storage=storage)
    for stray in ("stray.safetensors", ".hidden", "config.json.part"):
        (folder / stray).write_bytes(b"")
        assert here.apply(kept, storage=storage)[1] == ""
        assert _is_right(folder)
    (folder / "config.json").rename(folder / "renamed.json")
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)
    (folder / "sub").mkdir()
    (folder / "sub/file").write_bytes(b"")
    (folder / "model.safetensors").rename(models.parent / "elsewhere")
    (folder / "model.safetensors").symlink_to(models.parent / "elsewhere")
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)
    assert not (folder / "model.safetensors").is_symlink()


@pytest.mark.parametrize("name", [*FILES, LIST])
def test_a_changed_or_lost_file_is_mended(
    here: LocalHost, models: Path, nas: Path, name: str
) -> None:
    storage, folder = _keeping(models, nas)
    here.apply(kept, storage=storage)
    (folder / name).write_bytes(b"!" * max(1, len((folder / name).read_bytes())))
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)
    (folder / name).unlink()
    assert here.apply(kept, storage=storage)[1] == ""
    assert _is_right(folder)


def test_a_damaged_checkpoint_stays_until_it_can_be_mended(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas)
    here.apply(kept, storage=storage)
    (folder / "config.json").write_bytes(b"other")
    nas.rename(models.parent / "away")
    assert "cannot be read" in here.apply(kept, storage=storage)[1]
    assert (folder / "model.safetensors").read_bytes() == CONTENT
    assert (folder / "config.json").read_bytes() == b"other"


def test_a_checkpoint_everybody_may_write_is_closed(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas)
    here.apply(kept, storage=storage)
    folder.chmod(0o777)
    (folder / "config.json").chmod(0o666)
    (command,) = here.apply(kept, storage=storage)[0]
    assert command.startswith("chown")
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "config.json").stat().st_mode & 0o777 == 0o644


def test_a_failed_check_has_every_checkpoint_looked_at_again(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas)
    here.apply(kept, storage=storage)
    file = folder / "model.safetensors"
    before = file.stat()
    file.write_bytes(b"!" + CONTENT[1:])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _owner_is_ours(here.apply(kept, storage=storage)[0])
    assert here.programs is not None
    (here.programs / "systemctl").write_text("#!/bin/sh\n")
    (here.programs / "systemctl").chmod(0o755)
    commands, failure = here.apply(kept, storage=storage)
    assert failure == ""
    assert "reset-failed" in commands[-1]
    assert _is_right(folder)


def test_no_space_for_a_checkpoint_is_said_before_its_weights_are_fetched(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas, size_mib=2**40)
    assert f"it needs {2**40} MiB" in here.apply(kept, storage=storage)[1]
    assert [path.name for path in models.glob(".*.part/*")] == [LIST]
    # What is there needs no space.
    nas.rename(folder)
    assert here.apply(kept, storage=storage)[1] == ""


def test_the_regular_check_finds_a_damaged_checkpoint(
    here: LocalHost, models: Path, nas: Path
) -> None:
    storage, folder = _keeping(models, nas)
    here.apply(kept, storage=storage)
    bare = {"hostname": "a", "distribution": "debian13", "interfaces": {"eth0": {"role": "lan"}}}
    settings = HostSettings.model_validate(bare).model_copy(update={"storage": storage})
    written = texts(programs(settings))
    files = {path.rpartition("/")[2]: text for path, text in written.items()}
    listed = models / "models.sha256"
    listed.write_text(files["models.sha256"])
    unit = files["holdfast-models-verify.service"].replace(CHECKSUMS, str(listed))
    commands = [
        line.removeprefix("ExecStart=").split()
        for line in unit.splitlines()
        if line.startswith("ExecStart=")
    ]

    def found() -> list[bool]:
        return [
            subprocess.run(command, check=False, capture_output=True).returncode != 0
            for command in commands
        ]

    assert found() == [False, False]
    (folder / "model.safetensors").write_bytes(b"!" + CONTENT[1:])
    assert found() == [False, True]
    (folder / LIST).write_bytes(SUMS.replace(SHA256.encode(), b"0" * 64))
    assert found()[0]


def test_recorded_checkpoints() -> None:
    listing = "5" * 64
    state = read(
        StorageStates,
        [
            f"checkpoint|tiny-0123456789ab|d 755 root:root,f 644 root:root|{listing}",
            f"checkpoint|moved-0123456789ab|d 700 root:root,f 600 operator:users|{listing}",
            f"proof|tiny-0123456789ab|{SHA256} {listing}",
            f"proof|moved-0123456789ab|{SHA256} {'6' * 64}",
        ],
    )
    assert state.checkpoints == {
        "tiny-0123456789ab": CheckpointState("d 755 root:root,f 644 root:root", SHA256),
        "moved-0123456789ab": CheckpointState("d 700 root:root,f 600 operator:users", None),
    }
