"""Public functions of the joint attention: documentation, argument checks and choice of backend.

`unchecked_joint_attention` and `unchecked_joint_attention_tail` are the same functions without the checks, for
callers that have checked what the arguments are computed from (`cmsa_fast.nn`).
"""

import math
from collections.abc import Callable

from torch import Tensor

from .. import reference
from ..backends import autocast, check_backend, choose_backend, without_autocast
from ..validation import (
    check_features,
    check_leading_shape,
    check_mask,
    check_rows,
    check_shape,
    check_size,
    check_word_mask,
)


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

    Use it for tokens that are not the sum of a place part and a word part (a nonlinear fusion, pooled keys), where
    `cross_modal_attention` does not apply. The default scale is 1, because the paper has no 1/sqrt(d).

    Args:
        query: [B, Tq, d].
        key: [B, Tk, d].
        value: [B, Tk, e]; the value width e may differ from d.
        key_mask: bool [B, Tk], True where a key may be attended to. The other keys and their values, NaN
            included, have no influence and get gradient zero. None: All keys may be.
        scale: Factor of every logit.
        backend: "reference" is the literal form with its [B, Tq, Tk] array; "torch" works in blocks of queries
            in plain PyTorch; "triton" the fused kernels; "auto" is described in `cmsa_fast.kernels.backends`.

    Returns:
        [B, Tq, e], in the inputs' dtype (under autocast in autocast's). All dtypes are float64, float32,
        bfloat16 or float16.

    Raises:
        TypeError: An argument is no tensor or has the wrong dtype, or scale is no number.
        ValueError: Shapes or devices do not fit, scale is not finite, backend is unknown, or "triton" cannot run
            on the inputs; on the CPU also if a batch entry has no key to attend to, which on a GPU is an assertion
            of the device.
        ImportError: backend is "triton" and Triton is not installed.
        RuntimeError: The gradient of "torch" or "triton" is differentiated again.
    """
    check_backend(backend)
    features = {"query": query, "key": key, "value": value}
    check_features(features)
    for name, part in features.items():
        check_shape(name, part, "batch, tokens, channels")
    check_size("key", len(key), "batch", "query", len(query))
    check_size("key", key.shape[2], "width", "query", query.shape[2])
    check_leading_shape("value", value, "key", key)
    if key_mask is not None:
        check_mask("key_mask", key_mask, "batch, keys", key.shape[:2], "key", key.device)
        check_rows("key_mask must have a true key in every batch entry", "entries", key_mask)
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise TypeError(f"scale must be a number; got {type(scale).__name__}.")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite; got {scale}.")
    return unchecked_joint_attention(query, key, value, key_mask, scale=scale, backend=backend)


def unchecked_joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None = None,
    *,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:
    """`joint_attention` without argument checks."""
    query, key, value = autocast(query, key, value)
    attention = _attention(choose_backend(backend, query))
    with without_autocast(query.device):
        return attention(query, key, value, key_mask, float(scale))


def joint_attention_tail(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    word_mask: Tensor | None = None,
    *,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The mean over words of the projected attended values: Eq. 4 of Ye et al., CVPR 2019, without its residual.

    result[b, p] = mean over real words n of act(attended[b, p, n] weight^T + bias). Only "reference" holds the
    projected tokens [B, P*N, C] in memory. The caller adds the residual.

    Args:
        attended: [B, P, N, d], the attended values of the tokens (place p, word n).
        weight: [C, d].
        bias: [C], or None.
        word_mask: bool [B, N], True where a word is real. Tokens of padded words, NaN included, have no influence
            and get gradient zero. None: All are real.
        relu: Use ReLU as act instead of the identity.
        backend: As in `joint_attention`.

    Returns:
        [B, P, C], in the inputs' dtype (under autocast in autocast's). All dtypes are float64, float32,
        bfloat16 or float16.

    Raises:
        TypeError: An argument is no tensor or has the wrong dtype.
        ValueError: Shapes or devices do not fit, an expression has no real word, backend is unknown, or "triton"
            cannot run on the inputs.
        ImportError: backend is "triton" and Triton is not installed.
        RuntimeError: The gradient of "torch" or "triton" is differentiated again.
    """
    check_backend(backend)
    features = {"attended": attended, "weight": weight}
    check_features(features if bias is None else features | {"bias": bias})
    check_shape("attended", attended, "batch, places, words, channels")
    if weight.ndim != 2 or len(weight) == 0 or weight.shape[1] != attended.shape[3]:
        raise ValueError(
            f"weight must have shape [channels, {attended.shape[3]}] with at least one channel; "
            f"got {list(weight.shape)}."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape [channels] = [{len(weight)}]; got {list(bias.shape)}.")
    if word_mask is not None:
        shape = (attended.shape[0], attended.shape[2])
        check_word_mask(word_mask, shape, "attended", attended.device)
    if not isinstance(relu, bool):
        raise TypeError(f"relu must be a bool; got {type(relu).__name__}.")
    return unchecked_joint_attention_tail(attended, weight, bias, word_mask, relu=relu, backend=backend)


def unchecked_joint_attention_tail(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    word_mask: Tensor | None = None,
    *,
    relu: bool = False,
    backend: str = "auto",
) -> Tensor:
    """`joint_attention_tail` without argument checks."""
    if bias is None:
        attended, weight = autocast(attended, weight)
    else:
        attended, weight, bias = autocast(attended, weight, bias)
    tail = _tail(choose_backend(backend, attended))
    with without_autocast(attended.device):
        return tail(attended, weight, bias, word_mask, relu)


def _attention(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return reference.token_attention
    from . import ops

    return ops.joint_attention if backend == "triton" else ops.eager_joint_attention


def _tail(backend: str) -> Callable[..., Tensor]:
    if backend == "reference":
        return reference.joint_attention_tail
    from . import ops

    return ops.joint_attention_tail if backend == "triton" else ops.eager_joint_attention_tail
