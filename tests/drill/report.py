"""One self-contained HTML page from a drill's record."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.drill.record import Record
from tests.drill.rows import ROWS

PAGE, DATA = "report.html", "report.json"


def clear(folder: Path) -> None:
    """Make ``folder`` and remove the report of an earlier run from it: a reader might believe it.

    Raises:
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (PAGE, DATA):
        (folder / name).unlink(missing_ok=True)
        (folder / name).touch()
        (folder / name).unlink()


def write(record: Record, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into ``folder``; returns the page's path.

    Raises:
        OSError: one of them cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
    )
    paths = list(dict.fromkeys(path for cells in record.matrix.values() for path in cells))
    longest = max((phase.seconds for phase in record.phases), default=1.0) or 1.0
    page = folder / PAGE
    page.write_text(
        environment.get_template("report.html.j2").render(
            record=record,
            rows=[(number, name, _of_row(record, number)) for number, name in ROWS.items()],
            paths=paths,
            longest=longest,
            total=sum(phase.seconds for phase in record.phases),
        ),
        encoding="utf-8",
    )
    record.save(folder / DATA)
    return page


def _of_row(record: Record, number: int) -> dict[str, tuple[int, int]]:
    """Phase -> how many checks of a row held in it, and how many were made."""
    found: dict[str, tuple[int, int]] = {}
    for check in record.checks:
        if number in check.rows:
            held, made = found.get(check.phase, (0, 0))
            found[check.phase] = held + check.ok, made + 1
    return found
