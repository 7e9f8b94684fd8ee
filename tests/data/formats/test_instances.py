"""instances.json is parsed once for all splits, and again after a change."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.refer_layout import open_refer, small_refcoco, square

from cmsa_fast.data.formats import instances


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that `instances` parses."""
    paths: list[Path] = []

    def load(path: Path) -> Any:
        paths.append(path)
        return json.loads(path.read_bytes())

    monkeypatch.setattr(instances, "load_json", load)
    return paths


def settle(file: Path, seconds: int = 100) -> None:
    """Makes a file look old enough to be kept in memory."""
    os.utime(file, (seconds, seconds))


def test_instances_are_parsed_once_for_all_splits(tmp_path: Path, parsed: list[Path]) -> None:
    file = small_refcoco(tmp_path).write() / "refcoco" / "instances.json"
    settle(file)
    train, val = open_refer(tmp_path), open_refer(tmp_path, split="val")
    assert parsed == [file]
    assert int(train[0].mask.sum()) == 175
    assert int(val[0].mask.sum()) == 121


def test_changed_instances_are_parsed_again(tmp_path: Path, parsed: list[Path]) -> None:
    layout = small_refcoco(tmp_path)
    file = layout.write() / "refcoco" / "instances.json"
    settle(file)
    open_refer(tmp_path)
    layout.annotations[0]["segmentation"] = [square(4, 2, 10), square(8, 7, 10)]  # same size of file
    layout.write()
    assert int(open_refer(tmp_path)[0].mask.sum()) == 170  # too recent to be kept
    assert int(open_refer(tmp_path)[0].mask.sum()) == 170
    settle(file, 200)
    assert int(open_refer(tmp_path)[0].mask.sum()) == 170
    open_refer(tmp_path)
    assert len(parsed) == 4


def test_other_references_of_the_same_instances(tmp_path: Path, parsed: list[Path]) -> None:
    layout = small_refcoco(tmp_path)
    more, layout.references = layout.references[3:], layout.references[:3]
    file = layout.write() / "refcoco" / "instances.json"
    layout.split_by, layout.references = "google", more
    layout.write()
    settle(file)
    for _ in range(2):
        assert len(open_refer(tmp_path)) == 5
        assert len(open_refer(tmp_path, split_by="google", split="val")) == 2
    assert len(parsed) == 2
