"""The grammar of inventories: what is accepted, and that its page of docs says the same."""

from __future__ import annotations

import ast
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError

from holdfast import registry, settings, types
from holdfast import ssh as ssh_server
from holdfast.docs import SETTINGS_PAGE, settings_page
from holdfast.grammar import walk
from holdfast.settings import HostSettings
from tests.unit.site_data import KEY, good


@pytest.fixture
def rack() -> HostSettings:
    return HostSettings.model_validate(good()["rack"])


def test_the_page_of_settings_is_up_to_date() -> None:
    assert SETTINGS_PAGE.read_text() == settings_page(), "run `make docs`"


CAPABILITIES = sorted(
    module.name for module in iter_modules(settings.__path__, "holdfast.settings.")
)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_example_of_each_capability_is_what_an_inventory_may_say(capability: str) -> None:
    module = import_module(capability)
    _, _, example = (module.__doc__ or "").partition("\nFor example::\n")
    said = ast.literal_eval(f"{{{example.strip()}}}")
    minimal = {"hostname": "a", "distribution": "debian12", "interfaces": {"eth0": {"role": "lan"}}}

    assert said
    HostSettings.model_validate({**minimal, **said})


def test_what_callers_import_is_every_model_of_the_package() -> None:
    models = {
        name
        for capability in CAPABILITIES
        for name, value in vars(import_module(capability)).items()
        if isinstance(value, type) and value.__module__ == capability
    }
    assert models <= set(settings.__all__)


def test_settings_do_not_change_after_parsing(rack: HostSettings) -> None:
    with pytest.raises(ValidationError):
        setattr(rack, "floor", None)  # noqa: B010


def test_a_minimal_host_has_everything_but_floor_and_backup() -> None:
    settings = HostSettings.model_validate(
        {"hostname": "a", "distribution": "debian12", "interfaces": {"eth0": {"role": "lan"}}}
    )
    assert (settings.floor, settings.backup) == (None, None)
    assert settings.ssh.lan_access == "until-tailnet"
    assert settings.ssh.root_login == "never"
    assert settings.base.held_back


