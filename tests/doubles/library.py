"""Build the fake ``libnvidia-ml.so.1`` from its C source, once per test session."""

from __future__ import annotations

import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parent / "nvml" / "nvml.c"
NEEDS = "install gcc, libc6-dev and libjson-c-dev, which the fake NVML library is built with"


class BuildError(Exception):
    """The library cannot be built here; the message names the packages it takes."""


def place(folder: Path, version: str) -> Path:
    """Put the library into ``folder`` as a driver package of ``version`` would.

    Raises:
        BuildError: there is no C compiler, or no json-c to link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"libnvidia-ml.so.{version}"
    library.write_bytes(_compiled())
    link = folder / "libnvidia-ml.so.1"
    link.unlink(missing_ok=True)
    link.symlink_to(library.name)
    return link


@cache
def _compiled() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "built.so"
        command = (
            f"cc -shared -fPIC -O1 -std=gnu11 -Wall -Wextra -Werror -fvisibility=hidden"
            f" -Wl,--exclude-libs,ALL -Wl,-soname,libnvidia-ml.so.1 {SOURCE}"
            f" -l:libjson-c.a -o {built}"
        )
        try:
            subprocess.run(command.split(), check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise BuildError(f"There is no C compiler here: {NEEDS}.") from error
        except subprocess.CalledProcessError as error:
            raise BuildError(f"The C compiler failed: {NEEDS}.\n{error.stderr}") from error
        return built.read_bytes()
