"""One declaration makes a program of ours: its properties, and the files that follow from them."""

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
