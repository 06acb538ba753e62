"""Faults at a step of a host's program: a signal, or a disk that is full from then on.

The steps are what it does to the world: it renames or removes a file, starts another program,
connects; for a full disk, it opens a file to write. Environment variables say what happens where:

FAULT       in the program that works (``--here``)
UNDO_FAULT  in the first one that undoes it (``--undo``)

``SIGKILL:7`` is right before the 7th step, ``ENOSPC:3`` from the 3rd on, and ``SIGKILL:@swapped``
before the first step after the record ``FAULT_RECORD`` says so, renaming aside.
"""

from __future__ import annotations

from pathlib import Path

WAS_KILLED = "undo-was-killed"
"""In the folder ``FAULT_FOLDER`` once the program that undoes has met its fault."""

_HOOK = f"""
import errno as _errno, os as _os, signal as _signal, sys as _sys
_undoes = "--undo" in _sys.argv
_fault, _at = _os.environ.get("UNDO_FAULT" if _undoes else "FAULT", ":0").split(":")
_mark = _os.path.join(_os.environ.get("FAULT_FOLDER", "."), "{WAS_KILLED}")
_was_killed = _os.path.exists(_mark)
_record = _os.environ.get("FAULT_RECORD", "")
_steps = 0
def _is_there():
    if _at[0] != "@":
        return _steps >= int(_at) if _fault == "ENOSPC" else _steps == int(_at)
    return _os.path.exists(_record) and f'"{{_at[1:]}}"' in open(_record).read()
def _hook(event, arguments):
    global _steps
    if _fault == "ENOSPC":
        counts = event == "open" and str(arguments[1])[0] in "wxa"
    elif _at[0] == "@":
        counts = event in ("subprocess.Popen", "socket.connect")
    else:
        counts = event in ("os.rename", "os.remove", "subprocess.Popen", "socket.connect")
    if not counts:
        return
    _steps += 1
    print("undo" if _undoes else "step", _steps, event, file=_sys.stderr, flush=True)
    if not _is_there():
        return
    if _fault == "ENOSPC":
        raise OSError(_errno.ENOSPC, _os.strerror(_errno.ENOSPC))
    if _undoes:
        _os.mkdir(_mark)
    _os.kill(_os.getpid(), getattr(_signal, _fault))
if _fault and ("--here" in _sys.argv or _undoes and not _was_killed):
    _sys.addaudithook(_hook)
"""


def inject(text: str, into: Path, **constants: object) -> None:
    """Write the program with faults, and with other values for some of its constants."""
    for name, value in constants.items():
        lines = text.splitlines(keepends=True)
        (at,) = [at for at, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[at] = f"{name} = {value!r}\n"
        text = "".join(lines)
    into.write_text(text.replace("import argparse\n", f"import argparse\n{_HOOK}", 1))