ACCEPTED: list[tuple[Any, list[str]]] = [
    (
        types.Calendar,
        ["daily", "03:30", "*-*-* 03:30:00", "Mon..Fri *-*-* 09:00", "Sat,Sun 12:00:00"],
    ),
    (types.Calendar, ["*-*-01 04:00:00", "*:0/15", "*-*-* 00/6:00:00", "Mon *-02-29 03:00"]),
    (types.Cidr, ["10.0.0.0/8", "192.168.1.5/32", "fd00:1::/64", "0.0.0.0/0"]),
    (types.HostOrAddress, ["nas", "nas.home.arpa", "10.0.0.3", "fd00::3", "rack-lan"]),
    (types.LoginHost, ["rack", "Rack_2", "10.0.0.3", "fe80::1%eth0"]),
    (types.Address, ["10.0.0.3", "fd00::3", "127.0.0.1"]),
    (types.Text, ["a", "what it says: 100 %"]),
    (types.Sentence, ["the NAS keeps snapshots of its own"]),
    (types.CpuList, ["0", "4-31", "0-3,8-11"]),
    (types.Timezone, ["UTC", "Etc/UTC", "Europe/Berlin", "America/Indiana/Knox"]),
    (types.Url, ["https://a.example", "http://10.0.2.2:8000/x", "https://[fd00::1]:8000/a"]),
    (types.PinnedUrl, ["https://latest.example/v1/a.tar.gz", "https://a.example/mainline/a"]),
    (types.Interface, ["enp5s0", "eth0", "wlp2s0", "enx001122aabbcc", "eth0.20", "brown0"]),
    (types.PublicKey, [KEY, KEY.rpartition(" ")[0]]),
    (types.UnitName, ["a.service", "photos@1.service", "b.socket", "c-d.timer"]),
    (types.Locale, ["C.UTF-8", "de_DE.UTF-8"]),
]
_KIND, _ENCODED = KEY.split()[:2]
CUT_KEYS = [
    *(f"{_KIND} {_ENCODED[:length]}" for length in range(4, len(_ENCODED))),
    *(f"{_KIND} {_ENCODED[length:]}" for length in range(1, len(_ENCODED), 7)),
    *(f"{_KIND} {_ENCODED}{more}" for more in ("A", "AAAA", "=", "====")),
    f"ssh-rsa {_ENCODED}",
]
REFUSED: list[tuple[Any, list[str]]] = [
    (
        types.Calendar,
        ["", "sometimes", "24:00", "12:60", "* * * * *", "daily\nOnCalendar=minutely"],
    ),
    (
        types.Calendar,
        # Digits of another script, what never comes, and what systemd does not read.
        [
            "*-*-* \u0660\u0663:\u0663\u0660",
            "*-02-30 03:00",
            "*-04,06-31 03:00",
            "2020-01-01 03:00",
            "*-13-01 03:00",
        ],
    ),
    (
        types.Calendar,
        ["*-*-0 03:00", "Fri..Mon 03:00", "*:0/60", "*/5:00", "5..2:00", "*:*/0", "*:0,*"],
    ),
    (types.Calendar, ["03:00:*", "0/24:00", "*-*~32 03:00", "03:00 Mars/Base", "*:*:*/1"]),
    (types.Cidr, ["10.0.0.1/8", "fd00::1/64", "10.0.0.0/33", "lan", ""]),
    (types.Cidr, ["fe80::1%x;touch PWNED;/128", "fe80::%eth0/64", "::ffff:10.0.0.0/104"]),
    (types.Address, ["fe80::1%x;reboot", "fe80::1%eth0", "fd00:0::40", "FD00::40", "0"]),
    (
        types.Address,
        [
            "::",
            "255.255.255.255",
            "224.0.0.1",
            "::ffff:10.0.0.1",
            "\u0661\u0660.\u0660.\u0660.\u0661",
            "10.0.0.1\n",
        ],
    ),
    (types.HostOrAddress, ["10.0.0.300", "1.2.3", "-oProxyCommand=x", "a b", "a..b", ".a", ""]),
    (types.HostOrAddress, ["NAS", "nas.home.arpa.", "fe80::1%eth0", "a_b", "0x7f000001", "%H"]),
    (
        types.LoginHost,
        ["fe80::1%", "fd00::1%eth0", "rack%eth0", "-oProxyCommand=x", "a;b", "fe80::1%a b"],
    ),
    (
        types.DnsName,
        ["localhost", "10.0.0.1", "a.7", "0x1", "Nas", "nas.", "a" * 64, "a." * 130 + "b"],
    ),
    (types.HostLabel, ["localhost", "7", "0x7f", "a.b", "-a", "a-"]),
    (types.Text, ["", " ", "\t", "a\n", " a", "a ", "\u200b", "ä", "a\x7f", "\x1b[2J"]),
    (
        types.Sentence,
        ["          ", "..........", "aaaaaaaaaa", "aaaa aaaa aaaa", "because", "- - - - - - "],
    ),
    (types.Reason, ["   ", "...", "---", " a printer", "a printer ", "aaa", "a\u00a0printer"]),
    (types.ControllerPath, ["", " ", "a\nb", "\x00"]),
    (types.CpuList, ["31-4", "010", "1-090", "\u0664", "9999", "4-", ""]),
    (
        types.Timezone,
        ["localtime", "posix/Europe/Berlin", "right/UTC", "US/Pacific", "Europe", "UTC "],
    ),
    (types.Suite, ["trixie//", "a//b", "../a", "a/..", "", "a b"]),
    (types.Sha256, [types.NOTHING, "0" * 64, "\u0660" * 64, "9F" * 32]),
    (types.LocalUrl, ["http://127.0.0.1:0/", "http://127.0.0.1:99999/", "http://127.0.0.1:80/%H"]),
    (types.LocalUrl, ["http://127.0.0.1:\u0668\u0660/"]),
    (types.TailnetUser, ["Alice@example.org", "alice@..", "alice@-", "alice"]),
    (types.Url, ["ftp://a.example", "https://u:p@a.example", "https://a:99999", "https://", "a b"]),
    (
        types.Url,
        ["https://[::1", "https://a:", "https://a/%zz", "https://a/../b", "https://0x7f.1/"],
    ),
    (
        types.CloudUrl,
        ["https://localhost/v1", "https://a/v1", "https://a.example:", "https://0x7f.1/"],
    ),
    (types.PinnedUrl, ["https://a.example/latest", "https://a/x/latest/y", "https://a/raw/HEAD/f"]),
    (types.PinnedUrl, ["https://a.example/get?ref=master"]),
    (
        types.Interface,
        ["lo", "docker0", "br-1a2b", "tailscale0", "veth12", "a" * 16, "../eth0", "", "all", "123"],
    ),
    (types.PublicKey, [KEY.replace("ed25519", "dss"), KEY[:-30], KEY + "\nssh-rsa AAAA", "AAAA"]),
    (types.PublicKey, CUT_KEYS),
    (types.UnitName, ["a", "a.service\n", "../a.service", "a b.service", "a.mount"]),
    # Their drop-ins would be of every unit that begins so.
    (
        types.UnitName,
        ["holdfast-.service", "a-.service", "a@1-.service", "a@%i.service"],
    ),
    (
        types.AbsolutePath,
        ["a", "/a/../b", "/a/./b", "/a//b", "/a/", "/a b", "/a\n", "~/a", "/$HOME"],
    ),
    (types.Name, ["a-", "-a", "A", "a_b", "a" * 42, "9"]),
    (types.UserName, ["Root", "a b", "a;b", "9a", "a" * 32]),
    (types.SecretName, ["floor", "FLOOR-KEY", "1KEY", "PATH", "SSH_AUTH_SOCK", "HOLDFAST_LAB"]),
    (types.Locale, ["de_DE", "en_US.ISO-8859-1", "C.UTF-8; reboot"]),
    (types.Version, ["latest", "main", "v1/../2", ""]),
]


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, values in ACCEPTED for v in values])
def test_accepted(kind: Any, value: str) -> None:
    assert TypeAdapter(kind).validate_python(value) == value


