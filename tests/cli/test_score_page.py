"""The snippets of docs/score.md, run with stand-ins for the other code bases, write files that score reads."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from support.anns_layout import small_anns
from support.refer_layout import open_refer, small_refcoco

from cmsa_fast.data import RecordDataset, load
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.mask_files import read_predictions
from cmsa_fast.evaluation.predictions import score_predictions

SNIPPETS = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "score.md").read_text(), re.DOTALL)


def run(number: int, **names: Any) -> dict[str, Any]:
    """Runs the first snippet, which the others need, and another one."""
    exec(SNIPPETS[0], names)
    exec(SNIPPETS[number], names)
    return names


def overall_iou(path: Path, data: RecordDataset, convention: str) -> float:
    scores = score_predictions(read_predictions(path), data, [CONVENTIONS[convention]])
    return scores.evaluations[convention].overall["overall_iou"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_turn(outputs: Iterable[Any]) -> Callable[..., Any]:
    iterator = iter(outputs)
    return lambda *inputs: next(iterator)


def test_lavt(folder: Path) -> None:
    data = open_refer(small_refcoco(folder / "data").write())
    references = pickle.loads((folder / "data/refcoco/refs(unc).p").read_bytes())[:3]
    for reference in references:
        reference["sent_ids"] = [sentence["sent_id"] for sentence in reference["sentences"]]
    refs = {reference["ref_id"]: reference for reference in references}
    loader = [
        (torch.zeros(1, 3, 480, 480), None, *torch.zeros(2, 1, 1, 20, len(reference["sent_ids"])))
        for reference in references
    ]
    lavt = CONVENTIONS["lavt"]
    truth = [lavt.truth(data[index].mask).float() for index in range(5)]
    names = {
        "dataset": SimpleNamespace(ref_ids=list(refs), refer=SimpleNamespace(Refs=refs)),
        "data_loader": loader,
    }
    run(1, **names, predict=in_turn([torch.stack([1 - one, one])[None] for one in truth]))
    assert overall_iou(folder / "masks.jsonl", data, "lavt") == 1


def test_python(folder: Path) -> None:
    layout = small_refcoco(folder / "ROOT")
    for reference in layout.references:
        reference["split"] = "testA"
    data = load("refer", layout.write(), "testA")
    with (folder / "masks.jsonl").open("w") as file:
        for index, (*_, sent_id) in enumerate(data.ids()):
            run(0)["write_mask"](file, data[index].mask.numpy(), sent_id=sent_id)
    scores = run(5)["scores"]
    assert [one.overall["overall_iou"] for one in scores.evaluations.values()] == [
        1,
        1,
        pytest.approx(1, abs=0.05),
        1,
    ]


def test_lavt_at_the_size_of_the_image() -> None:
    inside = torch.zeros(480, 480)
    inside[120:360, 48:240] = 1
    mask = run(2, output=torch.stack([-inside, inside - 0.5])[None] * 3, image_size=(20, 50), torch=torch)["mask"]
    expected = np.zeros((20, 50), bool)
    expected[5:15, 5:25] = True
    np.testing.assert_array_equal(mask, expected)


def test_cris(folder: Path) -> None:
    root = small_anns(folder / "datasets").write()
    data = load("anns-masks", root, "val")
    loader = [
        (torch.zeros(1, 3, 416, 416), {"seg_id": torch.tensor([ref_id]), "sents": [[one] for one in expressions]})
        for ref_id, expressions in ((51, ["right cup", "café on the right"]), (52, ["man"]), (53, ["dog"]))
    ]
    truth = [data[index].mask.double().numpy() * 0.36 for index in range(4)]
    run(3, test_loader=loader, predict=in_turn(truth))
    assert overall_iou(folder / "masks.jsonl", data, "cris") == 1


class LisaLoader(list[Any]):
    """A loader with the attributes of LISA's validation set."""

    dataset: SimpleNamespace


def test_lisa(folder: Path) -> None:
    data = open_refer(small_refcoco(folder / "data").write())
    # The images come in another order than the references.
    references = {7: [{"sent_ids": [0, 1]}, {"sent_ids": [3, 4]}], 11: [{"sent_ids": [2]}]}
    loader = LisaLoader([{}, {}])
    images = [{"id": 11}, {"id": 7}]
    loader.dataset = SimpleNamespace(refer_seg_ds={"images": images, "img2refs": references})
    logits = [torch.stack([data[index].mask.float() - 0.5 for index in chosen]) for chosen in ((2,), (0, 1, 3, 4))]
    run(4, val_loader=loader, predict=in_turn(logits))
    assert overall_iou(folder / "masks.jsonl", data, "native") == 1
