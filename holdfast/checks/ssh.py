"""SSH: settings that would lock the operator out."""

from __future__ import annotations

from pathlib import Path

from holdfast.checks.finding import Finding, Findings, no_file
from holdfast.settings import HostSettings


def login(settings: HostSettings) -> Findings:
    """SSH settings that would lock the operator out."""
    ssh, user = settings.ssh, settings.ssh_user
    if user == "root" and ssh.root_login == "never":
        yield Finding(
            "ssh.root_login",
            ssh.root_login,
            "ssh_user is 'root', so the first deploy would lock you out",
            "log in as another user, or write 'key'",
        )
    if user not in (None, "root") and not settings.sudo:
        yield Finding(
            "_sudo",
            settings.sudo,
            f"'{user}' cannot change the system without sudo",
            "write True, or log in as root",
        )
    for name, keys in ssh.authorised_keys.items():
        if not keys:
            yield Finding(
                f"ssh.authorised_keys.{name}",
                keys,
                "this user would have no key to log in with",
                "give a key, or leave the user out",
            )
    yield from _own_key(settings)
    named = settings.ssh_hostname
    if ssh.lan_access == "until-tailnet" and named and named == settings.lan_address:
        yield Finding(
            "ssh_hostname",
            named,
            "this is also lan_address: a login to it does not prove that the tailnet works,"
            " and SSH on the LAN would be closed",
            "write the host's name on the tailnet, or lan_access 'keep'",
        )
    if ssh.lan_access == "until-tailnet" and settings.tailnet is None:
        yield Finding(
            "ssh.lan_access",
            ssh.lan_access,
            "this host has no tailnet, so SSH would be closed everywhere",
            "write 'keep', or declare tailnet",
        )
    roles = {interface.role for interface in settings.interfaces.values()}
    if ssh.lan_access == "keep" and ssh.lan_sources and roles == {"storage"}:
        yield Finding(
            "ssh.lan_sources",
            ssh.lan_sources,
            "every interface has the role 'storage', so SSH would be open to any address",
            "give one the role 'lan' or 'management', or remove the sources",
        )
    for key, path in (("ssh_key", settings.ssh_key), ("ssh_config_file", settings.ssh_config_file)):
        if path is None:
            continue
        if wrong := no_file(path):
            yield Finding(key, path, wrong, "write an existing path")
        elif key == "ssh_key" and path.endswith(".pub"):
            yield Finding(key, path, "this is the public half", "write the private key's path")


def _own_key(settings: HostSettings) -> Findings:
    """Keys that would replace the one that the operator logs in with."""
    keys = settings.ssh.authorised_keys.get(settings.ssh_user or "", [])
    if not keys or settings.ssh_key is None:
        return
    try:
        public = Path(f"{settings.ssh_key}.pub").expanduser()
        own = public.read_text("utf-8").split()[:2]
    except (OSError, RuntimeError, UnicodeDecodeError):
        return
    if own not in [key.split()[:2] for key in keys]:
        yield Finding(
            f"ssh.authorised_keys.{settings.ssh_user}",
            [" ".join(key.split()[2:]) or "a key" for key in keys],
            f"your own key, {settings.ssh_key}, is not in this list, and a deploy removes all"
            " other keys",
            f"add what {public} holds",
        )
