#!/usr/bin/python3
"""Leave traps for root: code where a careless root would load or start it.

`trap.py WITNESS FOLDER ...`, as the user who sets them: each FOLDER is taken for a home, a working
folder and a folder of programs. Prints the paths of what it left, one a line. Every trap that
springs tells the journal who ran it, and writes to WITNESS, where root alone may.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("nvidia-smi", "curl", "sh", "python3", "env", "systemctl", "logger", "haproxy", "cat")
STARTS = (".bashrc", ".profile", ".bash_profile", ".zshenv")
PYTHON = """\
import os, syslog
syslog.openlog("holdfast-trap")
syslog.syslog(f"{{__file__}} was run by user {{os.getuid()}}")
if os.getuid() == 0:
    open({witness!r}, "a").write(f"{{__file__}}\\n")
"""
SHELL = """\
#!/bin/sh
/usr/bin/logger --tag holdfast-trap "$0 was run by user $(/usr/bin/id --user)"
[ "$(/usr/bin/id --user)" = 0 ] && echo "$0" >> {witness}
"""


def traps(folder: Path, witness: str) -> dict[Path, str]:
    """Path -> text of every trap in one folder."""
    python, shell = PYTHON.format(witness=witness), SHELL.format(witness=witness)
    site = folder / f".local/lib/python3.{sys.version_info.minor}/site-packages"
    # One line that begins with "import" is run.
    line = f"import sys; exec({python!r}.replace('__file__', repr('trap.pth')))\n"
    modules = ("usercustomize.py", "sitecustomize.py")
    return {
        **{place / name: python for place in (folder, site) for name in modules},
        site / "trap.pth": line,
        **{folder / name: shell for name in STARTS},
        **{place / name: shell for place in (folder, folder / "bin") for name in PROGRAMS},
    }


def main(witness: str, *folders: str) -> None:
    """Set every trap that the user may set."""
    for folder in folders:
        for path, text in traps(Path(folder), witness).items():
            if path.exists():
                continue
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                path.chmod(0o700)
                print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
