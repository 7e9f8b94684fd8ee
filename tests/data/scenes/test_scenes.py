"""Tests of `ScenesDataset`: items, determinism, rendering, mixture of expressions, errors."""

from __future__ import annotations

import hashlib
import math
import os
import pickle
import subprocess
import sys
from collections import Counter
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pytest
import torch

from cmsa_fast.data.scenes import dataset as scenes_module
from cmsa_fast.data.scenes.dataset import COLOURS, MIXTURE, SHAPES, WORDS, ScenesDataset
from cmsa_fast.data.scenes.generation import ORDER_SENSITIVE_FRACTION, RELATION_NEEDED_FRACTION
from cmsa_fast.data.scenes.grammar import Attribute, Form, Phrase, Relation
from cmsa_fast.data.scenes.grounding import Interpreter
from cmsa_fast.data.scenes.rendering import GAP, MAX_OBJECTS, MIN_OBJECTS, SceneObject, render
from cmsa_fast.data.types import ReferringDataset, Sample
from cmsa_fast.data.vocabulary import tokenize

SURVEYED = 1500


@pytest.fixture(scope="module")
def survey() -> ScenesDataset:
    return ScenesDataset(SURVEYED, seed=11)


@dataclass(frozen=True)
class Surveyed:
    """An item of the survey without its pixels."""

    form: Form
    layout: tuple[SceneObject, ...]
    text: str
    order_sensitive: bool  # of relations

    @property
    def kind(self) -> str:
        return self.form.kind

    def solved_by(self, phrase: Phrase) -> bool:
        return Interpreter(self.layout).refer(Attribute(phrase)) is not None


@pytest.fixture(scope="module")
def items(survey: ScenesDataset) -> list[Surveyed]:
    return [
        Surveyed(
            form := survey.form(index),
            survey.layout(index),
            text,
            form.kind == "relation" and survey.order_sensitive(index),
        )
        for index, text in enumerate(survey.expressions())
    ]


def one_object(shape: str, texture: str = "plain", turn: float = 0.0) -> SceneObject:
    return SceneObject(shape, "red", "large", texture, 0.5, 0.48, 0.3, turn, (214.0, 38.0, 38.0))


def same(first: Sample, second: Sample) -> bool:
    return (
        torch.equal(first.image, second.image)
        and torch.equal(first.mask, second.mask)
        and (first.expression, first.image_id, first.ref_id, first.sent_id, first.kind)
        == (second.expression, second.image_id, second.ref_id, second.sent_id, second.kind)
    )


class TestItems:
    def test_types_shapes_and_ids(self) -> None:
        dataset: ReferringDataset = ScenesDataset(5, size=67, expressions_per_scene=3)
        assert len(dataset) == 15
        items = [dataset[index] for index in range(15)]
        for index, item in enumerate(items):
            assert item.image.dtype == torch.uint8
            assert item.image.shape == (3, 67, 67)
            assert item.mask.dtype == torch.bool
            assert item.mask.shape == (67, 67)
            assert item.mask.any()
            assert item.sent_id == index
            assert item.image_id == index // 3
            assert item.kind in MIXTURE
        assert dataset.expressions() == [item.expression for item in items]
        assert dataset.image_ids() == [item.image_id for item in items]
        for item in items:
            for other in items:
                if item.image_id == other.image_id:
                    assert torch.equal(item.image, other.image)
                    assert (item.ref_id == other.ref_id) == torch.equal(item.mask, other.mask)
                else:
                    assert item.ref_id != other.ref_id
                    assert not torch.equal(item.image, other.image)

    def test_indexing_like_a_list(self) -> None:
        dataset = ScenesDataset(4)
        assert same(dataset[-3], dataset[13])
        assert len(list(dataset)) == 16  # type: ignore[call-overload]

    @pytest.mark.parametrize("count", [1, 7, 12])
    def test_expressions_of_a_scene_differ_and_are_spread_over_its_objects(self, count: int) -> None:
        dataset = ScenesDataset(15, seed=3, expressions_per_scene=count)
        for scene in range(15):
            items = range(scene * count, (scene + 1) * count)
            texts = {dataset.expressions()[i].removeprefix("the ") for i in items}
            assert len(texts) == count
            uses = Counter(dataset.target(i) for i in items)
            assert len(uses) >= min(count, len(dataset.layout(items[0]))) - 2

    def test_four_expressions_nearly_always_refer_to_four_objects(self, survey: ScenesDataset) -> None:
        targets = [{survey.target(4 * scene + slot) for slot in range(4)} for scene in range(300)]
        assert min(len(objects) for objects in targets) >= 3
        assert sum(len(objects) == 4 for objects in targets) >= 290


