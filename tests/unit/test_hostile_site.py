"""A sample of `make hostile`: accepted text does no harm wherever a site puts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from holdfast import types
from holdfast.render import TEMPLATES
from tests.unit import hostile_site
from tests.unit.hostile_text import shape

ROOT = Path(__file__).resolve().parents[2]


def test_hostile_text_does_no_harm_in_a_whole_site() -> None:
    # A program of its own: it plans with pyinfra, whose command line patches sockets.
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.hostile_site", "--rounds", "2"],
        cwd=ROOT,
        env=os.environ | {"PYINFRA_PROGRESS": "off"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # `make drill-all` counts by this line.
    assert "2 sites: 2 passed, 0 failed" in done.stdout


def test_a_word_or_a_template_that_is_not_tried_fails_the_trial() -> None:
    texts = {
        hostile_site._word(kind) for kind in vars(types).values() if hostile_site._texts_of(kind)
    }
    names = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.j2")}
    assert hostile_site.unreached(texts, names) == []
    less = texts - {hostile_site._word(types.Cidr)}, names - {"ssh/ssh-rollback.j2"}
    assert hostile_site.unreached(*less) == [
        "no text was tried in the word Cidr",
        "no site rendered ssh/ssh-rollback.j2",
    ]


def test_a_text_that_ends_a_command_changes_its_shape() -> None:
    rule = "ufw allow proto tcp from {} to any port 9 comment 'holdfast: a'"
    usual = shape(rule.format("192.168.1.0/24"))
    for hostile in ("fe80::1%x;touch PWNED;/128", "$(id)", "`id`", "a&b", "a|b", "a\nb", "a>b"):
        assert shape(rule.format(hostile)) != usual
    for quoted in ("'a;b'", "'$(id)'", "a\\;b"):
        assert shape(rule.format(quoted)) == usual


def test_an_apostrophe_of_a_comment_quotes_nothing() -> None:
    script = "# It's a link's own owner's.\nfetch 'https://{}/'\n"
    assert shape(script.format("a")) == shape(script.format("a?b&c"))
    assert shape("fetch a #b;c") != shape("fetch a b;c")
