"""Reference implementation: the equations of CMSA (Ye et al., CVPR 2019) as printed, over all pairs of tokens.

It materialises the [B, P*N, P*N] attention matrix, so its memory grows with the square of places times words.
Tests compare the other backends with it, and none of them imports it.
"""

import torch
from torch import Tensor


def token_attention(
    query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Softmax attention over tokens, by default without the 1/sqrt(d) scale (Eq. 3 has none).

    Args:
        query: [B, Tq, d].
        key: [B, Tk, d].
        value: [B, Tk, e].
        key_mask: bool [B, Tk], True where a key may be attended to. None: All keys may be.
        scale: Factor of every logit.

    Returns:
        The attended values, [B, Tq, e].
    """
    if key_mask is not None:
        key, value = (part.masked_fill(~key_mask[..., None], 0) for part in (key, value))
    logits = query @ key.mT * scale  # [B, Tq, Tk]
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, :], -torch.inf)
    return logits.softmax(-1) @ value


def joint_attention_tail(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    word_mask: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Eq. 4 without its residual: the mean over real words n of act(attended[b, p, n] weight^T + bias).

    Arguments as in `cmsa_fast.kernels.joint_attention_tail`; they are not checked.

    Returns:
        [B, P, C].
    """
    word_mask = _mask_or_all(word_mask, attended[:, 0])
    attended = attended.masked_fill(~word_mask[:, None, :, None], 0)
    projected = attended @ weight.T  # [B, P, N, C]
    if bias is not None:
        projected = projected + bias
    return _mean_over_real_words(projected.relu() if relu else projected, word_mask)


def cross_modal_attention(
    place_query: Tensor,
    place_key: Tensor,
    place_value: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_value: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """Eq. 2-3 over tokens q_pn = x_p + y_n (likewise keys and values), then the mean over real words.

    Arguments as in `cmsa_fast.kernels.cross_modal_attention`; they are not checked.

    Returns:
        [B, P, e], the mean over real words n of the attended values of tokens (p, n).
    """
    place_query, place_key, place_value = _per_expression(image_index, place_query, place_key, place_value)
    word_mask = _mask_or_all(word_mask, word_query)
    places, words = place_query.shape[1], word_query.shape[1]
    attended = token_attention(
        _tokens(place_query, word_query, word_mask),
        _tokens(place_key, word_key, word_mask),
        _tokens(place_value, word_value, word_mask),
        _token_mask(word_mask, places),
    )
    return _mean_over_real_words(attended.unflatten(1, (places, words)), word_mask)


def received_word_attention(
    place_query: Tensor,
    place_key: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """The attention each word n' receives: the softmax of Eq. 3 summed over p', averaged over p and real n.

    Returns:
        [B, N], summing to 1 over real words, 0 on padding.
    """
    weights, word_mask = _all_weights(place_query, place_key, word_query, word_key, word_mask, image_index)
    return _mean_over_real_words(weights.sum(-2), word_mask).mean(1)


def received_place_attention(
    place_query: Tensor,
    place_key: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None = None,
    *,
    image_index: Tensor | None = None,
) -> Tensor:
    """The attention each place p' receives: the softmax of Eq. 3 summed over n', averaged over p and real n.

    Returns:
        [B, P], summing to 1.
    """
    weights, word_mask = _all_weights(place_query, place_key, word_query, word_key, word_mask, image_index)
    return _mean_over_real_words(weights.sum(-1), word_mask).mean(1)


def _all_weights(
    place_query: Tensor,
    place_key: Tensor,
    word_query: Tensor,
    word_key: Tensor,
    word_mask: Tensor | None,
    image_index: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The softmax of Eq. 3, [B, P, N, P', N'], and the mask."""
    place_query, place_key = _per_expression(image_index, place_query, place_key)
    word_mask = _mask_or_all(word_mask, word_query)
    places, words = place_query.shape[1], word_query.shape[1]
    logits = _tokens(place_query, word_query, word_mask) @ _tokens(place_key, word_key, word_mask).mT
    logits = logits.masked_fill(~_token_mask(word_mask, places)[:, None, :], -torch.inf)
    return logits.softmax(-1).unflatten(2, (places, words)).unflatten(1, (places, words)), word_mask


def cmsa(
    visual: Tensor,
    words: Tensor,
    word_mask: Tensor | None,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    output_weight: Tensor,
) -> Tensor:
    """Eq. 1-4 as printed, with the multimodal feature F built in full.

    Eq. 1: f_pn = [v_p / |v_p|, e_n / |e_n|, s_p]. Eq. 2-3: attention of every f_pn over every f_p'n'. Eq. 4:
    the mean over words of W_vhat vhat_pn + f_pn.

    Args:
        visual: Visual features, [B, Cv, H, W].
        words: Word features, [B, N, Cl].
        word_mask: bool [B, N], True where a word is real; padded words are neither attended to nor averaged
            over. None: All are real.
        query_weight: [d, Cv+Cl+8], the paper's W_k (it writes k_pn for what is usually called the query).
        key_weight: [d, Cv+Cl+8], the paper's W_q.
        value_weight: [d, Cv+Cl+8], the paper's W_v.
        output_weight: [Cv+Cl+8, d], the paper's W_vhat.

    Returns:
        [B, Cv+Cl+8, H, W].
    """
    batch, _, height, width = visual.shape
    places, expression_length = height * width, words.shape[1]
    word_mask = _mask_or_all(word_mask, words)
    words = words.masked_fill(~word_mask[..., None], 0)

    unit_visual = _unit(visual.flatten(2).mT)  # [B, P, Cv]
    unit_words = _unit(words)  # [B, N, Cl]
    spatial = _spatial_features(height, width).to(visual)  # [P, 8]
    feature = torch.cat(
        [
            unit_visual[:, :, None].expand(-1, -1, expression_length, -1),
            unit_words[:, None].expand(-1, places, -1, -1),
            spatial[None, :, None].expand(batch, -1, expression_length, -1),
        ],
        dim=-1,
    )  # [B, P, N, C], Eq. 1
    tokens = feature.flatten(1, 2)
    attended = token_attention(
        tokens @ query_weight.T, tokens @ key_weight.T, tokens @ value_weight.T, _token_mask(word_mask, places)
    )
    updated = attended @ output_weight.T + tokens
    fused = _mean_over_real_words(updated.unflatten(1, (places, expression_length)), word_mask)
    return fused.mT.unflatten(2, (height, width))


def _unit(vectors: Tensor) -> Tensor:
    """Divide by the length, at least 1e-6 (1e-12 on the square in the published code): zero stays zero."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-6)


def _spatial_features(height: int, width: int) -> Tensor:
    """[H*W, 8] float64: [xmin, ymin, xmax, ymax, xctr, yctr, 1/W, 1/H] of each cell, row by row."""
    rows = []
    for y in range(height):
        for x in range(width):
            left, right = 2 * x / width - 1, 2 * (x + 1) / width - 1
            top, bottom = 2 * y / height - 1, 2 * (y + 1) / height - 1
            middle = ((left + right) / 2, (top + bottom) / 2)
            rows.append([left, top, right, bottom, *middle, 1 / width, 1 / height])
    return torch.tensor(rows, dtype=torch.float64)


def _per_expression(image_index: Tensor | None, *places: Tensor) -> tuple[Tensor, ...]:
    return places if image_index is None else tuple(part[image_index] for part in places)


def _mask_or_all(word_mask: Tensor | None, words: Tensor) -> Tensor:
    if word_mask is None:
        return torch.ones(words.shape[:2], dtype=torch.bool, device=words.device)
    return word_mask


def _tokens(places: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
    """[B, P, d] and [B, N, d] -> [B, P*N, d], place-major; padded words count as zero."""
    words = words.masked_fill(~word_mask[..., None], 0)
    return (places[:, :, None] + words[:, None]).flatten(1, 2)


def _token_mask(word_mask: Tensor, places: int) -> Tensor:
    return word_mask[:, None].expand(-1, places, -1).flatten(1, 2)


def _mean_over_real_words(tokens: Tensor, word_mask: Tensor) -> Tensor:
    """[B, P, N, e] -> [B, P, e]."""
    total = tokens.masked_fill(~word_mask[:, None, :, None], 0).sum(2)
    return total / word_mask.sum(1)[:, None, None]
