"""A model as one program of plain operations, for `torch.export` or ONNX.

The program takes images, expressions and the image of each expression, so that K expressions of an image encode
it once, and returns logits:

    images [I, 3, S, S] float32, words [E, N] int64, word_mask [E, N] bool, image_index [E] int64 -> [E, S, S]

I, E and N are at least 1 and free; the size S is the model's. `description` says how to prepare these inputs.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional as F

from ..models import for_inference
from ..models.base import ReferringModel
from ..nn.level import Level
from .decompositions import DECOMPOSITIONS, ONNX_DECOMPOSITIONS

INPUTS = ("images", "words", "word_mask", "image_index")
OUTPUT = "logits"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Run = Callable[[Inputs], Tensor]

# Graphs treat arrays of size 1 separately, and pooled keys halve the number of words. Padded words change nothing.
_LEAST_WORDS = 3


class Program(nn.Module):
    """The forward pass that is exported: images and words to logits `[E, S, S]`."""

    def __init__(self, model: ReferringModel) -> None:
        """
        Args:
            model: In eval mode. Its faster form for inference is used where there is one.
        """
        super().__init__()
        self.model = for_inference(model)
        self.training = False

    def forward(self, images: Tensor, words: Tensor, word_mask: Tensor, image_index: Tensor) -> Tensor:
        missing: Any = torch.sym_max(words.shape[1], _LEAST_WORDS) - words.shape[1]
        words, word_mask = F.pad(words, (0, missing)), F.pad(word_mask, (0, missing))
        return self.model(images, words, word_mask, image_index)[:, 0]


def trace(model: ReferringModel, size: int) -> ExportedProgram:
    """Trace a model into a program of PyTorch's own operations.

    Args:
        model: A model on the CPU in eval mode; it is not changed.
        size: Side of the square input in pixels.

    Raises:
        RuntimeError: The model is in training mode.
        ValueError: The model cannot be traced, or uses an operator that has no branch-free form.
    """
    if model.training:
        raise RuntimeError("A model must be in eval mode to be exported: call eval() on it.")
    program = Program(_with_portable_attention(model))
    images, expressions, words = (Dim(name, min=1) for name in ("images", "expressions", "words"))
    shapes = ({0: images}, {0: expressions, 1: words}, {0: expressions, 1: words}, {0: expressions})
    with _one_sentence(model), torch.no_grad():
        # Strict, because only Dynamo keeps the length of a tensor symbolic.
        traced = torch.export.export(program, _example(size), dynamic_shapes=shapes, strict=True)
        traced = traced.run_decompositions(DECOMPOSITIONS)
    left = sorted({str(node.target) for node in traced.graph.nodes if _is_ours(node.target)})
    if left:
        raise ValueError(f"{_name(model)} cannot be exported: {', '.join(left)} has no branch-free form.")
    _remove_what_it_does_not_need(traced)
    return traced


def save_torch(program: ExportedProgram, path: Path) -> None:
    """Write a traced program as a file for `torch.export.load`."""
    with path.open("wb") as file:  # given a path, PyTorch demands the ending .pt2
        torch.export.save(program, file)


def load_torch(path: Path) -> Run:
    """Load a file of `save_torch`."""
    with path.open("rb") as file:
        module = torch.export.load(file).module()

    @torch.no_grad()
    def run(inputs: Inputs) -> Tensor:
        return module(*inputs)

    return run


def save_onnx(program: ExportedProgram, model: ReferringModel, path: Path) -> None:
    """Convert a traced program to ONNX and write it as one file.

    Raises:
        ImportError: The packages of the extra "export" are missing.
        ValueError: The program of `model` has an operation that has no counterpart in ONNX.
    """
    import_onnx()
    with _one_sentence(model), _quiet():
        converted = torch.onnx.export(
            program.run_decompositions(ONNX_DECOMPOSITIONS),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            verbose=False,
        )
    assert converted is not None  # for mypy; it is None only without dynamo
    for node in converted.model.graph.all_nodes():
        node.metadata_props.clear()  # the lines of source, with the paths of this machine
    _name_axes(converted.model.graph)
    converted.save(path, external_data=False)


def load_onnx(path: Path, threads: int | None = None) -> Run:
    """Load an ONNX file in onnxruntime, on the CPU.

    Args:
        path: A file of `save_onnx`.
        threads: Number of threads. None: that of PyTorch.

    Raises:
        ImportError: The packages of the extra "export" are missing.
    """
    onnxruntime = import_onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Inputs) -> Tensor:
        arrays = dict(zip(INPUTS, (part.numpy() for part in inputs), strict=True))
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])

    return run


def import_onnx() -> Any:
    """The module onnxruntime; ImportError with the command that installs the extra if a package is missing."""
    try:
        for name in ("onnx", "onnxscript"):
            importlib.import_module(name)
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ImportError(
            f"ONNX needs onnx, onnxscript and onnxruntime, which cannot be imported ({error}). Install them with: "
            "pip install 'cmsa_fast[export]'"
        ) from error


def _with_portable_attention(model: ReferringModel) -> ReferringModel:
    """A copy whose attention uses the operators that have a branch-free form; all backends compute the same."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, Level):
            module.backend = "torch"
    return model


def _remove_what_it_does_not_need(program: ExportedProgram) -> None:
    """Remove what would only make the file larger."""
    needed = {specification.target for specification in program.graph_signature.input_specs}
    for name in set(program.state_dict) - needed:
        del program.state_dict[name]  # weights that were folded
    for name, constant in program.constants.items():
        if isinstance(constant, Tensor):
            program.constants[name] = constant.clone()  # not a view, which is stored with the whole of it
    for node in program.graph.nodes:
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack"):
            node.meta.pop(name, None)  # with the paths of this machine


def _example(size: int) -> Inputs:
    """Inputs to trace with; sizes of 1 would be taken for constants."""
    images, expressions, words = 2, 3, 5
    mask = torch.ones(expressions, words, dtype=torch.bool)
    index = torch.tensor([1, 0, 1])
    return torch.rand(images, 3, size, size), torch.zeros(mask.shape, dtype=torch.int64), mask, index


def _is_ours(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target.namespace == "cmsa_fast"


def _name(model: ReferringModel) -> str:
    return type(model).__name__


@contextmanager
def _one_sentence(model: ReferringModel) -> Iterator[None]:
    """Shorten errors of PyTorch's exporters, which have many lines."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"{_name(model)} cannot be exported: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' log about their own implementation."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _name_axes(graph: Any) -> None:
    """Name the free axes of an ONNX graph; the exporter calls them s0, s13, ..., and uses two for the words."""
    images, words, mask, _ = graph.inputs
    names = {str(images.shape[0]): "images", str(words.shape[0]): "expressions"}
    names |= {str(part.shape[1]): "words" for part in (words, mask)}
    for value in [*graph.inputs, *(output for node in graph.all_nodes() for output in node.outputs)]:
        if value.shape is not None:
            for axis, size in enumerate(value.shape):
                if str(size) in names:
                    value.shape[axis] = names[str(size)]
