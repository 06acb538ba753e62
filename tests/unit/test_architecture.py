"""docs/architecture.md names files and code that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/architecture.md").read_text()
TOP = ("inventories", "deploys", "operations", "facts", "holdfast", "templates", "tests", "docs")
PATHS = sorted(
    path
    for path in set(re.findall(r"`([a-z_]+/[^\s`]*)`", TEXT))
    if path.startswith(TOP) and not re.search("[A-Z]{2}", path)
)
TABLE = TEXT.partition("## Concern, type, file")[2].partition("\n## ")[0]
ROWS = [row.split("|")[2:4] for row in TABLE.splitlines() if row.startswith("| ") and "`" in row]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_that_the_page_names_exists(path: str) -> None:
    assert list(ROOT.glob(path)), path


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_a_name_of_the_page_is_defined_in_the_file_beside_it(row: list[str]) -> None:
    names, files = (re.findall("`([^`]+)`", cell) for cell in row)
    texts = "\n".join((ROOT / file).read_text() for file in files)
    for name in names:
        assert re.search(rf"(?m)^(class|def) {name}\b|^{name}\b.*=", texts), name


def test_the_page_names_enough_to_be_worth_a_test() -> None:
    assert len(PATHS) > 30
    assert len(ROWS) > 12
