"""The ledger: only its writers may connect, writes are durable, and it is dumped for the backup."""

from __future__ import annotations

import pytest
from testinfra.host import Host

from holdfast import ledger
from holdfast.routing import LEDGER_DUMPS, ledger_service
from holdfast.settings import HostSettings, Service


@pytest.fixture(scope="module")
def service(settings: HostSettings) -> Service:
    found = ledger_service(settings)
    if found is None:
        pytest.skip("this host spends nothing on clouds")
    return found


def _psql(user: str, more: str = "", asked: str = "SELECT 1") -> str:
    return (
        f"runuser --user {user} -- psql --no-psqlrc --tuples-only --no-align {more}"
        f" --host={ledger.SOCKET_FOLDER} --command='{asked}'"
    )


def test_each_writer_can_open_only_its_own_database(
    host: Host, settings: HostSettings, service: Service
) -> None:
    users = ledger.databases(settings)
    for user in users:
        assert host.check_output(_psql(user)).strip() == "1"
        for other in [*users, "postgres", "template1"]:
            if other != user:
                assert host.run(_psql(user, f"--dbname={other}")).failed
        assert host.run(_psql(user, f"--username={service.user} --dbname=postgres")).failed
    for stranger in ("root", "nobody"):
        assert host.run(_psql(stranger, f"--dbname={users[0]}")).failed


def test_what_it_confirmed_is_on_disk(host: Host, settings: HostSettings, service: Service) -> None:
    user = ledger.databases(settings)[0]
    for name in ("fsync", "full_page_writes", "synchronous_commit", "data_checksums"):
        assert host.check_output(_psql(user, asked=f"SHOW {name}")).strip() == "on"


def test_its_files_are_its_own(host: Host, service: Service) -> None:
    folders = " ".join(data.path for data in service.data)
    assert host.check_output(f"find {folders} ! -user {service.user} -o -perm /022 ! -type l") == ""
    modes = host.check_output(f"stat --format=%a {folders}").split()
    assert modes == ["700"] * len(service.data)


def test_it_can_be_dumped_for_the_backup(
    host: Host, settings: HostSettings, service: Service
) -> None:
    host.check_output(f"systemctl start {ledger.DUMP}")
    for name in ledger.databases(settings):
        dump = f"{LEDGER_DUMPS}/{name}.sql"
        assert "COPY public.charge" in host.check_output(f"grep '^COPY' {dump}")
        assert host.check_output(f"find {dump} -mmin -5") == dump
