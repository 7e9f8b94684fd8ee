"""The measured forms of the operations, as tables of callables by name; inputs and operation counts."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from cmsa_fast.kernels import (
    cross_modal_attention,
    joint_attention,
    joint_attention_tail,
    level_tail,
    reference,
)
from cmsa_fast.nn import CMSA

from . import peers
from .budget import Case, Function

Leaves = tuple[Tensor | None, ...]

_COORDINATES = 8  # coordinates of a place in the paper
_VOCABULARY = 12112  # words in the list of the paper's code
_WEIGHTS = ("query.weight", "key.weight", "value.weight", "output.weight")
_FLOOR = 2.0**-60


def _projection(backend: str) -> Function:
    """`level_tail` with the signature of the other operations; it has no mask."""

    def form(*parts: Tensor, image_index: Tensor | None = None) -> Tensor:
        return level_tail(*parts[:5], image_index=image_index, backend=backend)

    return form


def _level(backend: str) -> Function:
    """The module `CMSA` as a function of its inputs and its weights."""

    def form(visual: Tensor, words: Tensor, *rest: Tensor) -> Tensor:
        *weights, mask = rest
        module = _cmsa(visual.shape[1], words.shape[2], len(weights[0]), backend)
        return functional_call(module, dict(zip(_WEIGHTS, weights, strict=True)), (visual, words, mask))

    return form


@functools.cache
def _cmsa(visual: int, language: int, width: int, backend: str) -> CMSA:
    with torch.device("meta"):
        return CMSA(visual, language, width, backend=backend)


def _model(backend: str) -> Function:
    """A folded model as a function of images, without gradients."""

    def form(images: Tensor, mask: None, *, words: Tensor, layers: int) -> Tensor:
        return _folded(layers, backend, images.dtype, images.device)(images, words)

    return form


@functools.lru_cache(maxsize=4)
def _folded(layers: int, backend: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from cmsa_fast.models.cmsa import CMSAModel
    from cmsa_fast.models.folded_cmsa import FoldedCMSAModel

    torch.manual_seed(0)
    with device:
        model = CMSAModel(_VOCABULARY, backbone=f"resnet{layers}", backend=backend)
    return FoldedCMSAModel(model.to(dtype).eval())


def _own(form: Callable[[str], Function]) -> dict[str, Function]:
    return {name: form(name) for name in ("triton", "torch")}


# operation -> name -> form(*features, mask, **options)
OWN: dict[str, dict[str, Function]] = {
    "separable": _own(lambda name: functools.partial(cross_modal_attention, backend=name)),
    "joint": _own(lambda name: functools.partial(joint_attention, backend=name)),
    "tail": _own(lambda name: functools.partial(joint_attention_tail, backend=name)),
    "projection": _own(_projection),
    "level": _own(_level),
    "model": _own(_model),
}
LITERAL: dict[str, Function] = {
    "separable": reference.cross_modal_attention,
    "joint": reference.token_attention,
    "tail": reference.joint_attention_tail,
    "projection": _projection("reference"),
    "level": lambda visual, words, *rest: reference.cmsa(visual, words, rest[-1], *rest[:-1]),
}
FEATURES = {
    "separable": tuple(f"{part}_{name}" for part in ("place", "word") for name in ("query", "key", "value")),
    "joint": ("query", "key", "value"),
    "tail": ("attended", "weight", "bias"),
    "projection": ("attended", "output_weight", "unit_visual", "mean_word", "coordinates"),
    "level": ("visual", "words", *_WEIGHTS),
    "model": ("images",),
}


@dataclass(frozen=True)
class Form:
    """A form and the inputs that it takes.

    Attributes:
        name: Name in OWN or `peers.PEERS`.
        own: Whether it is a form of this library.
        call: The function, called as call(*leaves, mask, **options).
        leaves: Makes the tensors that it takes from the features; not timed.
        gradients: Computes the features' gradients from those of the leaves, for the comparison.
        all_pairs: Whether it computes all pairs of tokens.
    """

    name: str
    own: bool
    call: Function
    leaves: Callable[[Leaves], Leaves]
    gradients: Callable[[Sequence[Tensor], Leaves], list[Tensor]]
    all_pairs: bool


def get(operation: str, name: str) -> Form:
    """The form of that name.

    Raises:
        KeyError: There is no such form.
    """
    own = name in OWN[operation]
    call = OWN[operation][name] if own else peers.PEERS[operation][name]
    if own or operation != "separable":
        return Form(name, own, call, lambda parts: parts, _unchanged, operation == "joint")
    return Form(name, False, call, _tokens, _sum_over_tokens, True)


def draw(
    operation: str,
    size: dict[str, int],
    dtype: torch.dtype,
    device: str,
    *,
    seed: int = 0,
    logits: float = 1.0,
    masked: bool = False,
) -> Case:
    """A case of normally distributed features.

    Small cases are drawn on the CPU, so that they are the same on every device.

    Args:
        operation: One of OWN.
        size: One of `cases`.
        dtype: The features are exact in this dtype.
        device: Device of the case.
        seed: Seed of the random numbers.
        logits: Standard deviation of the logits, about; that of the size comes first.
        masked: Whether some words (or keys) are padded; always if the size says so.
    """
    where = device if _elements(operation, size) > 2**22 else "cpu"
    generator = torch.Generator(where).manual_seed(seed)
    spread = math.sqrt(size.get("logits", logits))

    def normal(*shape: int, times: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, device=where)
        return (values * times).to(dtype).to(device)

    batch, width = size["batch"], size["width"]
    images = size.get("images", batch)
    options: dict[str, Any] = {}
    if "images" in size:
        options["image_index"] = (torch.arange(batch) * images // batch).to(device)
    mask = None
    if masked or size.get("masked"):
        mask = _padding(batch, size["keys" if operation == "joint" else "words"]).to(device)
    if operation == "tail":
        places, words, channels = size["places"], size["words"], size["channels"]
        features: Leaves = (
            normal(batch, places, words, width, times=spread),
            normal(channels, width, times=width**-0.5),
            normal(channels),
        )
        return Case(features, mask, normal(batch, places, channels), {"relu": True})
    if operation == "projection":
        places, visual, language = size["places"], size["visual"], size["language"]
        channels = visual + language + _COORDINATES
        features = (
            normal(batch, places, width, times=spread),
            normal(channels, width, times=width**-0.5),
            normal(images, visual, places, times=visual**-0.5).mT,
            normal(batch, language, times=language**-0.5),
            normal(_COORDINATES, places),
        )
        return Case(features, None, normal(batch, channels, places), options)
    if operation == "level":
        side, visual, language = math.isqrt(size["places"]), size["visual"], size["language"]
        channels = visual + language + _COORDINATES
        # As `CMSA` initialises its weights, for logits of deviation 1: a token has a squared length of 4.
        weights = (spread * (16 * width) ** -0.25,) * 2 + (0.5,)
        features = (
            normal(batch, visual, side, side),
            normal(batch, size["words"], language),
            *(normal(width, channels, times=times) for times in weights),
            normal(channels, width, times=2 * (channels * width) ** -0.5),
        )
        return Case(features, mask, normal(batch, channels, side, side))
    if operation == "model":
        words_of_model = torch.randint(_VOCABULARY, (batch, size["words"]), generator=generator, device=where)
        features = (normal(batch, 3, size["pixels"], size["pixels"]),)
        return Case(features, None, None, {"words": words_of_model.to(device), "layers": size["layers"]})
    if operation == "joint":
        times = spread * width**-0.25
        counts = (size["queries"], size["keys"], size["keys"])
        features = tuple(
            normal(batch, count, width, times=times if index < 2 else 1.0) for index, count in enumerate(counts)
        )
        return Case(features, mask, normal(batch, size["queries"], width), {"scale": 1.0})
    # A token is a sum of two parts, so a logit is a sum of four products.
    times = spread * (4 * width) ** -0.25
    parts = [(images, size["places"])] * 3 + [(batch, size["words"])] * 3
    features = tuple(
        normal(*shape, width, times=1.0 if index % 3 == 2 else times) for index, shape in enumerate(parts)
    )
    return Case(features, mask, normal(batch, size["places"], width), options)


def direct_share(case: Case) -> float:
    """The share of rows (expression, place, word) of a separable case whose factored sum is below the floor.

    The kernels compute such rows directly.
    """
    place_query, place_key, _, word_query = cast("tuple[Tensor, ...]", case.features)[:4]
    index = case.options.get("image_index", torch.arange(len(word_query)))
    below = rows = 0
    for number, image in enumerate(index.tolist()):
        key = place_key[image].float()
        key = key - key.mean(0)
        exp_place, exp_word = (
            (logits - logits.amax(1, keepdim=True)).exp()
            for logits in (place_query[image].float() @ key.T, word_query[number].float() @ key.T)
        )
        if case.mask is not None:
            exp_word = exp_word[case.mask[number]]
        total = exp_place @ exp_word.T
        below += int((total < _FLOOR).sum())
        rows += total.numel()
    return below / rows


def work(operation: str, size: dict[str, int], part: str, all_pairs: bool) -> float | None:
    """FLOP of the matrix products: two forward, five backward (with the logits recomputed), or both.

    Further recomputation is not counted. The joint tail has one product forward and three backward; a projection,
    those of a level too, one and two. None for a model, whose backbone is not counted.
    """
    if operation == "model":
        return None
    batch, width = size["batch"], size["width"]
    counts = {"forward": 2, "backward": 5, "forward + backward": 7}
    linear = {"forward": 1, "backward": 2, "forward + backward": 3}
    channels = size.get("visual", 0) + size.get("language", 0) + _COORDINATES
    more = 0
    if operation == "tail":
        counts = {"forward": 1, "backward": 3, "forward + backward": 4}
        product = size["places"] * size["words"] * size["channels"]
    elif operation == "projection":
        counts = linear
        product = size["places"] * channels
    elif operation == "joint":
        product = size["queries"] * size["keys"]
    else:
        product = (size["places"] * (size["words"] if all_pairs else 1)) ** 2
    if operation == "level":
        more = 3 * (size["places"] * size["visual"] + size["words"] * size["language"]) + size["places"] * channels
    return 2.0 * batch * width * (product * counts[part] + more * linear[part])


def least_bytes(leaves: Leaves, grad: Tensor | None, part: str) -> float | None:
    """Bytes to read each input once and write each output once; None for a model, whose weights are not inputs."""
    if grad is None:
        return None
    inputs = sum(leaf.nbytes for leaf in leaves if leaf is not None)
    counts = {
        "forward": inputs + grad.nbytes,
        "backward": 2 * inputs + grad.nbytes,
        "forward + backward": 2 * inputs + 2 * grad.nbytes,
    }
    return float(counts[part])


def _elements(operation: str, size: dict[str, int]) -> int:
    if operation == "model":
        return 0
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
    """The gradients of the six parts as sums of the tokens' gradients, in float32 or wider."""
    place, word = cast("tuple[Tensor, ...]", features)[0::3]
    wide = torch.promote_types(place.dtype, torch.float32)
    pairs = [part.unflatten(1, (place.shape[1], word.shape[1])).to(wide) for part in gradients]
    return [part.sum(2) for part in pairs] + [part.sum(1) for part in pairs]
