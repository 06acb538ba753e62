"""The algorithms that sshd offers to a stranger, and the users that it accepts."""

from __future__ import annotations

import re
import shlex

import pytest
from testinfra.host import Host

from facts.sections import answers, probe
from facts.ssh import ROLLBACK_STATE
from holdfast.settings import HostSettings
from holdfast.ssh import KEY_FILE, KEYS, ROLLBACK_UNIT

Answers = dict[str, list[str]]

# No NIST curves, no SHA-1, and nothing that ssh-audit marks red.
_KEX = {
    *("sntrup761x25519-sha512", "sntrup761x25519-sha512@openssh.com"),
    *("curve25519-sha256", "curve25519-sha256@libssh.org"),
    *("diffie-hellman-group16-sha512", "diffie-hellman-group18-sha512"),
    "diffie-hellman-group-exchange-sha256",
    *("ext-info-s", "kex-strict-s-v00@openssh.com"),
}
_CIPHERS = {
    *("chacha20-poly1305@openssh.com", "aes256-gcm@openssh.com", "aes128-gcm@openssh.com"),
    *("aes256-ctr", "aes192-ctr", "aes128-ctr"),
}
_MACS = {
    *("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"),
    "umac-128-etm@openssh.com",
}


@pytest.fixture(scope="module")
def found(host: Host, settings: HostSettings) -> Answers:
    client = (
        f"timeout 60 ssh -vv -F none -p {settings.ssh.port} -o BatchMode=yes"
        " -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    )
    users = " ".join(map(shlex.quote, settings.ssh.authorised_keys))
    return answers(
        host.check_output(
            probe(
                {
                    # sshd on loopback is the same sshd; its client is on every host.
                    "stranger": f"{client} -o PreferredAuthentications=none root@127.0.0.1 2>&1",
                    "nist": f"{client} -o KexAlgorithms=ecdh-sha2-nistp256 root@127.0.0.1 2>&1",
                    "root": "sshd -T -C user=root,host=stranger,addr=192.0.2.1",
                    "anyone": "sshd -T",
                    "listens": "ss -Hltnp | grep '\"sshd\"'",
                    "moduli": "awk '$5 < 3071' $(sshd -T | sed -n 's/^modulifile //p')",
                    "keys": (
                        f'for u in {users}; do stat -c "%U %a" {KEYS} "{KEYS}/$u";'
                        f' sed "s/^/$u: /" "{KEYS}/$u";'
                        ' sshd -T -C "user=$u,host=stranger,addr=192.0.2.1"'
                        " | grep ^authorizedkeysfile; done"
                    ),
                    "rollback": f"ls {ROLLBACK_STATE}/armed;"
                    " systemctl is-active holdfast-ssh-rollback.timer",
                    "at boot": f"systemctl is-enabled {ROLLBACK_UNIT}",
                }
            )
        ).splitlines()
    )


def _offers(found: Answers, what: str) -> set[str]:
    """The server's proposal; the output shows the client's own first."""
    text = "\n".join(found["stranger"])
    _, _, servers = text.partition("peer server KEXINIT proposal")
    offered = re.search(rf"^debug2: {what}: (\S+)", servers, re.MULTILINE)
    assert offered, text
    return set(offered[1].split(","))


def test_it_offers_no_weak_algorithm(found: Answers) -> None:
    assert _offers(found, "KEX algorithms") <= _KEX
    assert _offers(found, "ciphers stoc") <= _CIPHERS
    assert _offers(found, "MACs stoc") <= _MACS
    assert _offers(found, "host key algorithms") == {"ssh-ed25519"}
    assert found["moduli"] == []


def test_it_does_not_reveal_its_patch_level(found: Answers) -> None:
    (version,) = [line for line in found["stranger"] if "remote software version" in line]
    assert "Debian" not in version
    assert "Ubuntu" not in version


def test_a_weak_key_exchange_is_refused(found: Answers) -> None:
    assert "no matching key exchange method found" in "\n".join(found["nist"])


def test_a_key_is_the_only_way_in(found: Answers) -> None:
    assert "Permission denied (publickey)." in found["stranger"][-1]
    for line in ("passwordauthentication no", "kbdinteractiveauthentication no"):
        assert line in found["anyone"]
    assert "permitemptypasswords no" in found["anyone"]


def test_root_logs_in_only_where_the_inventory_says_so(
    found: Answers, settings: HostSettings
) -> None:
    answer = {"never": "no", "key": "without-password"}[settings.ssh.root_login]
    assert f"permitrootlogin {answer}" in found["root"]


def test_it_listens_on_the_declared_port_only(found: Answers, settings: HostSettings) -> None:
    ports = {int(line.split()[3].rpartition(":")[2]) for line in found["listens"]}
    assert ports == {settings.ssh.port}


def test_declared_users_have_exactly_their_declared_keys(
    found: Answers, settings: HostSettings
) -> None:
    expected = []
    for user, keys in settings.ssh.authorised_keys.items():
        expected += ["root 755", "root 644", *(f"{user}: {key}" for key in keys)]
        # No file that a user can write may permit a login.
        expected.append(f"authorizedkeysfile {KEY_FILE}")
    assert found["keys"] == expected


def test_no_change_waits_for_its_proof(found: Answers) -> None:
    assert found["rollback"] == ["inactive"]


def test_a_boot_undoes_what_was_not_proved(found: Answers) -> None:
    assert found["at boot"] == ["enabled"]


def test_a_good_key_lets_a_user_in_and_root_only_where_it_may(
    host: Host, settings: HostSettings
) -> None:
    user = next(iter(settings.ssh.authorised_keys), settings.ssh_user) or "root"
    # A second sshd on loopback with the same configuration, except that one key made for this test
    # is every user's. Its option does not override settings for single users.
    answer = host.run(
        "d=$(mktemp -d -p /run) && chmod 755 $d && trap 'kill $sshd; rm -rf $d' EXIT"
        " && ssh-keygen -q -t ed25519 -N '' -f $d/key && mkdir $d/parts"
        f' && for part in /etc/ssh/sshd_config.d/*.conf; do sed "s#{KEY_FILE}#$d/key.pub#" $part'
        " > $d/parts/${part##*/}; done"
        ' && sed "s#/etc/ssh/sshd_config.d/#$d/parts/#" /etc/ssh/sshd_config > $d/config'
        " || exit 1; timeout 180 /usr/sbin/sshd -D -f $d/config -p 2922 -o ListenAddress=127.0.0.1"
        " -o PidFile=none -o AuthorizedKeysFile=$d/key.pub >/dev/null 2>&1 & sshd=$!;"
        " until ss -Hltn | grep -q 127.0.0.1:2922; do kill -0 $sshd || exit 1; done;"
        f" for user in {shlex.quote(user)} root; do"
        " timeout 60 ssh -F none -p 2922 -i $d/key -o BatchMode=yes -o LogLevel=ERROR"
        " -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
        " $user@127.0.0.1 'echo; echo logged in as $(id -un)' 2>&1; done; true"
    )
    lines = answer.stdout.splitlines()
    assert f"logged in as {user}" in lines
    if settings.ssh.root_login == "key":
        assert "logged in as root" in lines
    else:
        assert "logged in as root" not in lines
        assert "root@127.0.0.1: Permission denied (publickey)." in lines