@pytest.mark.parametrize(("kind", "value"), [(k, v) for k, values in REFUSED for v in values])
def test_refused_with_a_mend(kind: Any, value: str) -> None:
    with pytest.raises(ValidationError) as error:
        TypeAdapter(kind).validate_python(value)
    assert "; " in error.value.errors()[0]["msg"]


def test_every_word_is_of_printable_ascii() -> None:
    words = [word for word in vars(types).values() if get_origin(word) is Annotated]
    words = [word for word in words if get_args(word)[0] is str]
    assert len(words) >= 40
    for word in words:
        (spelt,) = (part for part in get_args(word) if isinstance(part, types.Word))
        accepted = [value for kind, values in ACCEPTED if kind is word for value in values]
        for value in [*accepted, spelt.example, "a", "1"]:
            for hostile in (
                "\n",
                "\0",
                "\t",
                "\x7f",
                "\x1b",
                "\u0663",
                "\u200b",
                "\u00e4",
                "\ud800",
            ):
                for text in (f"{value}{hostile}", f"{hostile}{value}"):
                    with pytest.raises(ValidationError):
                        TypeAdapter(word).validate_python(text)


def test_every_service_is_declared_once(rack: HostSettings) -> None:
    services = {service.name: service for service in registry.declared_services(rack)}
    assert list(services) == ["ssh", "tailscaled", "docker", "floor", "photos"]
    floor = services["floor"]
    assert (floor.unit, floor.user, floor.tier) == (
        "holdfast-floor.service",
        "holdfast-floor",
        "T1",
    )
    assert [listen.model_dump(exclude_defaults=True) for listen in floor.listens] == [
        {"port": 8080, "scope": "tailnet"}
    ]
    assert floor.health
    assert floor.health.url == "http://127.0.0.1:8080/health"
    assert {data.path: data.backup for data in floor.data} == {
        "/var/lib/holdfast/floor": "state",
        "/var/lib/holdfast/models/small.gguf": "derived",
    }


