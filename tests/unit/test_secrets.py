"""Where secrets are found, and what is kept from everybody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast import secrets

NAME = "FLOOR_API_KEY"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    monkeypatch.delenv("HOLDFAST_SECRETS", raising=False)


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def value(root: Path) -> str | None:
    secret = secrets.read(NAME, root)
    return secret.get_secret_value() if secret else None


def test_environment_comes_before_files_and_files_before_env(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert value(tmp_path) is None
    write(tmp_path / ".env", f"{NAME}=from-env-file\n")
    assert value(tmp_path) == "from-env-file"
    write(tmp_path / "secrets" / NAME, "from-its-own-file\n")
    assert value(tmp_path) == "from-its-own-file"
    monkeypatch.setenv(NAME, "from-environment")
    assert value(tmp_path) == "from-environment"


def test_the_folder_is_the_one_that_holdfast_secrets_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / ".env", f"{NAME}=there\n")
    monkeypatch.setenv("HOLDFAST_SECRETS", str(tmp_path))
    assert secrets.require(NAME).get_secret_value() == "there"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{NAME}=plain", "plain"),
        (f"export {NAME} = spaced ", "spaced"),
        (f"{NAME}='single # quoted'", "single # quoted"),
        (f'{NAME}="double=quoted"', "double=quoted"),
        (f"{NAME}='unbalanced", "'unbalanced"),
        (f"{NAME}=", None),
        (f"# {NAME}=comment", None),
    ],
)
def test_lines_of_env(line: str, expected: str | None, tmp_path: Path) -> None:
    write(tmp_path / ".env", f"\n# a comment\n{line}\nOTHER=x\n")
    assert value(tmp_path) == expected


@pytest.mark.parametrize("text", ["a line", "=x", "two words=x", f"{NAME}=a\n{NAME}=b"])
def test_an_env_that_is_ambiguous_is_no_env(text: str, tmp_path: Path) -> None:
    write(tmp_path / ".env", text)
    with pytest.raises(ValueError, match="; "):
        secrets.read(NAME, tmp_path)
    assert secrets.known_values(tmp_path) == frozenset()


@pytest.mark.parametrize("name", [".env", f"secrets/{NAME}"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_file_that_others_can_read_is_refused(name: str, mode: int, tmp_path: Path) -> None:
    write(tmp_path / name, f"{NAME}=x", mode)
    with pytest.raises(ValueError, match=f"mode {mode:o} lets other users read it; chmod 600"):
        secrets.read(NAME, tmp_path)


def test_a_missing_secret_is_named_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=f"secret {NAME} is not set"):
        secrets.require(NAME)


def test_a_secret_hides_its_value(tmp_path: Path) -> None:
    write(tmp_path / ".env", f"{NAME}=hunter22-hunter22\n")
    secret = secrets.read(NAME, tmp_path)
    for text in (repr(secret), str(secret), f"{secret}", repr({"key": secret})):
        assert "hunter22" not in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9fKq27xLmZp40wQ", "15 characters"),
        ("abababababababababab", "repeats"),
        ("my-password-is-27xLmZ", "placeholder"),
        ("9fKq27xLmZp40wQr", None),
    ],
)
def test_weakness(text: str, why: str | None) -> None:
    weakness = secrets.weakness(secrets.Secret(text))
    assert (weakness is None) == (why is None)
    assert why is None or (weakness and why in weakness)
    assert text not in (weakness or "")
