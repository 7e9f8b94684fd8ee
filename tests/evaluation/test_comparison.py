"""Two evaluations side by side: measures, intervals, and what cannot be compared."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmsa_fast.cli import main
from cmsa_fast.evaluation.comparison import compare
from cmsa_fast.evaluation.conventions import CONVENTIONS
from cmsa_fast.evaluation.evaluate import figures
from cmsa_fast.evaluation.examples import extremes
from cmsa_fast.evaluation.results import ExpressionResult, read_results, write_results


def evaluation(seed: int, images: int = 40, shift: float = 0.0) -> list[ExpressionResult]:
    """Three expressions for each image; the same true masks for every seed."""
    masks, random = np.random.default_rng(0), np.random.default_rng(seed)
    results = []
    for index in range(3 * images):
        true = int(masks.integers(50, 5000))
        share = float(np.clip(random.normal(0.6 + shift, 0.2), 0, 1))
        intersection = int(true * share)
        predicted = intersection + int(random.integers(0, 1000))
        results.append(
            ExpressionResult(
                index=index,
                image_id=index // 3,
                ref_id=index // 2,
                sent_id=index,
                expression=f'the "dog", {index}\nnext line – café',
                words=3,
                kind="",
                names_nothing=index % 7 == 0,
                height=80,
                width=100,
                intersection=intersection,
                predicted=predicted,
                true=true,
                share=true / 8000,
                iou=intersection / (predicted + true - intersection),
                convention="native",
            )
        )
    return results


def test_measures_are_those_of_the_evaluations() -> None:
    first, second = evaluation(1), evaluation(2)
    found = compare(first, second, resamples=10).measures
    for which, results in (("first", first), ("second", second)):
        for name, value in figures(results, CONVENTIONS["native"]).items():
            assert getattr(found[name], which) == pytest.approx(value, rel=1e-12)


def test_precision_follows_the_convention_at_a_threshold() -> None:
    tie = replace(evaluation(1)[0], intersection=5, predicted=5, true=10, iou=0.5)
    for convention, expected in (("native", 1.0), ("cris", 0.0)):
        one = [replace(tie, convention=convention)]
        found = compare(one, one, resamples=10).measures["precision@0.5"]
        assert (found.first, found.second) == (expected, expected)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_nothing_but_empty_masks_counts_as_the_convention_says(convention: str) -> None:
    value = CONVENTIONS[convention].empty_union_iou
    empty = {"intersection": 0, "predicted": 0, "true": 0, "iou": float(value)}
    one = [replace(result, **empty, convention=convention) for result in evaluation(1, images=2)]
    expected = figures(one, CONVENTIONS[convention])
    for name, measure in compare(one, one, resamples=10).measures.items():
        assert measure.first == measure.second == expected[name]


def test_equal_evaluations_do_not_differ() -> None:
    found = compare(evaluation(1), evaluation(1)[::-1], resamples=200)
    assert found.better == found.worse == 0
    assert not found.changed(5)
    for measure in found.measures.values():
        assert (measure.low, measure.difference, measure.high) == (0, 0, 0)


def test_a_clear_difference_is_sure_and_a_chance_one_is_not() -> None:
    clear = compare(evaluation(1), evaluation(2, shift=0.15), resamples=2000).measures["mean_iou"]
    assert 0 < clear.low < clear.difference < clear.high
    chance = compare(evaluation(1), evaluation(2), resamples=2000).measures["mean_iou"]
    assert chance.low < 0 < chance.high


def test_the_interval_is_the_literal_bootstrap_over_images() -> None:
    first, second = evaluation(1, images=9), evaluation(2, images=9)
    found = compare(first, second, resamples=20_000, seed=5).measures["mean_iou"]
    random = np.random.default_rng(77)
    changes = np.array([two.iou - one.iou for one, two in zip(first, second, strict=True)])
    changes = changes.reshape(9, 3)
    means = [changes[random.integers(0, 9, 9)].mean() for _ in range(20_000)]
    low, high = np.quantile(means, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.high == pytest.approx(high, abs=0.05 * (high - low))


def test_the_same_seed_gives_the_same_interval() -> None:
    first, second = evaluation(1), evaluation(2)
    assert compare(first, second, seed=3).measures == compare(first, second, seed=3).measures
    assert compare(first, second, seed=3).measures != compare(first, second, seed=4).measures


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Differences of images drawn around 0: 90 % intervals hold 0 in about 90 % of the cases."""
    covered = 0
    for case in range(200):
        found = compare(
            evaluation(2 * case), evaluation(2 * case + 1), resamples=300, confidence=0.9
        ).measures["mean_iou"]
        covered += found.low <= 0 <= found.high
    assert 0.83 < covered / 200 < 0.96


