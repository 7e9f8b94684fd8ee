"""Exported programs against their models, at numbers of images, expressions and words other than those traced."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_models import build
from torch import nn

from cmsa_fast.export.program import (
    INPUTS,
    Inputs,
    import_onnx,
    load_onnx,
    load_torch,
    save_onnx,
    save_torch,
    trace,
)
from cmsa_fast.models.registry import MODELS

SIZE = 37
# The image of each expression, and the number of words.
BATCHES = [([0], 1), ([0], 2), ([0], 20), ([0, 0, 0, 0], 3), ([2, 0, 1], 1), ([1, 1, 0], 70)]

LOAD_TORCH = """
import sys, torch
sys.modules["cmsa_fast"] = None
program = torch.export.load(sys.argv[1]).module()
print(list(program(*torch.load(sys.argv[2])).shape))
"""


def draw(index: list[int], words: int) -> Inputs:
    """Random inputs; about a third of the words is padding."""
    generator = torch.Generator().manual_seed(words)
    mask = torch.rand(len(index), words, generator=generator) < 0.7
    mask[:, words // 2] = True
    return (
        torch.rand(max(index) + 1, 3, SIZE, SIZE, generator=generator),
        torch.randint(9, mask.shape, generator=generator),
        mask,
        torch.tensor(index),
    )


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    return build(request.param)


@pytest.fixture(scope="module")
def files(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model in both formats."""
    import_onnx()
    folder = tmp_path_factory.mktemp("programs")
    program = trace(model, SIZE)
    save_torch(program, folder / "model.pt2")
    save_onnx(program, model, folder / "model.onnx")
    return {"torch": folder / "model.pt2", "onnx": folder / "model.onnx"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_a_program_equals_its_model(model: Any, files: dict[str, Path], form: str) -> None:
    run = load_torch(files[form]) if form == "torch" else load_onnx(files[form])
    for index, words in BATCHES:
        inputs = draw(index, words)
        with torch.no_grad():
            expected = model(*inputs)[:, 0]
        assert expected.shape == (len(index), SIZE, SIZE)
        difference = (run(inputs) - expected).norm() / expected.norm()
        assert difference < 2e-6, (index, words)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_padding_changes_nothing(model: Any, files: dict[str, Path], form: str) -> None:
    run = load_torch(files[form]) if form == "torch" else load_onnx(files[form])
    images, words, mask, index = draw([0], 1)
    padded_words = torch.tensor([[3, 0, int(words), 8, 1]])
    padded_mask = torch.tensor([[False, False, True, False, False]])
    alone, padded = run((images, words, mask, index)), run((images, padded_words, padded_mask, index))
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_torch_programs_run_without_this_library(files: dict[str, Path], tmp_path: Path) -> None:
    torch.save(draw([0, 0], 4), tmp_path / "inputs.pt")
    arguments = [sys.executable, "-c", LOAD_TORCH, str(files["torch"]), str(tmp_path / "inputs.pt")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str([2, SIZE, SIZE]), done.stderr


@pytest.mark.slow
def test_onnx_files_use_standard_operators_and_name_their_axes(files: dict[str, Path]) -> None:
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(files["onnx"]).graph
    assert {node.domain for node in graph.node} == {""}
    assert not any(node.metadata_props for node in graph.node)
    axes = {
        part.name: [size.dim_param or size.dim_value for size in part.type.tensor_type.shape.dim]
        for part in (*graph.input, *graph.output)
    }
    words = ["expressions", "words"]
    expected = (["images", 3, SIZE, SIZE], words, words, ["expressions"])
    assert axes == {**dict(zip(INPUTS, expected, strict=True)), "logits": ["expressions", SIZE, SIZE]}


@pytest.mark.slow
def test_folded_weights_and_paths_of_this_machine_are_not_stored(files: dict[str, Path]) -> None:
    program = torch.export.load(files["torch"])
    used = {specification.target for specification in program.graph_signature.input_specs}
    assert set(program.state_dict) <= used
    assert b"/cmsa_fast/" not in files["torch"].read_bytes() + files["onnx"].read_bytes()


@pytest.mark.slow
def test_what_cannot_be_traced_is_refused_in_one_sentence() -> None:
    model = build("cmsa")

    class Branching(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input if input.sum().item() > 0 else -input)

    model.backbone.stem[0] = Branching(3, 8, 3, stride=2, padding=1, bias=False)
    with pytest.raises(ValueError, match=r"CMSAModel cannot be exported: .+") as caught:
        trace(model, SIZE)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_an_operator_without_a_branch_free_form_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmsa_fast.export.program.DECOMPOSITIONS", {})
    with pytest.raises(
        ValueError, match=r"CMSAModel cannot be exported: cmsa_fast.factored_forward.default has no"
    ):
        trace(build("cmsa"), SIZE)


@pytest.mark.slow
def test_a_model_of_another_backend_is_exported_alike() -> None:
    program = trace(build("cmsa", backend="triton"), SIZE).module()
    inputs = draw([0, 1], 4)
    torch.testing.assert_close(program(*inputs), build("cmsa")(*inputs)[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_model_in_training_mode_is_refused(name: str) -> None:
    with pytest.raises(RuntimeError, match="must be in eval mode"):
        trace(build(name).train(), SIZE)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"onnxscript.* pip install 'cmsa_fast\[export\]'"):
        import_onnx()
