"""The public functions of the joint attention: argument checks, choice of backend, documentation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .. import reference
from ..validation import (
    autocast,
    automatic_backend,
    check_alike,
    check_backend,
    check_floating,
    check_mask,
    check_rows,
    check_triton,
    check_word_mask,
)
from . import eager as joint
from . import projection as joint_tail


def joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention of every token over every key: Eq. 2-3 of Ye et al., CVPR 2019, for any fusion.

    It is for tokens that are no sum of a place part and a word part (a nonlinear fusion, pooled keys), where
    `cross_modal_attention` does not apply. The paper has no 1/sqrt(d) scale, and so the default is 1.

    Args:
        query: [B, Tq, d].
        key: [B, Tk, d].
        value: [B, Tk, e]; the value width e may differ from d.
        key_mask: bool [B, Tk], True where a key may be attended to. What stands in the other keys and their
            values has no influence and gets gradient zero. None: all may.
        scale: the factor of every logit.
        backend: "reference" is the literal form with its [B, Tq, Tk] array; "torch" works in blocks of queries
            in plain PyTorch; "triton" the fused kernels; "auto" is "triton" for CUDA tensors in float32,
            bfloat16 or float16 where Triton is installed, else "torch".

    Returns:
        [B, Tq, e], in the inputs' dtype (under autocast in autocast's). All dtypes are float64, float32,
        bfloat16 or float16.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype, or scale is no number.
        ValueError: shapes or devices do not fit, a batch entry has no key to attend to, scale is not finite, or
            backend is unknown; or "triton" is asked for by name where it cannot run.
        ImportError: "triton" is asked for by name and not installed.
        RuntimeError: the gradient of "torch" or "triton" is differentiated again.
    """
    check_backend(backend)
    names = ("query", "key", "value")
    query, key, value = _cast(names, (query, key, value))
    for name, part in zip(names, (query, key, value), strict=True):
        _check_shape(name, part, "batch, tokens, channels")
    _check_size("key", key, "batch", 0, "query", query, 0)
    _check_size("key", key, "width", 2, "query", query, 2)
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            f"value must begin with the shape of key, {list(key.shape[:2])}; got {list(value.shape)}."
        )
    if key_mask is not None:
        check_mask("key_mask", key_mask, "batch, keys", key.shape[:2], "key", key.device)
        check_rows("key_mask must have a true key in every batch entry", "entries", key_mask)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number; got {type(scale).__name__}.")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got {scale}.")

    if backend == "auto":
        backend = automatic_backend((query, key, value))
    elif backend == "triton":
        check_triton(query)
    with torch.autocast(query.device.type, enabled=False):
        return _attention(backend)(query, key, value, key_mask, float(scale))


def joint_attention_tail(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    word_mask: Tensor | None = None,
    *,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The mean over words of the projected attended values: Eq. 4 of Ye et al., CVPR 2019, less its residual.

    result[b, p] = mean over real words n of act(attended[b, p, n] weight^T + bias). The projected tokens
    [B, P*N, C] are not held in memory (but by "reference"). The residual is the caller's to add.

    Args:
        attended: [B, P, N, d], the attended values of the tokens (place p, word n).
        weight: [C, d].
        bias: [C], or None.
        word_mask: bool [B, N], True where a word is real. What stands in the tokens of padded words has no
            influence and gets gradient zero. None: all are real.
        relu: whether act is ReLU; otherwise it is the identity.
        backend: as of `joint_attention`.

    Returns:
        [B, P, C], in the inputs' dtype (under autocast in autocast's). All dtypes are float64, float32,
        bfloat16 or float16.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices differ, an expression has no real word, or backend is unknown; or "triton"
            is asked for by name where it cannot run.
        ImportError: "triton" is asked for by name and not installed.
        RuntimeError: the gradient of "torch" or "triton" is differentiated again.
    """
    check_backend(backend)
    if bias is None:
        attended, weight = _cast(("attended", "weight"), (attended, weight))
    else:
        attended, weight, bias = _cast(("attended", "weight", "bias"), (attended, weight, bias))
    _check_shape("attended", attended, "batch, places, words, channels")
    if weight.ndim != 2 or len(weight) == 0 or weight.shape[1] != attended.shape[3]:
        raise ValueError(
            f"weight must have shape [channels, {attended.shape[3]}] with at least one channel; "
            f"got {list(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have shape [channels] = [{len(weight)}]; got {list(bias.shape)}."
        )
    if word_mask is not None:
        shape = (attended.shape[0], attended.shape[2])
        check_word_mask(word_mask, shape, "attended", attended.device)
    if not isinstance(relu, bool):
        raise TypeError(f"relu must be a bool; got {type(relu).__name__}.")

    if backend == "auto":
        backend = automatic_backend((attended, weight))
    elif backend == "triton":
        check_triton(attended)
    with torch.autocast(attended.device.type, enabled=False):
        return _tail(backend)(attended, weight, bias, word_mask, relu)


def _attention(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return reference.token_attention
    if backend == "triton":
        from . import ops as joint_ops

        return joint_ops.joint_attention
    return joint.joint_attention


def _tail(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return reference.joint_attention_tail
    if backend == "triton":
        from . import ops as joint_ops

        return joint_ops.joint_attention_tail
    return joint_tail.joint_attention_tail


def _cast(names: tuple[str, ...], features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Floating tensors of one dtype, once autocast has cast them, and one device."""
    for name, part in zip(names, features, strict=True):
        check_floating(name, part)
    features = autocast(*features)
    for name, part in zip(names, features, strict=True):
        check_alike(name, part, names[0], features[0])
    return features


def _check_shape(name: str, part: Tensor, axes: str) -> None:
    if part.ndim != axes.count(",") + 1 or 0 in part.shape[1:]:
        raise ValueError(
            f"{name} must have shape [{axes}] with at least one of each; got {list(part.shape)}."
        )


def _check_size(
    name: str, part: Tensor, what: str, axis: int, of_name: str, of: Tensor, of_axis: int
) -> None:
    if part.shape[axis] != of.shape[of_axis]:
        raise ValueError(
            f"{name} must have the {what} of {of_name}, {of.shape[of_axis]}; got {part.shape[axis]}."
        )