class TestDeterminism:
    def test_items_do_not_depend_on_access_order_or_number_of_scenes(self) -> None:
        long, short = ScenesDataset(90, seed=5), ScenesDataset(9, seed=5)
        backwards = {index: long[index] for index in reversed(range(len(short)))}
        scenes_module._scene.cache_clear()
        scenes_module._pixels.cache_clear()
        assert all(same(short[index], backwards[index]) for index in range(len(short)))

    def test_size_changes_only_the_pixels(self) -> None:
        small, large = ScenesDataset(20, size=64), ScenesDataset(20, size=193)
        assert small.expressions() == large.expressions()
        ratio = [large[i].mask.float().mean() / small[i].mask.float().mean() for i in range(80)]
        assert 0.8 < min(ratio) <= max(ratio) < 1.25

    def test_seeds_and_splits_give_different_scenes(self) -> None:
        sets = [
            ScenesDataset(30, seed=seed, split=split)
            for seed in (0, 1, 2**32, 2**200)
            for split in ("train", "val", "test")
        ]
        layouts = [dataset.layout(4 * scene) for dataset in sets for scene in range(30)]
        assert len(set(layouts)) == 12 * 30

    def test_another_process_renders_the_same(self) -> None:
        code = (
            "from cmsa_fast.data.scenes.dataset import ScenesDataset; import hashlib;"
            "d = ScenesDataset(6, seed=9, split='val');"
            "h = hashlib.sha256();"
            "[h.update(d[i].image.numpy().tobytes() + d[i].expression.encode()) for i in range(24)];"
        )
        variables: dict[str, Any] = {}
        exec(code, variables)
        process = subprocess.run(
            [sys.executable, "-c", code + "print(h.hexdigest())"],
            env={**os.environ, "PYTHONHASHSEED": "1"},
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
        )
        assert process.stdout.decode().strip() == variables["h"].hexdigest()

    def test_scenes_are_the_same_in_every_version(self) -> None:
        """Published results are comparable only while these scenes do not change."""
        dataset = ScenesDataset(200, seed=7, split="val", size=64)
        assert dataset.expressions()[:4] == [
            "the top small triangle",
            "left small triangle",
            "the green object",
            "the blue triangle",
        ]
        digest = hashlib.sha256()
        for index, text in enumerate(dataset.expressions()):
            objects = [astuple(item) for item in dataset.layout(index)]
            digest.update(repr((text, dataset.target(index), objects)).encode())
        assert digest.hexdigest() == DIGEST
        # Means, since sin and cos of NumPy may differ in the last bit between processors.
        images = [dataset[4 * scene].image.float().mean((1, 2)).tolist() for scene in range(4)]
        assert images == [pytest.approx(mean, abs=0.01) for mean in MEANS]
        assert [int(dataset[index].mask.sum()) for index in range(8)] == AREAS

    def test_pickle_is_small_and_equal(self) -> None:
        dataset = ScenesDataset(50, seed=2)
        first = [dataset[index] for index in range(40)]
        state = pickle.dumps(dataset)
        assert len(state) < 2000
        assert all(same(pickle.loads(state)[item.sent_id], item) for item in first)


DIGEST = "285427d034fdbfaa4c3522944c6c7a8cd83fe1d2000b4b7c73022754c2475125"
MEANS = [
    [117.955, 127.205, 129.657],
    [118.012, 121.352, 133.513],
    [128.721, 136.578, 135.398],
    [142.887, 127.074, 120.355],
]
AREAS = [78, 76, 138, 194, 240, 81, 91, 103]


