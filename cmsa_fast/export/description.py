"""Description of an exported program: how to prepare its inputs and to read its output without this library."""

from __future__ import annotations

from typing import Any

from ..data.vocabulary import Vocabulary
from ..models.checkpoint import ModelConfig

_FORMAT = "cmsa_fast-export/1"


def describe(config: ModelConfig, file: str, kind: str, **check: float) -> dict[str, Any]:
    """The content of the JSON file beside a program.

    Args:
        config: Of the exported model.
        file: Name of the program's file.
        kind: "torch-export" or "onnx".
        check: What `cmsa_fast.export.check.compare` found.
    """
    size = config.size
    return {
        "format": _FORMAT,
        "file": file,
        "kind": kind,
        "model": config.name,
        "inputs": {
            "images": {
                "dtype": "float32",
                "shape": ["images", 3, size, size],
                "content": "RGB in [0, 1], prepared as under image; mean and deviation are in the program",
            },
            "words": {
                "dtype": "int64",
                "shape": ["expressions", "words"],
                "content": "word ids, prepared as under expression; shorter expressions are padded with pad_id",
            },
            "word_mask": {
                "dtype": "bool",
                "shape": ["expressions", "words"],
                "content": "true where a word is real; every expression has a real word",
            },
            "image_index": {
                "dtype": "int64",
                "shape": ["expressions"],
                "content": "the image of each expression, from 0; an image is encoded once for all of them",
            },
        },
        "outputs": {"logits": {"dtype": "float32", "shape": ["expressions", size, size]}},
        "image": {
            "size": size,
            "steps": [
                "decode to 8-bit RGB, transparent pixels over white, and rotate upright as the EXIF tag states",
                "scale the longer side to size and the other side in proportion, rounded to the nearest pixel and "
                "at least 1: bilinear, with antialiasing, in floating point (Pillow's BILINEAR in mode F)",
                "divide by 255 and clip to [0, 1]",
                "centre in a square of zeros: top = (size - height) // 2, left = (size - width) // 2",
            ],
        },
        "expression": {
            "max_words": config.max_words,
            "pad_id": Vocabulary.PAD_ID,
            "unknown_id": Vocabulary.UNKNOWN_ID,
            "steps": [
                "replace line breaks by spaces and normalise to Unicode NFC",
                r"split at the regular expression (\W+), Unicode, and keep the separators",
                "strip whitespace, convert to lower case, drop empty parts, drop a final '.'",
                "the id of a word is its position in vocabulary (the last one if it is repeated), or unknown_id",
                "keep the first max_words ids",
            ],
        },
        "mask": {
            "threshold": 0.5,
            "steps": [
                "probability = 1 / (1 + exp(-logits))",
                "cut the padding off: rows from top, columns from left, as many as the scaled image has",
                "resize to the image's own size, bilinear with antialiasing, and clip to [0, 1]",
                "the mask is where the probability is above threshold",
            ],
        },
        "check": {"against": "the model in PyTorch, on random inputs", **check},
        "vocabulary": list(config.tokens),
    }
