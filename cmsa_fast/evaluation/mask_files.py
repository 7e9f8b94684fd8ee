"""Files of predicted masks: COCO run lengths as JSON Lines or JSON, and folders of PNG.

An entry of a JSON file has the mask and names its expression by number, or by object and text:

    {"sent_id": 12, "segmentation": {"size": [480, 640], "counts": "..."}}
    {"ref_id": 5, "expression": "left cup", "segmentation": {"size": [480, 640], "counts": "..."}}

PNG files are named `SENT_ID.png`, `REF_ID_SENT_ID.png` or `REF_ID_EXPRESSION.png`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from ..data.formats.parsing import Where, integer, kind, load_json, paused_collection, place, read_mask, string
from ..data.images import read_image_size
from ..data.masks import MaskSource
from ..system.files import write_atomically
from .results import ExpressionResult

MASKS = "masks.jsonl"

_PNG_NAME = re.compile(r"(?:(?P<ref_id>\d{1,18})_)?(?:(?P<sent_id>\d{1,18})|(?P<expression>.+))", re.DOTALL)
_SHOWN_VALUES = 5

RunLengths = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PredictedMask:
    """A predicted mask that is not decoded.

    Attributes:
        content: Checked run lengths, or the path of a PNG file.
        where: File and line or entry, for messages.
        sent_id: Number of the expression; None if it is named by object and text.
        ref_id: Number of the object, if stated.
        image_id: Number of the image, if stated.
        expression: The text, if it names the expression.
    """

    content: MaskSource | Path
    where: str
    sent_id: int | None = None
    ref_id: int | None = None
    image_id: int | None = None
    expression: str = ""

    @property
    def name(self) -> str:
        """The expression that the file names, for messages."""
        if self.sent_id is not None:
            return f"sent_id {self.sent_id}"
        return f"ref_id {self.ref_id} {self.expression!r}"

    def size(self) -> tuple[int, int]:
        """Height and width; ValueError or OSError if a PNG file cannot be opened."""
        if isinstance(self.content, Path):
            return read_image_size(self.content, apply_orientation=False)
        height, width = self.content.runs[0]["size"]
        return height, width

    def decode(self) -> Tensor:
        """The mask, bool `[H, W]`; ValueError or OSError if a PNG file is damaged or no mask, or too large."""
        if isinstance(self.content, Path):
            return _read_png(self.content)
        height, width = self.size()
        limit = Image.MAX_IMAGE_PIXELS  # of PNG files, too
        if limit is not None and height * width > limit:
            raise ValueError(f"{self.where} ({self.name}) has {height} x {width} pixels, more than {limit}")
        return self.content.decode(height, width)


def read_predictions(path: str | os.PathLike[str]) -> list[PredictedMask]:
    """Reads the predictions of a JSON or JSON Lines file, or lists those of a folder of PNG files.

    Args:
        path: The file or folder. JSON holds a list of entries, JSON Lines one entry a line.

    Returns:
        At least one prediction, in the order of the file, or of the names.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: An entry is damaged or holds no run lengths, a PNG file has another name, or there is no
            prediction; the message names the line or file.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There are no predictions at {path}.")
    with paused_collection():
        predictions = list(_read_folder(path) if path.is_dir() else _read_entries(path))
    if not predictions:
        what = "PNG file (SENT_ID.png)" if path.is_dir() else "entry"
        raise ValueError(f"{path} has no prediction: it holds no {what}.")
    return predictions


def encode_mask(mask: Tensor) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask, bool `[H, W]`, as JSON can hold them."""
    runs = coco_mask.encode(np.asfortranarray(mask.cpu().numpy().view(np.uint8)))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def write_predictions(path: Path, results: Iterable[ExpressionResult], masks: Mapping[int, RunLengths]) -> None:
    """Writes JSON Lines that `read_predictions` reads.

    Args:
        path: The file.
        results: The expressions, in this order.
        masks: The run lengths of each, by `ExpressionResult.index`.
    """

    def write(target: Path) -> None:
        with target.open("w", encoding="ascii") as file:
            for one in results:
                ids = {name: getattr(one, name) for name in ("image_id", "ref_id", "sent_id", "expression")}
                file.write(json.dumps({**ids, "segmentation": masks[one.index]}) + "\n")

    write_atomically(path, write)


def _read_entries(path: Path) -> Iterator[PredictedMask]:
    with path.open("rb") as file:
        start = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if start[:1] == b"[":
        for number, entry in enumerate(load_json(path)):
            yield _prediction(entry, (path, "entry", number))
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = (path, "line", number)
            text = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not text:
                continue
            try:
                entry = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{place(where)} is not JSON: {error}. A file of predictions is a JSON list of entries, or "
                    "has one entry a line."
                ) from error
            yield _prediction(entry, where)


def _prediction(entry: Any, where: Where) -> PredictedMask:
    numbers = {
        name: integer(entry, name, where)
        for name in ("sent_id", "ref_id", "image_id")
        if isinstance(entry, dict) and entry.get(name) is not None
    }
    if "sent_id" not in numbers and not ("ref_id" in numbers and "expression" in entry):
        what = (
            f"{kind(entry)}" if not isinstance(entry, dict) else "neither 'sent_id' nor 'ref_id' and 'expression'"
        )
        raise ValueError(f"{place(where)} names no expression: it has {what}")
    expression = "" if "sent_id" in numbers else string(entry, "expression", where)
    prediction = PredictedMask(MaskSource(), place(where), expression=expression, **numbers)
    where = (*where, f"({prediction.name})")
    if not isinstance(entry.get("segmentation"), dict):
        raise ValueError(
            f"{place(where)} must have COCO run lengths, a dictionary with 'size' and 'counts', as its "
            f"'segmentation'; it has {kind(entry.get('segmentation'))}"
        )
    return replace(prediction, content=read_mask(entry, where))


def _read_folder(folder: Path) -> Iterator[PredictedMask]:
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() != ".png" or path.name.startswith("."):
            continue
        match = _PNG_NAME.fullmatch(path.stem)
        if match is None or not (match["sent_id"] or match["ref_id"]):
            raise ValueError(
                f"{path} must be named SENT_ID.png, REF_ID_SENT_ID.png or REF_ID_EXPRESSION.png, so that its "
                "expression is known"
            )
        sent_id, ref_id = (None if match[name] is None else int(match[name]) for name in ("sent_id", "ref_id"))
        yield PredictedMask(path, str(path), sent_id, ref_id, expression=match["expression"] or "")


def _read_png(path: Path) -> Tensor:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        # Pillow raises many kinds of exception for damaged files.
        raise ValueError(f"{path} cannot be read: it is truncated, damaged, or no PNG file ({error})") from error
    if pixels.ndim == 3:
        if pixels.shape[2] in (2, 4) and (pixels[:, :, -1] == 255).all():
            pixels = pixels[:, :, :-1]  # opaque
        if (pixels != pixels[:, :, :1]).any():
            raise ValueError(f"{path} is no mask: it has colours ({pixels.shape[2]} channels that differ)")
        pixels = pixels[:, :, 0]
    inside = pixels != 0
    if not (~inside | (pixels == 255) | (pixels == 1)).all():
        values = ", ".join(str(value) for value in np.unique(pixels)[:_SHOWN_VALUES])
        raise ValueError(
            f"{path} is no mask: it has the values {values}, ...; a mask has 0 and 255 (or 1), probabilities must "
            "be cut at a threshold first"
        )
    return torch.from_numpy(inside)
