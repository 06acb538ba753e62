"""The content store: one build per recipe, and no trace of one that failed."""

from __future__ import annotations

import os
import tarfile
import threading
from pathlib import Path

import pytest

from tests.lab.artefacts import archive, store


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_same_inputs_build_once_even_when_asked_at_the_same_time() -> None:
    builds: list[str] = []
    entered = threading.Event()

    def build(target: Path) -> str:
        builds.append(target.name)
        entered.wait(0.2)
        (target / "file").write_text("made")
        return "1.0"

    threads = [
        threading.Thread(target=store.stored, args=("thing", {"flag": "a"}, build))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entry = store.stored("thing", {"flag": "a"}, build)
    assert len(builds) == 1
    assert (entry.version, entry.file("file").read_text()) == ("1.0", "made")


def test_other_inputs_are_another_entry() -> None:
    def build(target: Path) -> str:
        (target / "file").write_text("x")
        return "1"

    first = store.stored("thing", {"flag": "a"}, build)
    second = store.stored("thing", {"flag": "b"}, build)
    assert first.directory != second.directory
    assert first.file("file").exists()
    assert second.file("file").exists()


def test_a_failed_build_leaves_nothing_and_is_tried_again() -> None:
    def fail(target: Path) -> str:
        (target / "half").write_text("written")
        raise RuntimeError("the compiler said no")

    with pytest.raises(RuntimeError, match="the compiler said no"):
        store.stored("thing", {}, fail)
    assert [path for path in store.root().iterdir() if path.is_dir()] == []

    def succeed(target: Path) -> str:
        (target / "whole").write_text("written")
        return "1"

    assert store.stored("thing", {}, succeed).file("whole").exists()


def test_equal_contents_make_an_equal_archive(tmp_path: Path) -> None:
    targets = []
    for number, order in enumerate((("a", "b"), ("b", "a"))):
        folder = tmp_path / f"folder{number}"
        folder.mkdir()
        for name in order:
            (folder / name).write_text(name)
        (folder / "a").chmod(0o700)
        (folder / "b").chmod(0o600)
        (folder / "link").symlink_to("a")
        os.utime(folder / "a", (number + 1, number + 1))
        targets.append(tmp_path / f"{number}.tar.gz")
        archive.pack(folder, targets[-1], "top")
    assert targets[0].read_bytes() == targets[1].read_bytes()
    with tarfile.open(targets[0]) as tar:
        assert tar.getnames() == ["top", "top/a", "top/b", "top/link"]
        modes = {member.name: member.mode for member in tar if member.isreg()}
        assert modes == {"top/a": 0o755, "top/b": 0o644}
        assert {(member.uid, member.uname) for member in tar} == {(0, "root")}
