"""Who may come in, and what is trusted."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from holdfast import registry, secrets
from holdfast.checks.finding import (
    NEW_SECRET,
    Finding,
    Findings,
    canonical,
    is_loopback,
    is_loopback_name,
    is_private_address,
)
from holdfast.grammar import names_a_machine, walk
from holdfast.refusal import MASK
from holdfast.settings import HostSettings


def login(settings: HostSettings) -> Findings:
    """SSH settings that would lock the operator out."""
    ssh, user = settings.ssh, settings.ssh_user
    if user == "root" and ssh.root_login == "never":
        yield Finding(
            "ssh.root_login",
            ssh.root_login,
            "ssh_user is 'root', so the first run would lock you out",
            "log in as another user, or write 'key'",
        )
    if user not in (None, "root") and not settings.sudo:
        yield Finding(
            "_sudo",
            settings.sudo,
            f"'{user}' may not change a system",
            "write True, or log in as root",
        )
    for name, keys in ssh.authorised_keys.items():
        if not keys:
            yield Finding(
                f"ssh.authorised_keys.{name}",
                keys,
                "no key could log in as this user any more",
                "give a key, or leave the user out",
            )
    yield from _own_key(settings)
    named = settings.ssh_hostname
    if ssh.lan_access == "until-tailnet" and named and named == settings.lan_address:
        yield Finding(
            "ssh_hostname",
            named,
            "this is lan_address, too: a login by it would prove nothing of the tailnet, and SSH on"
            " the LAN would be closed",
            "write the host's name on the tailnet, or lan_access 'keep'",
        )
    if ssh.lan_access == "until-tailnet" and settings.tailnet is None:
        yield Finding(
            "ssh.lan_access",
            ssh.lan_access,
            "this host has no tailnet, so SSH would have no way in",
            "write 'keep', or declare tailnet",
        )
    for key, path in (("ssh_key", settings.ssh_key), ("ssh_config_file", settings.ssh_config_file)):
        if path is None:
            continue
        if not Path(path).expanduser().is_file():
            yield Finding(key, path, "there is no such file here", "write an existing path")
        elif key == "ssh_key" and path.endswith(".pub"):
            yield Finding(key, path, "this is the public half", "write the private key's path")


def _own_key(settings: HostSettings) -> Findings:
    """Keys that would replace the one that this very login uses."""
    keys = settings.ssh.authorised_keys.get(settings.ssh_user or "", [])
    if not keys or settings.ssh_key is None:
        return
    public = Path(f"{settings.ssh_key}.pub").expanduser()
    try:
        own = public.read_text("utf-8").split()[:2]
    except (OSError, UnicodeDecodeError):
        return
    if own not in [key.split()[:2] for key in keys]:
        yield Finding(
            f"ssh.authorised_keys.{settings.ssh_user}",
            [" ".join(key.split()[2:]) or "a key" for key in keys],
            f"the key that you log in with, {settings.ssh_key}, is not among them, and others are"
            " removed",
            f"add what {public} holds",
        )


def names(host: str, settings: HostSettings) -> Findings:
    """Names that would lead elsewhere than they say, and addresses no host is reached at."""
    own = {settings.hostname, host.lower()}
    for name, address in settings.base.hosts.items():
        if name in own and address != settings.lan_address:
            yield Finding(
                f"base.hosts.{name}",
                address,
                "the host itself is called so, and its programs would call another",
                "rename one",
            )
    for key, value in (
        ("lan_address", settings.lan_address),
        # An alias of your SSH configuration may be called anything.
        ("ssh_hostname", settings.ssh_hostname),
    ):
        if value and settings.ssh_port is None and is_loopback_name(value):
            yield Finding(
                key,
                value,
                "this is the machine that you are at, which would be changed instead",
                "write the host's own address, or ssh_port where a port is forwarded to it",
            )


_EXAMPLES = re.compile(r"(.*\.)?example\.(org|com|net)")


def placeholders(settings: HostSettings) -> Findings:
    """Names of the examples, at which nothing will ever answer (RFC 2606)."""
    for key, value, annotation in walk(settings, HostSettings):
        if not isinstance(value, str) or not names_a_machine(annotation):
            continue
        name = urlsplit(value).hostname if "://" in value else value
        if name and _EXAMPLES.fullmatch(canonical(name)):
            yield Finding(
                key,
                value,
                "this name is an example's, and nothing answers there",
                "write your own",
            )


def tailnet(settings: HostSettings) -> Findings:
    """A control server that cannot be trusted, and relays of another's that nothing asks for."""
    tailnet = settings.tailnet
    if tailnet and tailnet.relays and not tailnet.control_server:
        yield Finding(
            "tailnet.relays",
            [relay.name for relay in tailnet.relays],
            "Tailscale's own control server names its relays itself",
            "remove them, or write your control_server",
        )
    url = tailnet.control_server if tailnet else None
    if url and url.startswith("http://") and not is_loopback(url):
        yield Finding(
            "tailnet.control_server",
            url,
            "a control server must not be trusted over plain http",
            "write its https URL",
        )


