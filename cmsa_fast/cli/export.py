"""`cmsa-fast export`: a model as one file that runs without this library."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .data_options import without_default

if TYPE_CHECKING:
    from ..export.check import Agreement

Format = Literal["torch-export", "onnx"]
_ENDINGS: dict[Format, str] = {"torch-export": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `cmsa-fast export`."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, model folder or .safetensors file; demo: the model that is part of the package;
    OWNER/NAME: a model on the Hugging Face Hub."""

    format: Format
    """torch-export: a program for torch.export.load; onnx: a file for onnxruntime and other runtimes."""

    out: Annotated[
        Path | None, without_default("FILE", "default: model.pt2 or model.onnx in the run's folder")
    ] = None
    """File to write; must not exist. Its description is written beside it, with .json added to the name."""


@dataclass(frozen=True)
class ExportResult:
    """Result of an export."""

    path: Path  # the program
    description: Path
    size: int  # of the program, in bytes
    agreement: Agreement  # with the model


def run_export(options: ExportOptions) -> ExportResult:
    """Export a model as `cmsa-fast export` does; the files are written only if the program equals the model."""
    from ..export import program
    from ..export.check import compare
    from ..export.description import describe
    from ..models.checkpoint import load_pretrained
    from ..system.files import write_json

    if options.format == "onnx":
        program.import_onnx()
    path = options.out or _default_file(options)
    description = path.with_name(f"{path.name}.json")
    _check_free(path, description)
    with _folder_beside(path) as folder:
        model, config = load_pretrained(options.run)
        traced = program.trace(model, config.size)
        written = folder / path.name
        if options.format == "onnx":
            program.save_onnx(traced, model, written)
            run = program.load_onnx(written)
        else:
            program.save_torch(traced, written)
            run = program.load_torch(written)
        agreement = compare(model, config, run)
        write_json(description, describe(config, path.name, options.format, **agreement._asdict()))
        written.replace(path)
    return ExportResult(path, description, path.stat().st_size, agreement)


def format_export(result: ExportResult) -> str:
    """The report."""
    from ..data.errors import readable_size

    return "\n".join(
        [
            f"The program is in {result.path} ({readable_size(result.size)}); {result.description} says how to "
            "prepare its inputs.",
            f"Its logits equal those of the model up to {result.agreement.relative_error:.1e} of their norm, its "
            f"probabilities up to {result.agreement.probability_error:.1e} (random inputs).",
        ]
    )


def _default_file(options: ExportOptions) -> Path:
    """In the run's folder; of a model that is no file, in the current folder."""
    run = Path(options.run)
    ending = _ENDINGS[options.format]
    if run.exists():
        return (run if run.is_dir() else run.parent) / f"model{ending}"
    return Path(f"{run.name}{ending}")


def _check_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise FileExistsError(
                f"{path} exists, and an export overwrites nothing; choose another name by --out, or delete it."
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(f"--out must be a file in an existing folder; {path.parent} is none.")


@contextmanager
def _folder_beside(path: Path) -> Iterator[Path]:
    """A temporary folder on the same disk; made before the work, so that missing access is reported early."""
    try:
        folder = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(
            f"--out must be a file in a folder that can be written to; {path.parent} is not: {error.strerror}."
        ) from error
    with folder as name:
        yield Path(name)
