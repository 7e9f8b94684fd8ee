"""Synthetic scenes that runs are validated and evaluated on, and the groups their expressions are reported in."""

from ..data.scenes.dataset import ScenesDataset
from ..data.types import ReferringDataset

WORD_ORDER = "relation, word order decides"
NO_WORD_ORDER = "relation, any word order"

# The same scenes for every training seed, so that runs can be compared.
_EVALUATION_SEED = 0
_VALIDATION_SEED = 1
_EXPRESSIONS = 2


def evaluation_scenes(count: int, size: int) -> ScenesDataset:
    """The scenes for the evaluation of a run, two expressions each."""
    return _scenes(count, size, _EVALUATION_SEED)


def validation_scenes(expressions: int, size: int) -> ScenesDataset:
    """The scenes for validation during training; they are not among those of the evaluation."""
    return _scenes(max(1, expressions // _EXPRESSIONS), size, _VALIDATION_SEED)


def scene_labels(dataset: ReferringDataset) -> list[list[str]] | None:
    """The groups of each expression: its kind, and for relations whether word order decides. None: not scenes."""
    if not isinstance(dataset, ScenesDataset):
        return None
    labels = [[kind] for kind in dataset.kinds()]
    for index, kinds in enumerate(labels):
        if kinds == ["relation"]:
            kinds.append(WORD_ORDER if dataset.order_sensitive(index) else NO_WORD_ORDER)
    return labels


def _scenes(count: int, size: int, seed: int) -> ScenesDataset:
    return ScenesDataset(count, seed=seed, split="val", size=size, expressions_per_scene=_EXPRESSIONS)