def trust(settings: HostSettings) -> Findings:
    """Authorities and signing keys that prove nothing."""
    for name, path in settings.base.trusted_cas.items():
        file = Path(path).expanduser()
        if not file.is_file():
            wrong = "there is no such file here"
        elif "-----BEGIN CERTIFICATE-----" not in file.read_text("utf-8", "replace"):
            wrong = "this file holds no PEM certificate"
        else:
            continue
        yield Finding(
            f"base.trusted_cas.{name}", path, wrong, "write the path of the authority's .pem"
        )
    gpus = settings.gpus
    mirrors = {
        "docker.repository": settings.docker.repository if settings.docker else None,
        "tailnet.repository": settings.tailnet.repository if settings.tailnet else None,
        "gpus.driver.repository": gpus.driver.repository if gpus else None,
        "gpus.container_toolkit_repository": gpus.container_toolkit_repository if gpus else None,
    }
    for key, mirror in mirrors.items():
        if mirror and not mirror.components and not mirror.suite.endswith("/"):
            yield Finding(
                f"{key}.components", [], "APT finds nothing in a suite without one", "write 'main'"
            )
        pinned = mirror and (mirror.key_sha256 or mirror.key_fingerprint)
        if mirror is None or pinned or mirror.key_url.startswith("https://"):
            continue
        # A mirror at an address of one's own network can be trusted as that network can.
        if not is_private_address(mirror.key_url):
            yield Finding(
                f"{key}.key_url",
                mirror.key_url,
                "a signing key fetched over plain http proves nothing",
                "write its https URL, or give key_sha256 or key_fingerprint too",
            )


def secrets_set(settings: HostSettings) -> Findings:
    """Secrets that are missing, weak or used twice."""
    purposes: dict[str, str] = {}
    values: dict[str, str] = {}
    for claim in registry.secret_claims(settings):
        purpose = purposes.setdefault(claim.name, claim.purpose)
        if purpose != claim.purpose:
            yield Finding(
                claim.key,
                claim.name,
                f"{purpose} uses this secret for something else",
                "name a secret of its own",
            )
            continue
        try:
            secret = secrets.read(claim.name)
        except ValueError as error:
            wrong, _, mend = str(error).partition("; ")
            yield Finding(claim.key, claim.name, wrong, mend)
            continue
        if secret is None:
            yield Finding(
                claim.key,
                claim.name,
                "this secret is not set",
                f"add {claim.name}={MASK} to {secrets.folder() / '.env'}",
            )
            continue
        weakness = secrets.weakness(secret)
        holder = values.setdefault(secret.get_secret_value(), claim.name)
        if weakness:
            yield Finding(
                claim.key,
                claim.name,
                f"this secret is too weak, {weakness}",
                NEW_SECRET,
            )
        elif holder != claim.name:
            yield Finding(
                claim.key,
                claim.name,
                f"{holder} has the same value",
                "give each secret a value of its own",
            )
