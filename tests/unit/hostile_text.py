"""Texts that would do harm where something misreads them, and those of them a word accepts."""

from __future__ import annotations

import random
import re
from re import _constants as code  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from holdfast.types import Word

NASTY = (
    *("", " ", "-", "--", "-n", "-rf", "--help", "-oProxyCommand=touch PWNED", ".", ".."),
    *("../..", "/", "%", "%%", "%n", "%H", "%i", "100%", "%d", "$", "$$", "$HOME", "${IFS}"),
    *("$(touch PWNED)", "`touch PWNED`", ";touch PWNED;", "&& touch PWNED", "|| reboot"),
    *("| sh", "> PWNED", "#", "# x", "'", '"', "a'b", 'a"b', "\\", "\\n", "\\x2d", "a\\"),
    *("*", "?", "[a]", "{a,b}", "~", "!", "!!", "@", "@a", "a@", "a@@b", ":", "a:b", ","),
    *("a,b", "=", "a=b", "(", ")", "<", ">", "a b", "a  b", "{{ 1 }}", "{% if %}", "{#"),
    *("${x:-y}", "%(a)s", "%s", "{0}", "\\1", "&", "/#/", "//", "/.", "/-", "no", "yes"),
    *("null", "true", "0x10", "1e3", "010", "0", "-1", "inf", "nan", "NULL", "None", "root"),
    *("all", "any", "none", "default", "lo", "self", "ct", "counter", "log", "tcp", "accept"),
    *("drop", "in", "on", "out", "to", "from", "port", "proto", "comment", "app", "route"),
    *("delete", "infinity", "max", "host", "bridge", "server", "listen", "if", "fi", "do"),
    *("EOF", "COMMIT", "a-", "a--b", "a.b", "a..b", "a_b", "a+b", "a~b", "A", "aA", "9"),
    *("9a", "\xe9", "\u0663", "\u200b", "a\nb", "a\rb", "a\tb", "a\x00b", "a\x1bb", "a\x7fb"),
    *("a" * 64, "a" * 255, "a/" * 60 + "a", "fe80::1%x;touch PWNED;/128", "::ffff:0:0/96"),
    *("0.0.0.0/0", "::/0", "127.0.0.1", "::1", "1.1", "1.2.3.4", "255.255.255.255"),
    *("fd00::1", "2001:db8::/32", "10.0.0.0/8", "224.0.0.0/4", "http://a", "https://a/%25"),
    *("https://[fd00::1]:1/a", "http://a/;touch", "https://a/$(x)"),
    *("http://127.0.0.1:1/%41?a=b&c=d", "/a@b", "/-a", "/a+b", "/a/@-_.+", "/.a"),
    *("/a.service", "*:*", "*:0/15", "*-*-* *:*:00", "Mon..Sun 00:00", "*-02-29 23:59:59"),
    *("Sun *-*-31 3:5", "a@a.service", "a.b.c.service", "x-y_z@w-1.timer", "service.service"),
    "a.socket",
)


def _from(pattern: Any, dice: random.Random) -> str:
    """A text that the parsed ``pattern`` matches, of its edges rather than of its middle."""
    text = ""
    for kind, value in pattern:
        if kind is code.LITERAL:
            text += chr(value)
        elif kind is code.NOT_LITERAL:
            text += dice.choice([c for c in "aZ9 ;%$" if ord(c) != value])
        elif kind is code.ANY:
            text += dice.choice("a;%$'\"\\ ")
        elif kind is code.IN:
            text += _one_of(value, dice)
        elif kind in (code.MAX_REPEAT, code.MIN_REPEAT):
            least, most, inner = value
            most = min(most, least + 70)
            times = dice.choice([least, most, dice.randint(least, min(most, least + 4))])
            text += "".join(_from(inner, dice) for _ in range(times))
        elif kind is code.SUBPATTERN:
            text += _from(value[3], dice)
        elif kind is code.BRANCH:
            text += _from(dice.choice(value[1]), dice)
    return text


def _one_of(options: Any, dice: random.Random) -> str:
    """A character of a class, its signs before its letters."""
    characters = [
        chr(number)
        for kind, value in options
        for number in (
            (value,)
            if kind is code.LITERAL
            else range(value[0], value[1] + 1)
            if kind is code.RANGE
            else b"0123456789"
            if value is code.CATEGORY_DIGIT
            else b"abz019_"
        )
    ]
    signs = [each for each in characters if not each.isalnum()]
    return dice.choice(signs if signs and dice.random() < 0.4 else characters)


def everything(word: Word, dice: random.Random, many: int) -> list[str]:
    """Texts for a word: the nasty ones, alone and beside what it is used to, and its own edges."""
    parsed = parser.parse(word.pattern, re.ASCII)
    beside = [
        text for nasty in NASTY for text in (f"{word.example}{nasty}", f"{nasty}{word.example}")
    ]
    return [*NASTY, *beside, *(_from(parsed, dice) for _ in range(many))]


def accepted(kind: Any, dice: random.Random, many: int) -> list[str]:
    """Those of `everything` that the grammar lets stand as a ``kind``, each once."""
    adapter = TypeAdapter(kind)
    word = next(part for part in get_args(kind) if isinstance(part, Word))
    found = []
    for text in dict.fromkeys(everything(word, dice, many)):
        try:
            adapter.validate_python(text)
        except ValidationError:
            continue
        found.append(text)
    return found


def shape(command: str) -> str:
    """What a shell does with a command's characters: all of its operators outside quotes."""
    found, quote, position = "", "", 0
    while position < len(command):
        letter = command[position]
        if letter == "\\" and quote != "'":
            position += 1
        elif quote:
            if letter == quote:
                quote = ""
            elif quote == '"' and letter in "$`":
                found += letter
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and command[:position][-1:] in ("", "\n", " "):
            # A comment, whose apostrophes quote nothing.
            found += letter
            rest = command[position:]
            position += len(rest.partition("\n")[0]) - 1
        elif letter in ";&|<>()$`*?[]{}~#!\n":
            found += letter
        position += 1
    return found