@pytest.mark.parametrize(
    ("ssh", "scopes"),
    [
        ({}, [("tailnet", None, [])]),
        ({"lan_access": "keep"}, [("tailnet", None, []), ("public", None, [])]),
        (
            {"lan_access": "keep", "lan_sources": ["10.0.0.0/8"]},
            [
                ("tailnet", None, []),
                *(("lan", name, ["10.0.0.0/8"]) for name in ("eth0", "eth1")),
            ],
        ),
    ],
)
def test_where_ssh_ends_up(ssh: dict[str, Any], scopes: list[tuple[Any, ...]]) -> None:
    settings = HostSettings.model_validate(good()["rack"] | {"ssh": ssh})
    ((_, server),) = ssh_server.services(settings)
    listens = server.listens
    assert [(item.scope, item.interface, item.sources) for item in listens] == scopes


def test_registries_hold_what_a_host_claims(rack: HostSettings) -> None:
    assert {(claim.owner, claim.protocol, claim.port) for claim in registry.port_claims(rack)} == {
        ("ssh", "tcp", 22),
        ("tailscaled", "udp", 41641),
        ("floor", "tcp", 8080),
        ("photos", "tcp", 2342),
    }
    assert {claim.user for claim in registry.user_claims(rack)} == {"holdfast-floor", "photos"}
    assert {claim.key: claim.name for claim in registry.secret_claims(rack)} == {
        "tailnet.auth_key": "TAILSCALE_AUTH_KEY",
        "floor.api_key": "FLOOR_API_KEY",
        "backup.repositories[0].password": "NAS_BACKUP",
        "backup.repositories[1].password": "OFFSITE_BACKUP",
        "backup.repositories[1].user_password": "OFFSITE_LOGIN",
    }
    assert {claim.path for claim in registry.path_claims(rack)} == {
        "/mnt/nas",
        "/var/lib/holdfast/models",
        "/var/lib/holdfast/floor",
        "/srv/photos",
        "/mnt/nas/backup",
        "/srv/data",
    }
    assert registry.gpu_claims(rack) == []


def test_a_gpu_tenant_claims_its_memory() -> None:
    data = good()["rack"]
    data["services"][0]["gpu_mib"] = 20000
    (claim,) = registry.gpu_claims(HostSettings.model_validate(data))
    assert (claim.owner, claim.mib) == ("photos", 20000)


def test_keys_are_written_as_an_operator_would(rack: HostSettings) -> None:
    keys = {key for key, _, _ in walk(rack, HostSettings)}
    assert {
        "firewall.openings[0].port",
        "interfaces.eth1.role",
        "_sudo",
        "ssh.authorised_keys.operator[0]",
    } <= keys


@pytest.mark.parametrize(
    ("calendar", "hours"),
    [
        ("*:0/15", 0.25),
        ("hourly", 1),
        ("daily", 24),
        ("*-*-* 03:30:00", 24),
        ("*-*-* 01,13:00", 12),
        ("Mon..Fri 03:00", 72),
        ("Sat,Sun *-*-* 12:00", 144),
        ("weekly", 168),
        ("*-*-01 04:00:00", 744),
        ("yearly", 8784),
        ("*-02-29 03:00", 35064),
    ],
)
def test_how_long_a_calendar_pauses(calendar: str, hours: float) -> None:
    assert types.longest_pause_hours(calendar) == hours
