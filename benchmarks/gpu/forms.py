"""The measured forms of the four operations, as tables of callables by name; inputs and operation counts.

To add a form of this library, add it to the table of its operation in OWN and its name to `plan.OWN`.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cmsa_fast.kernels import (
    cross_modal_attention,
    joint_attention,
    joint_attention_tail,
    level_tail,
    reference,
)

from . import peers
from .budget import Case, Function

Leaves = tuple[Tensor | None, ...]

_COORDINATES = 8  # coordinates of a place in the paper


def _only(plan: str) -> contextlib.AbstractContextManager[None]:
    """Make the separable kernels use this plan, forward and backward, for all sizes."""
    from cmsa_fast.kernels.separable_attention.triton import plans

    return plans.only(plan)


_separable = functools.partial(cross_modal_attention, backend="triton")


def _level(backend: str) -> Function:
    """`level_tail` with the signature of the other operations; it has no mask."""

    def form(*parts: Tensor, image_index: Tensor | None = None) -> Tensor:
        return level_tail(*parts[:5], image_index=image_index, backend=backend)

    return form


# operation -> name -> form(*features, mask, **options)
OWN: dict[str, dict[str, Function]] = {
    "separable": {
        "tiled": _separable,
        "fused": _separable,
        "torch": functools.partial(cross_modal_attention, backend="torch"),
    },
    "joint": {
        "fused": functools.partial(joint_attention, backend="triton"),
        "torch": functools.partial(joint_attention, backend="torch"),
    },
    "tail": {
        "fused": functools.partial(joint_attention_tail, backend="triton"),
        "torch": functools.partial(joint_attention_tail, backend="torch"),
    },
    "level": {"fused": _level("triton"), "torch": _level("torch")},
}
# Contexts in which forms run, forward and backward.
WITHIN: dict[tuple[str, str], Callable[[], contextlib.AbstractContextManager[None]]] = {
    ("separable", "tiled"): functools.partial(_only, "tiled"),
    ("separable", "fused"): functools.partial(_only, "fused"),
}
NOT_CAPTURED = {"torch": "reads values on the host, so it cannot be captured"}

LITERAL: dict[str, Function] = {
    "separable": reference.cross_modal_attention,
    "joint": reference.token_attention,
    "tail": reference.joint_attention_tail,
    "level": _level("reference"),
}
FEATURES = {
    "separable": tuple(f"{part}_{name}" for part in ("place", "word") for name in ("query", "key", "value")),
    "joint": ("query", "key", "value"),
    "tail": ("attended", "weight", "bias"),
    "level": ("attended", "output_weight", "unit_visual", "mean_word", "coordinates"),
}


@dataclass(frozen=True)
class Form:
    """A form with its inputs and its context.

    Attributes:
        name: Name in OWN or `peers.PEERS`.
        own: Whether it is a form of this library.
        call: The function, called as call(*leaves, mask, **options).
        leaves: Makes the tensors that it takes from the features; not timed.
        gradients: Computes the features' gradients from those of the leaves, for the comparison.
        all_pairs: Whether it computes all pairs of tokens.
        within: Makes the context in which it runs, forward and backward.
    """

    name: str
    own: bool
    call: Function
    leaves: Callable[[Leaves], Leaves]
    gradients: Callable[[Sequence[Tensor], Leaves], list[Tensor]]
    all_pairs: bool
    within: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


def get(operation: str, name: str) -> Form:
    """The form of that name.

    Raises:
        KeyError: There is no such form.
    """
    if name in OWN[operation]:
        call = OWN[operation][name]
        within = WITHIN.get((operation, name), contextlib.nullcontext)
        return Form(name, True, call, lambda parts: parts, _unchanged, operation == "joint", within)
    peer = peers.PEERS[operation][name]
    if operation != "separable":
        return Form(name, False, peer, lambda parts: parts, _unchanged, operation == "joint")
    return Form(name, False, peer, _tokens, _sum_over_tokens, True)


def draw(
    operation: str,
    size: dict[str, int],
    dtype: torch.dtype,
    device: str,
    *,
    seed: int = 0,
    spread: float = 1.0,
    masked: bool = False,
    images: int | None = None,
) -> Case:
    """A case of normally distributed features whose logits have a standard deviation of about `spread` squared.

    Small cases are drawn on the CPU, so that they are the same on every device.

    Args:
        operation: One of OWN.
        size: One of `cases`.
        dtype: The features are exact in this dtype.
        device: Device of the case.
        seed: Seed of the random numbers.
        spread: Square root of the standard deviation of the logits.
        masked: Whether some words (or keys) are padded.
        images: Number of images that the expressions share; None for one image each.
    """
    where = device if _elements(operation, size) > 2**22 else "cpu"
    generator = torch.Generator(where).manual_seed(seed)

    def normal(*shape: int, times: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, device=where)
        return (values * times).to(dtype).to(device)

    batch, width = size["batch"], size["width"]
    mask = None
    if operation == "tail":
        places, words, channels = size["places"], size["words"], size["channels"]
        attended = normal(batch, places, words, width, times=spread)
        weight = normal(channels, width, times=width**-0.5)
        features: Leaves = (attended, weight, normal(channels))
        mask = _padding(batch, words).to(device) if masked else None
        return Case(features, mask, normal(batch, places, channels), {"relu": True})
    if operation == "level":
        places, visual, language = size["places"], size["visual"], size["language"]
        channels = visual + language + _COORDINATES
        features = (
            normal(batch, places, width, times=spread),
            normal(channels, width, times=width**-0.5),
            normal(images or batch, visual, places, times=visual**-0.5).mT,
            normal(batch, language, times=language**-0.5),
            normal(_COORDINATES, places),
        )
        index = _images(images, batch, generator)
        grad = normal(batch, channels, places)
        return Case(features, None, grad, {"image_index": index}).to(device)
    if operation == "joint":
        times = spread * width**-0.25
        counts = (size["queries"], size["keys"], size["keys"])
        features = tuple(
            normal(batch, count, width, times=times if index < 2 else 1.0) for index, count in enumerate(counts)
        )
        mask = _padding(batch, size["keys"]).to(device) if masked else None
        return Case(features, mask, normal(batch, size["queries"], width), {"scale": 1.0})
    # A token is a sum of two parts, so a logit is a sum of four products.
    times = spread * (4 * width) ** -0.25
    parts = [(images or batch, size["places"])] * 3 + [(batch, size["words"])] * 3
    features = tuple(
        normal(*shape, width, times=1.0 if index % 3 == 2 else times) for index, shape in enumerate(parts)
    )
    index = _images(images, batch, generator)
    mask = _padding(batch, size["words"]).to(device) if masked else None
    grad = normal(batch, size["places"], width)
    return Case(features, mask, grad, {"image_index": index}).to(device)


def work(operation: str, size: dict[str, int], part: str, all_pairs: bool) -> float:
    """FLOP of the matrix products: two forward, five backward (with the logits recomputed), or both.

    Further recomputation is not counted. The joint tail has one product forward and three backward, the level tail
    one and two.
    """
    batch, width = size["batch"], size["width"]
    counts = {"forward": 2, "backward": 5, "forward + backward": 7}
    if operation == "tail":
        counts = {"forward": 1, "backward": 3, "forward + backward": 4}
        product = size["places"] * size["words"] * size["channels"]
    elif operation == "level":
        counts = {"forward": 1, "backward": 2, "forward + backward": 3}
        product = size["places"] * (size["visual"] + size["language"] + _COORDINATES)
    elif operation == "joint":
        product = size["queries"] * size["keys"]
    else:
        product = (size["places"] * (size["words"] if all_pairs else 1)) ** 2
    return 2.0 * batch * product * width * counts[part]


def least_bytes(leaves: Leaves, grad: Tensor, part: str) -> float:
    """Bytes to read each input once and write each output once."""
    inputs = sum(leaf.nbytes for leaf in leaves if leaf is not None)
    counts = {
        "forward": inputs + grad.nbytes,
        "backward": 2 * inputs + grad.nbytes,
        "forward + backward": 2 * inputs + 2 * grad.nbytes,
    }
    return float(counts[part])


def _images(images: int | None, batch: int, generator: torch.Generator) -> Tensor | None:
    """The image of each expression; None if each has its own."""
    if images is None:
        return None
    return torch.randint(images, (batch,), generator=generator, device=generator.device)


def _elements(operation: str, size: dict[str, int]) -> int:
    rows = size["queries"] if operation == "joint" else size["places"]
    return size["batch"] * rows * size["width"] * (size["words"] if operation == "tail" else 1)


def _padding(batch: int, count: int) -> Tensor:
    """A mask, bool [B, count]: rows are padded at the front, in the middle, at the back, not at all, and so on."""
    mask = torch.ones(batch, count, dtype=torch.bool)
    if count >= 3:
        mask[0::4, : count // 3] = False
        mask[1::4, 1 : count // 2] = False
        mask[2::4, -(count // 3) :] = False
    return mask


def _tokens(features: Leaves) -> Leaves:
    """Query, key and value of all tokens, [B, P*N, d] each."""
    given = [part for part in features if part is not None]
    return tuple(
        (place[:, :, None] + word[:, None]).flatten(1, 2) for place, word in zip(given[:3], given[3:], strict=True)
    )


def _unchanged(gradients: Sequence[Tensor], features: Leaves) -> list[Tensor]:
    return list(gradients)


def _sum_over_tokens(gradients: Sequence[Tensor], features: Leaves) -> list[Tensor]:
    """The gradients of the six parts as sums of the tokens' gradients."""
    place, word = cast("tuple[Tensor, ...]", features)[0::3]
    pairs = [part.unflatten(1, (place.shape[1], word.shape[1])).float() for part in gradients]
    return [part.sum(2) for part in pairs] + [part.sum(1) for part in pairs]
