#!/usr/bin/python3 -I
"""Put another thing in the place of what root works with, as fast as it can.

`racer.py folder FOLDER TARGET`: each new folder in FOLDER is moved away, and a link to TARGET takes
its name, until SIGTERM. `racer.py fifo FOLDER`: each file ``a...`` there takes the place of the
FIFO ``b...`` of the same number, and back, in front of one who opens them in order, until that one
has come to the end. Prints how often it did so.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
IN_OPEN = 0x20
AHEAD = 20


def swap_folders(folder: Path, target: Path) -> int:
    """Swap what is new by now; how many that were."""
    swapped = 0
    for path in folder.glob("tmp.*"):
        with suppress(OSError):
            if not path.is_symlink():
                path.rename(folder / f"moved-{os.urandom(8).hex()}")
                path.symlink_to(target)
                swapped += 1
    return swapped


class Swapper:
    """Swaps the `AHEAD` files behind the one that was opened last."""

    def __init__(self, folder: Path) -> None:
        # Python has neither inotify nor an exchange of two names in one step.
        self._libc = ctypes.CDLL(None)
        self._names = sorted(os.fsencode(path) for path in folder.glob("a*"))
        self._places = {Path(os.fsdecode(name)).name: at for at, name in enumerate(self._names)}
        self._opened = self._libc.inotify_init1(os.O_NONBLOCK)
        self._libc.inotify_add_watch(self._opened, os.fsencode(folder), IN_OPEN)
        self._at = 0

    @property
    def at_the_end(self) -> bool:
        """Whether there is nothing left to swap."""
        return self._at + AHEAD >= len(self._names)

    def swap(self) -> int:
        """Swap what comes next; how many that were."""
        with suppress(BlockingIOError):
            told = os.read(self._opened, 1 << 16)
            while told:
                end = 16 + int.from_bytes(told[12:16], sys.byteorder)
                name = os.fsdecode(told[16:end].rstrip(b"\0"))
                self._at = self._places.get(name, self._at)
                told = told[end:]
        for path in self._names[self._at + 1 : self._at + 1 + AHEAD]:
            other = path.replace(b"/a", b"/b")
            self._libc.renameat2(AT_FDCWD, path, AT_FDCWD, other, RENAME_EXCHANGE)
        return AHEAD


def main(kind: str, *names: str) -> None:
    """Race to the end."""
    paths = [Path(name) for name in names]
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    count = 0
    if kind == "folder":
        while not ended:
            count += swap_folders(*paths)
    else:
        swapper = Swapper(*paths)
        while not (ended or swapper.at_the_end):
            count += swapper.swap()
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