def test_what_cannot_be_compared_is_said() -> None:
    results = evaluation(1, images=2)
    with pytest.raises(ValueError, match="2 are in one alone; the second lacks sent_id 4"):
        compare(results, results[:4])
    with pytest.raises(ValueError, match="first lacks sent_id 0"):
        compare(results[1:], results)
    with pytest.raises(ValueError, match="has sent_id 5 .* twice"):
        compare([*results, results[5]], results)
    other = [replace(results[0], true=results[0].true + 1), *results[1:]]
    with pytest.raises(ValueError, match="true mask of sent_id 0 has"):
        compare(results, other)
    for options, message in (
        ({"resamples": 0}, "resamples must be at least 1"),
        ({"confidence": 1.0}, "confidence must be above 0 and below 1"),
        ({"seed": -1}, "seed must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(results, results, **options)  # type: ignore[arg-type]


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    results = evaluation(1)
    write_results(tmp_path / "sentences.csv", results)
    assert read_results(tmp_path / "sentences.csv") == results
    text = (tmp_path / "sentences.csv").read_bytes()
    (tmp_path / "saved.csv").write_bytes(b"\xef\xbb\xbf" + text)
    assert read_results(tmp_path / "saved.csv") == results


def test_half_a_surrogate_pair_loses_no_evaluation(tmp_path: Path) -> None:
    odd = [replace(evaluation(1)[0], expression="dog \ud83d left")]
    write_results(tmp_path / "sentences.csv", odd)
    (found,) = read_results(tmp_path / "sentences.csv")
    assert found == replace(odd[0], expression="dog \\ud83d left")


DAMAGE = {
    "no column": (
        lambda text: text.replace("intersection", "inter", 1),
        "no column 'intersection'",
    ),
    "no number": (
        lambda text: text.replace(",80,100,", ",80,wide,", 1),
        "width must be of type int",
    ),
    "cut short": (lambda text: text[: len(text) // 2], "must be of type"),
    "no row": (lambda text: text.splitlines()[0], "has no expression"),
    "iou": (lambda text: re.sub(r"0\.\d+,native", "nan,native", text, count=1), "iou must be from"),
    "share": (lambda text: re.sub(r",[\d.]+(,[\d.]+,native)", r",7\1", text, count=1), "got 7.0"),
    "truth": (
        lambda text: text.replace(",False,", ",no,", 1),
        "names_nothing must be of type bool; got 'no'",
    ),
    "rules": (lambda text: text.replace(",native,", ",naive,", 1), "convention must be one of"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    change, message = DAMAGE[damage]
    path = tmp_path / "sentences.csv"
    write_results(path, [replace(one, expression="dog") for one in evaluation(1)])
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_impossible_pixels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "sentences.csv"
    write_results(path, [replace(evaluation(1)[0], intersection=10**6)])
    with pytest.raises(ValueError, match="does not fit masks of"):
        read_results(path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name / "sentences.csv", evaluation(seed, shift=0.1 * seed))
    command = ["compare", f"{tmp_path}/a", f"{tmp_path}/b/sentences.csv", "--resamples", "100"]
    assert main([*command, "--out", f"{tmp_path}/c.json", "--expressions", "3"]) == 0
    shown = capsys.readouterr().out
    assert "overall IoU" in shown
    assert "120 expressions about 40 images" in shown
    assert shown.count("next line") == 3
    content = json.loads((tmp_path / "c.json").read_text())
    measure = content["measures"]["mean_iou"]
    assert measure["difference"] == pytest.approx(measure["second"] - measure["first"])
    assert len(content["changed"]) == content["better"] + content["worse"]
    assert main([*command, "--out", f"{tmp_path}/c.json"]) == 1
    assert "not overwritten" in capsys.readouterr().err
    assert main([*command, "--out", f"{tmp_path}/none/c.json"]) == 1
    assert f"there is no folder {tmp_path}/none." in capsys.readouterr().err
    assert main(["compare", f"{tmp_path}/a", f"{tmp_path}/nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_what_makes_a_difference_less_sure_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (evaluation(seed, images=1, shift=seed / 5) for seed in (0, 2))
    write_results(tmp_path / "a.csv", first)
    write_results(tmp_path / "b.csv", [replace(one, convention="cmsa") for one in second])
    command = ["compare", f"{tmp_path}/a.csv", f"{tmp_path}/b.csv", "--resamples", "50"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "different conventions, native and cmsa" in shown
    # One image: every draw is the same.
    assert not [line for line in shown.splitlines() if line.endswith("  *")]
    write_results(tmp_path / "b.csv", second)
    assert main(command) == 0
    assert "different conventions" not in capsys.readouterr().out


def test_extremes_share_no_expression() -> None:
    results = evaluation(1, images=2)
    worst, best = extremes(results, 2)
    ordered = sorted(results, key=lambda result: result.iou)
    assert worst == ordered[:2]
    assert best == ordered[:-3:-1]
    worst, best = extremes(results, 9)
    assert len(worst) == len(best) == 3
    assert not set(worst) & set(best)
    assert extremes(results[:1], 5) == ([], results[:1])