class TestCaching:
    def test_image_is_rendered_once_for_its_expressions_and_never_for_lists(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rendered = []

        def count(*arguments: object) -> object:
            rendered.append(arguments)
            return render(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(scenes_module, "render", count)
        dataset = ScenesDataset(40, seed=12)
        lists = dataset.expressions(), dataset.image_ids(), dataset.kinds()
        assert [len(values) for values in lists] == [160, 160, 160]
        assert not rendered
        for index in range(160):
            dataset[index]
        assert len(rendered) == 40

    def test_changing_an_item_does_not_change_others(self) -> None:
        dataset = ScenesDataset(2)
        before = dataset[0].image.clone()
        dataset[0].image.zero_()
        dataset[0].mask.logical_not_()
        assert torch.equal(dataset[1].image, before)
        assert same(dataset[0], ScenesDataset(2)[0])


def analytic_area(shape: str) -> float:
    """Area of a shape of radius 1, from its corners."""
    fifth = math.sin(math.pi / 5)
    return {
        "circle": math.pi,
        "square": 1.7**2,
        "triangle": 3 * math.sqrt(3) * 0.6**2,
        "star": 5 * 1.22 * 0.55 * fifth,
        "cross": 2 * 2.1 * 0.74 - 0.74**2,
    }[shape]


class TestPixels:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("turn", [0.0, 0.2])
    def test_mask_has_the_area_and_the_centre_of_the_shape(self, shape: str, turn: float) -> None:
        size = 251
        _, labels = render([one_object(shape, turn=turn)], size, np.random.default_rng(0))
        assert labels.sum() / (0.3 * size) ** 2 == pytest.approx(analytic_area(shape), rel=0.01)
        rows, columns = np.nonzero(labels)
        assert columns.mean() + 0.5 == pytest.approx(0.5 * size, abs=0.6)
        assert rows.mean() + 0.5 == pytest.approx(0.48 * size, abs=0.6)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_mask_is_where_the_object_covers_half_a_pixel(self, shape: str) -> None:
        # Rendered 16 times finer, the fraction of fine pixels inside is the coverage.
        item, size, fine = one_object(shape, turn=0.15), 65, 16
        image, labels = render([item], size, np.random.default_rng(0))
        _, finer = render([item], size * fine, np.random.default_rng(0))
        coverage = finer.reshape(size, fine, size, fine).mean((1, 3))
        differs = (coverage >= 0.5) != labels.astype(bool)
        # The mask tests the pixel's centre, which equals half coverage except at a sharp corner.
        assert np.abs(coverage - 0.5)[differs].max(initial=0.0) < 0.26
        assert differs.sum() <= 12
        ground = np.median(image[:8].reshape(-1, 3).astype(float), axis=0)
        rim = (coverage > 0.3) & (coverage < 0.7)
        share = ((image - ground) @ (item.tone - ground)) / ((item.tone - ground) ** 2).sum()
        assert 0.3 < share[rim].mean() < 0.7, "the edge is not blended"

    @pytest.mark.parametrize("texture", ["striped", "dotted"])
    def test_textures_keep_the_mask_and_a_rim(self, texture: str) -> None:
        plain, labels = render([one_object("square")], 129, np.random.default_rng(1))
        image, same_labels = render([one_object("square", texture)], 129, np.random.default_rng(1))
        assert np.array_equal(labels, same_labels)
        dark = image[..., 0] < 160
        inside = labels.astype(bool)
        assert 0.15 < dark[inside].mean() < 0.6
        assert not (plain[..., 0] < 160)[inside].any()

    @pytest.mark.parametrize("size", [64, 101])
    def test_objects_are_apart_and_inside_the_image(self, size: int) -> None:
        dataset = ScenesDataset(60, seed=4, size=size)
        for scene in range(60):
            layout = dataset.layout(4 * scene)
            assert MIN_OBJECTS <= len(layout) <= MAX_OBJECTS
            for i, item in enumerate(layout):
                assert item.reach < min(item.x, item.y)
                assert max(item.x, item.y) < 1 - item.reach
                for other in layout[:i]:
                    distance = math.hypot(item.x - other.x, item.y - other.y)
                    assert distance - item.reach - other.reach > GAP - 1e-9

    def test_plain_objects_have_their_colour(self) -> None:
        dataset = ScenesDataset(60, seed=6)
        for index in range(0, 240, 3):
            item = dataset.layout(index)[dataset.target(index)]
            sample = dataset[index]
            if item.texture == "plain":
                median = sample.image[:, sample.mask].float().median(1).values
                assert (median - torch.tensor(COLOURS[item.colour])).abs().max() < 22

    def test_backgrounds_are_muted_and_differ(self) -> None:
        means = []
        for scene in range(40):
            image, labels = render([], 64, np.random.default_rng(scene))
            assert not labels.any()
            means.append(image.reshape(-1, 3).mean(0))
            assert np.ptp(means[-1]) < 70
        assert np.std(np.stack(means), 0).min() > 8


class TestMixture:
    def test_kinds_have_the_stated_probabilities(self, items: list[Surveyed]) -> None:
        kinds = Counter(item.kind for item in items)
        shares = {kind: kinds[kind] / len(items) for kind in MIXTURE}
        least = {"attribute": 0.30, "place": 0.25, "relation": 0.20, "ordinal": 0.10}
        for kind, share in shares.items():
            assert share >= least[kind]
            assert share == pytest.approx(MIXTURE[kind], abs=0.02)
        assert sum(MIXTURE.values()) == pytest.approx(1.0)

    def test_relations_need_their_words_and_their_order(self, items: list[Surveyed]) -> None:
        relations = [item for item in items if item.kind == "relation"]
        ordered = [item for item in relations if item.order_sensitive]
        assert ORDER_SENSITIVE_FRACTION - 0.03 < len(ordered) / len(relations) < 0.42
        beside = Counter(getattr(item.form, "relation", "") for item in ordered)["next to"]
        assert beside < 0.5 * len(ordered)
        ambiguous = [item for item in relations if not item.solved_by(item.form.target)]
        assert len(ambiguous) / len(relations) > RELATION_NEEDED_FRACTION - 0.03

    def test_places_and_ordinals_need_their_words(self, items: list[Surveyed]) -> None:
        for item in items:
            if item.kind in ("place", "ordinal"):
                assert not item.solved_by(item.form.target)

    def test_only_relations_are_order_sensitive(self, survey: ScenesDataset) -> None:
        for index in range(800):
            if survey.order_sensitive(index):
                assert isinstance(survey.form(index), Relation)

    def test_noun_alone_is_rarely_sufficient(self, items: list[Surveyed]) -> None:
        solved = sum(item.solved_by(Phrase((), item.form.target.noun)) for item in items)
        assert solved / len(items) < 0.01

    def test_words_are_exactly_those_of_the_grammar(self, items: list[Surveyed]) -> None:
        expressions = [item.text for item in items]
        assert {word for expression in expressions for word in expression.split()} == set(WORDS)
        assert 40 <= len(WORDS) <= 60
        assert list(WORDS) == sorted(WORDS)
        assert all(tokenize(expression) == expression.split() for expression in expressions)
        assert max(len(expression.split()) for expression in expressions) <= 14


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"scenes": 0}, "scenes must be at least 1, not 0"),
            ({"seed": -1}, "seed must be at least 0, not -1"),
            ({"size": 63}, "size must be at least 64, not 63"),
            ({"split": "validation"}, "split must be one of train, val, test, not 'validation'"),
            ({"expressions_per_scene": 0}, "expressions_per_scene must be between 1 and 12, not 0"),
            ({"expressions_per_scene": 13}, "between 1 and 12, not 13"),
        ],
    )
    def test_arguments_out_of_range(self, arguments: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ScenesDataset(**{"scenes": 2, **arguments})  # type: ignore[arg-type]

    @pytest.mark.parametrize("name", ["scenes", "seed", "size", "expressions_per_scene"])
    @pytest.mark.parametrize("value", [2.0, True])
    def test_arguments_of_another_type(self, name: str, value: object) -> None:
        with pytest.raises(TypeError, match=f"{name} must be an integer"):
            ScenesDataset(**{"scenes": 2, name: value})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("index", "error", "message"),
        [
            (8, IndexError, "index 8 is outside a data set of 8 items"),
            (-9, IndexError, "index -9 is outside a data set of 8 items"),
            (1.0, TypeError, "'float' object cannot be interpreted as an integer"),
            (slice(0, 2), TypeError, "'slice' object cannot be interpreted as an integer"),
        ],
    )
    def test_invalid_index(self, index: int, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            ScenesDataset(2)[index]
