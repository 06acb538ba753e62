"""What decides an image, without building one."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.images import (
    RELEASES,
    VARIANTS,
    LabError,
    Recipe,
    Release,
    Source,
    configured_archives,
    guest_proxy,
    listed_sources,
    proxy_settings,
    recipe_for,
    sources_for,
)

KEY = "ssh-ed25519 AAAAC3Nz lab\n"


def stanza(
    label: str, uri: str, codename: str, component: str = "main", kind: str = "Packages"
) -> str:
    return (
        f"MetaKey: {component}/binary-amd64/{kind}\n"
        f"ShortDesc: {kind}\n"
        f"Description: {uri} {codename}/{component} amd64 {kind}\n"
        f"Codename: {codename}\n"
        f"Label: {label}\n"
        f"Component: {component}\n"
        f"Created-By: {kind}\n"
        f"Repo-URI: {uri}/\n"
    )


DEBIAN = "\n".join(
    (
        stanza("Debian", "http://mirror.example/debian", "bookworm"),
        stanza("Debian", "http://mirror.example/debian", "bookworm", "contrib"),
        stanza("Debian", "http://mirror.example/debian", "bookworm", kind="DEP-11"),
        stanza("Debian", "http://mirror.example/debian", "bookworm-updates"),
        stanza("Debian-Security", "http://mirror.example/security", "bookworm-security"),
        stanza("Node Source", "http://elsewhere.example/node", "nodistro"),
    )
)
UBUNTU = stanza("Ubuntu", "http://mirror.example/ubuntu", "jammy")


def recipe(release: str = "debian-13", variant: str = "rack", targets: str = DEBIAN) -> Recipe:
    return recipe_for(RELEASES[release], variant, public_key=KEY, index_targets=targets)


def test_archives_come_from_apts_own_index() -> None:
    assert configured_archives(DEBIAN) == {
        ("Debian", "http://mirror.example/debian"): ("contrib", "main"),
        ("Debian-Security", "http://mirror.example/security"): ("main",),
        ("Node Source", "http://elsewhere.example/node"): ("main",),
    }


@pytest.mark.parametrize(("release", "suite"), [("debian-12", "bookworm"), ("debian-13", "trixie")])
def test_a_debian_is_built_from_the_controllers_mirror(release: str, suite: str) -> None:
    lines = [source.line("/key.gpg") for source in sources_for(RELEASES[release], DEBIAN)]
    assert lines == [
        f"deb [signed-by=/key.gpg] http://mirror.example/debian {suite} contrib main",
        f"deb [signed-by=/key.gpg] http://mirror.example/debian {suite}-updates contrib main",
        f"deb [signed-by=/key.gpg] http://mirror.example/security {suite}-security main",
    ]


def test_ubuntu_keeps_its_security_updates_in_its_archive() -> None:
    sources = sources_for(RELEASES["ubuntu-24.04"], UBUNTU)
    assert [(source.uri, source.suite) for source in sources] == [
        ("http://mirror.example/ubuntu", "noble"),
        ("http://mirror.example/ubuntu", "noble-updates"),
        ("http://mirror.example/ubuntu", "noble-security"),
    ]


def release(name: str, keyring: Path) -> Release:
    return replace(RELEASES[name], keyring=str(keyring))


def test_a_controller_of_another_distribution_takes_mmdebstraps_default(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    debian = release("debian-13", keyring)
    found = sources_for(debian, UBUNTU)
    suites = [(source.suite, source.components) for source in found]
    assert suites == [
        ("trixie", ("main",)),
        ("trixie-updates", ("main",)),
        ("trixie-security", ("main",)),
    ]
    assert len({source.uri for source in found}) == 2
    assert not any("mirror.example" in source.uri for source in found)
    # The guest keeps them, so that it installs packages from where it was made.
    made = recipe_for(debian, "rack", public_key=KEY, index_targets=UBUNTU)
    assert f"URIs: {found[0].uri}\nSuites: trixie\n" in made.customise
    assert made.sources == tuple(source.line(str(keyring)) for source in found)


def test_options_of_a_listed_source_are_left_out() -> None:
    listed = (
        '# deb http://off.example/debian x main\ndeb [signed-by="/k.gpg" arch=amd64] '
        "http://a.example/debian x main contrib\ndeb http://b.example/s x-security main\n"
    )
    assert listed_sources(listed) == (
        Source("http://a.example/debian", "x", ("main", "contrib")),
        Source("http://b.example/s", "x-security", ("main",)),
    )


def test_a_missing_archive_and_keyring_are_said_in_one_sentence(tmp_path: Path) -> None:
    ubuntu = release("ubuntu-24.04", tmp_path / "none.gpg")
    with pytest.raises(LabError) as error:
        sources_for(ubuntu, DEBIAN)
    sentence = str(error.value)
    assert "ubuntu-24.04 cannot be built here: no Ubuntu archive" in sentence
    assert f"{tmp_path}/none.gpg is missing" in sentence
    assert "\n" not in sentence


def test_equal_recipes_have_equal_keys() -> None:
    assert recipe().key() == recipe().key()
    # Written down: a key that differs between machines or Python versions would defeat the cache.
    fixed = Recipe("r", "v", "s", ("a",), ("b",), (), "x", "y", "z", 1)
    assert fixed.key() == "559e9ee61aabcb52"


def test_what_changes_the_image_changes_the_key() -> None:
    base = recipe()
    other_mirror = DEBIAN.replace("mirror.example", "other.example")
    keys = {
        base.key(),
        recipe("debian-12").key(),
        recipe(variant="nas").key(),
        recipe(targets=other_mirror).key(),
        replace(base, packages=(*base.packages, "vim")).key(),
        replace(base, customise=base.customise + "\n").key(),
        replace(base, disk_gib=base.disk_gib + 1).key(),
        recipe_for(RELEASES["debian-13"], "rack", public_key="other", index_targets=DEBIAN).key(),
    }
    assert len(keys) == 8


def test_an_archives_new_date_keeps_the_key() -> None:
    assert recipe(targets=DEBIAN + "\nDate: tomorrow\n").key() == recipe().key()


def test_the_rack_is_bare() -> None:
    unwanted = {"docker.io", "ufw", "python3", "python3-minimal", "curl", "nmap", "tailscale"}
    assert unwanted.isdisjoint(recipe().packages)


def test_guests_reach_a_proxy_on_the_controllers_loopback() -> None:
    dump = (
        'Acquire "";\nAcquire::http "";\n'
        'Acquire::http::Proxy "http://127.0.0.1:3142";\n'
        'Acquire::https::Proxy "http://proxy.example:3128";\n'
    )
    assert guest_proxy(proxy_settings(dump)) == (
        'Acquire::http::Proxy "http://10.0.2.2:3142";\n'
        'Acquire::https::Proxy "http://proxy.example:3128";\n'
    )
    assert guest_proxy(proxy_settings('Acquire "";\n')) == ""


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scripts_are_shell(variant: str, tmp_path: Path) -> None:
    scripts = recipe(variant=variant)
    for body in (
        scripts.setup,
        scripts.customise,
        scripts.write_disk.format(work="/w", disk_gib=1),
    ):
        script = tmp_path / "script"
        script.write_text(body)
        done = subprocess.run(["sh", "-n", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_guest_writes_its_lan_address(tmp_path: Path) -> None:
    """The image's own script, with the kernel's command line and /run in a directory of ours."""
    customise = recipe().customise
    start = customise.index("#!/bin/sh")
    script = customise[start : customise.index("SCRIPT\n", start)]
    (tmp_path / "cmdline").write_text("root=/dev/vda lab.lan=20 console=ttyS0\n")
    script = script.replace("/proc/cmdline", str(tmp_path / "cmdline"))
    script = script.replace("/run/systemd/network", str(tmp_path / "network"))
    subprocess.run(["sh", "-c", script], check=True, env=dict(os.environ))
    assert (tmp_path / "network/20-lan.network").read_text().splitlines() == [
        "[Match]",
        "Name=eth1",
        "[Link]",
        "RequiredForOnline=no",
        "[Network]",
        "Address=10.77.0.20/24",
        "Address=fd77::20/64",
    ]
