"""The generated parts of the documentation: commands, formulas, the figure and the navigation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from conftest import REPOSITORY
from support.docs_tools import tool

pytest.importorskip("mkdocs", reason="the documentation needs the extra `docs`")

DOCS = REPOSITORY / "docs"


def listed_commands(commands: ModuleType, *group: str) -> Iterator[tuple[str, ...]]:
    """The commands that the help of a group lists with bullets."""
    for name in re.findall(r"^│   • ([a-z-]+)", commands.help_text(group, 100), re.MULTILINE):
        if name == "data":
            yield from listed_commands(commands, "data")
        else:
            yield (*group, name)


def test_the_commands_page_has_every_command_and_option() -> None:
    tools = tool("commands")
    page = tools.commands_page()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = list(listed_commands(tools))
    assert {"train", "evaluate", "data check"} <= set(sections)
    assert set(sections) == {" ".join(command) for command in commands}
    for command in commands:
        options = set(re.findall(r"^│ (--[a-z-]+)", tools.help_text(command, 100), re.MULTILINE))
        rows = re.findall(r"^\| `(--[a-z-]+).*?` \| (.*?) \| (.*?) \|$", sections[" ".join(command)], re.MULTILINE)
        assert {option for option, _, _ in rows} == options, command
        for option, meaning, default in rows:
            assert len(meaning.split()) >= 3, (command, option)
            assert default, (command, option)


def test_formulas_become_drawings_on_the_baseline() -> None:
    maths = tool("maths")
    content = maths.on_page_content(
        r'<p>The query <span class="arithmatex">\(q_p\)</span>:</p><div class="arithmatex">\[ a &lt; b \]</div>'
    )
    assert "arithmatex" not in content
    inline, display = ElementTree.fromstring(f"<body>{content}</body>").iter("svg")
    assert inline.get("aria-label") == "q_p"
    assert display.get("aria-label") == "a < b"
    depth = re.search(r"vertical-align:-(.+)em", inline.get("style", ""))
    assert depth is not None
    assert 0.1 < float(depth[1]) < 0.6  # the index is below the baseline
    with pytest.raises(ValueError, match="unknown"):
        maths.draw(r"\unknown")


def test_the_figure_is_what_its_script_draws() -> None:
    figure = tool("figure")
    assert (DOCS / "separability.svg").read_text(encoding="utf-8") == figure.draw()
    places, words = figure.softmax(figure.PLACE_LOGITS), figure.softmax(figure.WORD_LOGITS)
    for (place, word), weight in figure.pairs_softmax().items():
        assert weight == pytest.approx(places[place] * words[word], rel=1e-12)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    missing = [page.name for page in DOCS.glob("*.md") if f" {page.name}\n" not in navigation]
    assert missing == []


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_other_servers(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=REPOSITORY,
        check=True,
        timeout=300,
    )
    pages = {page.name: page.read_text(encoding="utf-8") for page in (tmp_path / "site").glob("*.html")}
    assert {"index.html", "commands.html", "api.html"} <= set(pages)
    for name, text in pages.items():
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert loaded == [], name
    assert "cross_modal_attention" in pages["api.html"]
    assert "--images-per-step" in pages["commands.html"]
