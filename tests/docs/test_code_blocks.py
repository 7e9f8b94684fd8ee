"""The Python code of the README and of the documentation runs as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import REPOSITORY
from PIL import Image
from support.refer_layout import small_refcoco
from support.small_training import CONFIG, new_model

from cmsa_fast.models.checkpoint import save_pretrained

# A block that cannot run here has the comment `<!-- not run: reason -->` above it.
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


class Block(NamedTuple):
    code: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The blocks of a page that run, each with the line of its first line of code."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(match["code"], text.count("\n", 0, match.start("code")))
        for match in BLOCK.finditer(text)
        if match["reason"] is None
    ]


# Pages whose blocks need stand-ins of their own, and the tests that run them.
ELSEWHERE = {"export": "cli/test_export.py", "score": "cli/test_score_page.py"}
ALL_PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
PAGES = [page for page in ALL_PAGES if blocks(page) and page.stem not in ELSEWHERE]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documentation mentions: a run, an image, a data set in REFER's layout."""
    save_pretrained(tmp_path / "runs" / "my-run", new_model(), CONFIG)
    Image.new("RGB", (64, 48), "gray").save(tmp_path / "street.jpg")
    small_refcoco(tmp_path / "ROOT").write()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_blocks_run_in_order(page: Path, workplace: Path) -> None:
    torch.manual_seed(0)
    # What the comments of a page assume to be there.
    names: dict[str, Any] = {"predicted": torch.ones(4, 5) > 0, "true": torch.ones(4, 5) > 0}
    for block in blocks(page):
        code = "\n" * block.line + block.code  # errors then have the line of the page
        exec(compile(code, str(page), "exec"), names)


def test_no_python_block_escapes() -> None:
    for page in ALL_PAGES:
        fences = re.findall(r"^\s*(?:```|~~~)[ {.]*py", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == len(BLOCK.findall(page.read_text(encoding="utf-8"))), page.name
    for name, test in ELSEWHERE.items():
        assert f'"{name}.md"' in (REPOSITORY / "tests" / test).read_text(encoding="utf-8")
    assert {"README", "network", "separability"} <= {page.stem for page in PAGES}
