"""One declaration makes a program of ours: its properties, and the files that follow from them."""

from holdfast.service.program import (
    EVERY_MINUTE,
    LOGS_NO_STARTS,
    ON_FAILURE,
    PROXY,
    PROXY_FILES,
    STAYS,
    UNRATIONED,
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
    "EVERY_MINUTE",
    "LOGS_NO_STARTS",
    "ON_FAILURE",
    "PROXY",
    "PROXY_FILES",
    "STAYS",
    "UNRATIONED",
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
