"""`cmsa-fast push`: uploads a trained model with a model card to the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from .data_options import without_default

_WRITTEN = Path("hub")


@dataclass(frozen=True, kw_only=True)
class PushOptions:
    """What to upload, and where."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a training run, a model folder, a .safetensors file, or "demo"."""

    repository: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OWNER/NAME")]
    """Repository of the hub, OWNER/NAME; it is created if it does not exist."""

    private: bool = False
    """Create a private repository; a public one that exists is then refused."""

    license: Annotated[str | None, without_default("NAME", "default: the card says that it is not stated")] = None
    """Licence of the weights, as the hub writes it: mit, apache-2.0, cc-by-4.0, ..."""

    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        without_default("{float32,float16,bfloat16}", "default: that of the run's file"),
    ] = None
    """Type in which the weights are stored; they are always loaded as float32."""

    dry_run: bool = False
    """Upload nothing: write the folder hub/OWNER/NAME, whose model card can be edited before it is pushed."""


def run_push(options: PushOptions) -> str:
    """Upload a model, or write the folder that would be uploaded; report where it is."""
    import torch

    from ..hub import push_to_hub, write_model_folder

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    if options.dry_run:
        folder = _WRITTEN / options.repository
        write_model_folder(options.run, folder, name=options.repository, license=options.license, dtype=dtype)
        return (
            f"{folder} was written and nothing uploaded. Read README.md, then: "
            f"cmsa-fast push {folder} {options.repository}"
        )
    address = push_to_hub(
        options.run, options.repository, private=options.private, license=options.license, dtype=dtype
    )
    return f"{options.run} is at {address}"
