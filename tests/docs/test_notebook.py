"""The notebook runs from top to bottom, learns something, and its page shows every cell."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.docs_tools import tool

nbformat = pytest.importorskip("nbformat", reason="the notebook needs the extra `docs`")
notebook_tool = tool("notebook")

# Appended to the notebook: what the test asserts on.
RESULTS = """
print(json.dumps({
    "mean_iou": evaluation.overall["mean_iou"],
    "control": control.overall["mean_iou"],
    "errors": [((result - truth).norm() / truth.norm()).item() for result in results.values()],
    "attention": [prediction.word_attention.sum(1).tolist() for prediction in predictions],
}))
"""


def read() -> Any:
    return nbformat.read(notebook_tool.NOTEBOOK, as_version=4)


def test_the_page_shows_every_cell_and_output() -> None:
    notebook = read()
    page = notebook_tool.page(notebook)
    for cell in notebook.cells:
        assert cell.source in page
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert (
        page.count("data:image/png;base64,")
        == sum("image/png" in output.get("data", {}) for output in outputs)
        > 3
    )
    assert "control: shuffled" in page
    assert len(page) < 600_000


@pytest.mark.slow
def test_the_notebook_runs_and_learns() -> None:
    notebook = read()
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    notebook_tool.execute(notebook)
    (output,) = notebook.cells[-1].outputs
    results = json.loads(output.text)
    assert results["mean_iou"] > 0.35
    assert results["control"] < results["mean_iou"] / 2
    assert max(results["errors"]) < 1e-6
    for sums in results["attention"]:
        assert sums == pytest.approx([1, 1, 1], abs=1e-4)
