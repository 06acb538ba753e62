"""The watch of an engine: one that hangs is ended, and one that is full or idle is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from holdfast.host_programs import engine_watch
from tests.unit.fake_engine import _alive
from tests.unit.fake_upstreams import folder_for_sockets, until

FAKE = Path(__file__).with_name("fake_engine.py")
LOOKS = 5


@dataclass
class Watched:
    """A running engine, and the watch of it."""

    folder: Path

    def start(self) -> None:
        """Start the engine, as systemd does it whenever it has ended."""
        self._systemctl("start")

    def stop(self) -> None:
        """Stop the engine."""
        self._systemctl("stop")

    def _systemctl(self, verb: str) -> None:
        subprocess.run(
            [sys.executable, FAKE, "systemctl", verb, "chat.service"],
            env={**os.environ, "FAKE_ENGINE": str(self.folder)},
            check=True,
        )

    def be(self, *states: str) -> None:
        """Have the engine do this now."""
        for name in ("busy", "hung", "mute"):
            (self.folder / name).unlink(missing_ok=True)
            if name in states:
                (self.folder / name).write_text("3")

    def look(self, seconds: float = 0) -> int:
        """Look once; how it ends. After ``seconds`` without progress it hangs."""
        with pytest.MonkeyPatch.context() as patch:
            # One that is to answer has the whole time, because this machine may be busy.
            if (self.folder / "mute").exists():
                patch.setattr(engine_watch, "ANSWER_SECONDS", 0.1)
            return engine_watch.main(
                [str(self.folder / "http.sock"), "--state", str(self.folder / "seen.json")]
                + ["--seconds", str(seconds), "--busy", "run", "--busy", "wait"]
                + ["--progress", "tokens_total"]
            )

    @property
    def pid(self) -> int:
        return int((self.folder / "pid").read_text())


@pytest.fixture
def engine() -> Iterator[Watched]:
    made = Watched(Path(folder_for_sockets()))
    (made.folder / "chat.yaml").write_text(f"model: {made.folder}\n")
    made.start()
    yield made
    made.be()
    made.stop()


def gone(pid: int) -> bool:
    return not _alive(pid)


@pytest.mark.parametrize("states", [("busy", "hung"), ("busy", "hung", "mute"), ("mute",)], ids=str)
def test_one_that_hangs_is_ended_and_that_is_an_alert(
    engine: Watched, states: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    pid = engine.pid
    engine.be(*states)
    # A first look can tell nothing, nor one that comes too soon.
    assert [engine.look(3600), engine.look(3600)] == [0, 0]
    assert not gone(pid)
    assert engine.look(0.001) == 1
    until(lambda: gone(pid))
    assert "produced no tokens for" in capsys.readouterr().err
    # The next one is another engine, and has its own time.
    engine.be()
    engine.start()
    engine.be(*states)
    assert engine.look(3600) == 0
    assert not gone(engine.pid)


@pytest.mark.parametrize("states", [("busy",), (), ("hung",)], ids=["full", "idle", "idle long"])
def test_one_that_is_full_or_idle_is_left_alone(engine: Watched, states: tuple[str, ...]) -> None:
    pid = engine.pid
    engine.be(*states)
    assert {engine.look(1e-9 if look else 3600) for look in range(LOOKS)} == {0}
    assert not gone(pid)


def test_work_that_begins_after_a_long_rest_has_its_own_time(engine: Watched) -> None:
    engine.be("hung")
    engine.look(3600)
    engine.be("busy", "hung")
    assert engine.look(1e-9) == 0
    assert not gone(engine.pid)


def test_one_that_is_mute_for_a_moment_is_left_alone(engine: Watched) -> None:
    for states in (("busy",), ("mute",), ("busy",)):
        engine.be(*states)
        assert engine.look(3600 if "mute" in states else 1e-9) == 0
    assert not gone(engine.pid)


def test_another_process_has_its_own_time(engine: Watched) -> None:
    engine.be("busy", "hung")
    engine.look(3600)
    engine.stop()
    engine.start()
    assert engine.look(1e-9) == 0
    assert not gone(engine.pid)


def test_one_that_is_stopped_is_no_alert(engine: Watched) -> None:
    engine.be("busy", "hung")
    engine.look(3600)
    engine.stop()
    assert engine.look(0) == 0
    assert not (engine.folder / "seen.json").exists()


def test_what_it_remembers_may_be_broken(engine: Watched) -> None:
    engine.be("busy", "hung")
    for text in ("", "[]", "{}", '{"since": 1}'):
        (engine.folder / "seen.json").write_text(text)
        assert engine.look(1) == 0
