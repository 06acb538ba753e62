"""One self-contained HTML page from a drill's record."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.drill.record import Record


def write(record: Record, folder: Path) -> Path:
    """Write ``report.html`` and ``report.json`` into ``folder``; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    record.save(folder / "report.json")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        autoescape=True,
    )
    paths = list(dict.fromkeys(path for cells in record.matrix.values() for path in cells))
    longest = max((phase.seconds for phase in record.phases), default=1.0) or 1.0
    page = folder / "report.html"
    page.write_text(
        environment.get_template("report.html.j2").render(
            record=record,
            failures=record.failures,
            paths=paths,
            longest=longest,
            total=sum(phase.seconds for phase in record.phases),
        ),
        encoding="utf-8",
    )
    return page
