"""The ledger in a real PostgreSQL: no budget is overrun, by many at once or past midnight."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from holdfast.host_programs import clouds as clouds_program
from holdfast.host_programs.clouds import Caller, Cloud, Ledger, Refused
from tests.unit.fake_upstreams import until

ONE = Cloud("one", "openai", "https://one/v1", "big-one", Decimal(3), Decimal(15), 1000)
ALICE = Caller("alice", ("one",), Decimal(5), "day")


def _postgres(folder: Path, program: str, *arguments: str) -> None:
    # It refuses to be root.
    become = ["runuser", "--user", "postgres", "--"] if os.geteuid() == 0 else []
    (newest, *_) = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    subprocess.run(
        [*become, newest / program, f"--pgdata={folder}/data", *arguments],
        cwd="/",
        stdout=subprocess.DEVNULL,
        check=True,
    )


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Where a PostgreSQL of our own listens: a folder."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
    try:
        _postgres(folder, "initdb", "--auth=trust", "--username=ledger", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        log = f"--log={folder}/log"
        _postgres(folder, "pg_ctl", "start", "--wait", "--silent", log, f"--options={options}")
        yield str(folder)
        _postgres(folder, "pg_ctl", "stop", "--wait", "--silent", "--mode=immediate")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def connect(server: str) -> Callable[[], Any]:
    """Connections to a database in which nothing was spent yet."""

    def made(kind: type[psycopg.Connection[Any]] = psycopg.Connection) -> Any:
        return kind.connect(host=server, user="ledger", dbname="postgres")

    with made() as connection:
        connection.execute("DROP TABLE IF EXISTS charge")
    Ledger(made).open()
    return made


def _spent(connect: Callable[[], Any]) -> Decimal:
    with connect() as connection:
        (usd,) = connection.execute("SELECT coalesce(sum(usd), 0) FROM charge").fetchone()
    return Decimal(usd)


def test_a_budget_is_spent_to_its_end_and_not_beyond(connect: Callable[[], Any]) -> None:
    ledger = Ledger(connect)
    ledger.reserve(ALICE, ONE, Decimal(3))
    ledger.reserve(ALICE, ONE, Decimal(2))
    with pytest.raises(Refused, match=r"alice has 0\.0000 of 5 USD left") as refused:
        ledger.reserve(ALICE, ONE, Decimal("0.00000001"))
    assert refused.value.status == 402
    assert _spent(connect) == 5
    # Each has a budget of his own.
    ledger.reserve(replace(ALICE, name="bob"), ONE, Decimal(5))


def test_what_a_request_came_to_takes_the_place_of_what_was_reserved(
    connect: Callable[[], Any],
) -> None:
    ledger = Ledger(connect)
    number = ledger.reserve(ALICE, ONE, Decimal(5))
    ledger.settle(number, Decimal("0.00033"), 10, 20)
    with pytest.raises(Refused, match=r"alice has 4\.9997"):
        ledger.reserve(ALICE, ONE, Decimal(5))
    ledger.reserve(ALICE, ONE, Decimal("4.99967"))
    with connect() as connection:
        rows = connection.execute(
            "SELECT usd, settled, prompt_tokens, answer_tokens FROM charge ORDER BY number"
        ).fetchall()
    assert rows == [
        (Decimal("0.00033"), True, 10, 20),
        (Decimal("4.99967"), False, None, None),
    ]


@pytest.mark.parametrize("period", ["day", "week", "month"])
def test_a_budget_begins_anew_with_its_period_and_not_before(
    connect: Callable[[], Any], period: str
) -> None:
    ledger, alice = Ledger(connect), replace(ALICE, period=period)
    ledger.reserve(alice, ONE, Decimal(5))
    for ago, left in (("0 s", False), ("1 microsecond", True)):
        with connect() as connection:
            connection.execute(
                "UPDATE charge SET at = date_trunc(%s, now()) - %s::interval", (period, ago)
            )
        if left:
            ledger.reserve(alice, ONE, Decimal(5))
        else:
            with pytest.raises(Refused) as refused:
                ledger.reserve(alice, ONE, Decimal(5))
            with connect() as connection:
                (until_when,) = connection.execute(
                    "SELECT date_trunc(%s, now()) + ('1 ' || %s)::interval", (period, period)
                ).fetchone()
            assert f"until {until_when:%Y-%m-%d %H:%M}" in str(refused.value)


def test_two_requests_at_once_do_not_spend_the_same_money(connect: Callable[..., Any]) -> None:
    outcomes: list[int | Refused] = []

    def second() -> None:
        try:
            outcomes.append(Ledger(connect).reserve(ALICE, ONE, Decimal(3)))
        except Refused as refused:
            outcomes.append(refused)

    beside = threading.Thread(target=second)

    def waits_for_the_first() -> bool:
        with connect() as looks:
            (waiting,) = looks.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            ).fetchone()
        return bool(waiting)

    class Slow(psycopg.Connection[Any]):
        """Between what it has read and what it will write, another request comes in."""

        def execute(self, query: Any, *more: Any, **named: Any) -> Any:
            read = super().execute(query, *more, **named)
            if query == clouds_program._SPENT:
                beside.start()
                until(lambda: not beside.is_alive() or waits_for_the_first())
            return read

    Ledger(lambda: connect(Slow)).reserve(ALICE, ONE, Decimal(3))
    beside.join()
    assert [type(outcome) for outcome in outcomes] == [Refused]
    assert _spent(connect) == 3
