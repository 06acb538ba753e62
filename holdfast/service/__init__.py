"""One declaration makes a program of ours: what it is, and everything that follows from it."""

from holdfast.service.program import (
    PROXY,
    PROXY_FILES,
    Credential,
    File,
    Program,
    Proxied,
    Slice,
    Timer,
    UnixSocket,
    Words,
)
from holdfast.service.units import files, paths, texts

__all__ = [
    "PROXY",
    "PROXY_FILES",
    "Credential",
    "File",
    "Program",
    "Proxied",
    "Slice",
    "Timer",
    "UnixSocket",
    "Words",
    "files",
    "paths",
    "texts",
]
