"""The training loop: determinism, breaks at every step, divergence, and what stays on disk."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.refer_layout import small_refcoco
from support.small_training import (
    CONFIG,
    OPTIONS,
    RECIPE,
    SIZE,
    VOCABULARY,
    Listed,
    images,
    new_model,
    run,
)
from torch import Tensor, nn

import cmsa_fast.training.loop as training
from cmsa_fast.data import load
from cmsa_fast.data.batch import Collate, ImageBatchSampler
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.types import Sample
from cmsa_fast.data.vocabulary import Vocabulary
from cmsa_fast.models.checkpoint import STATE, WEIGHTS, ModelConfig, load_model
from cmsa_fast.training.loop import METRICS, StepBatches, learning_rate_factor, training_step


def same(first: Any, second: Any) -> bool:
    """Equal to the bit, through containers."""
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def state_of(folder: Path) -> dict[str, Any]:
    state = torch.load(folder / STATE, weights_only=True)
    del state["seconds"]
    return state


def lines_of(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


class Breaking(Collate):
    """Ctrl-C when the batch of number `at` is asked for."""

    def __init__(self, at: int, vocabulary: Vocabulary = VOCABULARY) -> None:
        super().__init__(vocabulary, SIZE)
        self.left = at

    def __call__(self, samples: list[Sample]) -> Any:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().__call__(samples)


class Failing(Collate):
    """Expressions that cannot be used, from the batch of number `at` on, `number` items long."""

    def __init__(self, at: int, number: int = 10**9) -> None:
        super().__init__(VOCABULARY, SIZE)
        self.place, self.at, self.number = 0, at, number

    def __call__(self, samples: list[Sample]) -> Any:
        self.place += 1
        if self.at < self.place <= self.at + self.number:
            raise ValueError("unusable")
        return super().__call__(samples)


class BrokenItem(Listed):
    """A data set in which Ctrl-C meets one reading."""

    def __getitem__(self, index: int) -> Sample:
        if index == 4:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_same_seed_same_weights_other_seed_others(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "same")
    assert same(state_of(whole), state_of(tmp_path / "same"))
    assert lines_of(whole) == lines_of(tmp_path / "same")
    run(tmp_path / "order", seed=1)
    assert not same(state_of(whole)["model"], state_of(tmp_path / "order")["model"])
    run(tmp_path / "start", model=new_model(1))
    assert not same(state_of(whole)["model"], state_of(tmp_path / "start")["model"])


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, num_workers=1)
    assert same(state_of(whole), state_of(tmp_path))
    assert lines_of(whole) == lines_of(tmp_path)


def test_lines_of_metrics(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 13]
    assert all(
        list(row) == ["step", "loss", "iou", "learning_rate", "seconds"] and row["seconds"] > 0
        for row in rows
    )
    last = RECIPE.learning_rate * (1 - 9 / 10) ** RECIPE.power
    assert rows[1]["learning_rate"] == pytest.approx(last)


@pytest.mark.parametrize("at", range(13))
def test_ctrl_c_at_any_step_and_going_on_is_as_without(
    whole: Path, tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, collate=Breaking(at), checkpoint_every=5)
    assert state_of(tmp_path)["step"] == at
    assert f"Stopped at step {at} of 13; --run-dir {tmp_path} --resume goes on." in caplog.text
    _, progress = run(tmp_path, model=new_model(7), resume=True, num_workers=int(at == 7))
    assert progress.step == 13
    assert same(state_of(whole), state_of(tmp_path))
    assert lines_of(whole) == lines_of(tmp_path)
    assert same(load_model(whole)[0].state_dict(), load_model(tmp_path)[0].state_dict())


def test_ctrl_c_in_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, BrokenItem(images().samples))
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATE, METRICS, WEIGHTS]


def test_ctrl_c_within_a_step_waits_for_its_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = torch.optim.Adam.step
    calls = 0

    def step(self: torch.optim.Adam, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGINT)
            [None for _ in range(10)]  # the interpreter runs handlers between its own steps
        return usual(self, *given)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert state_of(tmp_path)["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(tmp_path, model=new_model(7), resume=True)
    assert same(state_of(whole), state_of(tmp_path))


def test_a_break_without_a_word_loses_the_steps_since_the_checkpoint(
    whole: Path, tmp_path: Path
) -> None:
    class Killed(Breaking):
        def __call__(self, samples: list[Sample]) -> Any:
            if self.left == 0:
                raise MemoryError
            return super().__call__(samples)

    with pytest.raises(MemoryError):
        run(tmp_path, collate=Killed(12), checkpoint_every=7)
    assert state_of(tmp_path)["step"] == 7
    assert [row["step"] for row in lines_of(tmp_path)] == [10]
    with (tmp_path / METRICS).open("a") as lines:
        lines.write('{"step": 1')  # cut off
    run(tmp_path, model=new_model(7), resume=True)
    assert same(state_of(whole), state_of(tmp_path))
    assert lines_of(whole) == lines_of(tmp_path)


def test_a_finished_run_resumed_stays_as_it_is(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model, progress = run(tmp_path, model=new_model(7), resume=True)
    assert progress.step == 13
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert same(model.state_dict(), state_of(whole)["model"])


def test_going_on_in_the_middle_of_an_epoch_of_refer_data(tmp_path: Path) -> None:
    data = load("refer", small_refcoco(tmp_path / "data").write(), "train")
    words = Vocabulary.from_expressions(data.expressions())
    options = {**OPTIONS, "vocabulary_size": len(words)}
    config = ModelConfig("cmsa", options, words.tokens, SIZE, 20)
    recipe = replace(RECIPE, steps=5, images_per_step=1)  # epochs of two steps

    def go(name: str, **given: Any) -> None:
        torch.manual_seed(0)
        model, folder = config.build(), tmp_path / name
        given.setdefault("collate", Collate(words, SIZE))
        run(folder, data, recipe=recipe, model=model, config=config, **given)

    go("whole")
    with pytest.raises(KeyboardInterrupt):
        go("broken", collate=Breaking(3, words))
    go("broken", resume=True, num_workers=1)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "broken"))
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "broken")


def test_batches_of_steps_across_epochs() -> None:
    ids = [0, 0, 1, 2, 2, 2, 3]

    def batches(start: int, steps: int) -> list[list[int]]:
        return list(StepBatches(ImageBatchSampler(ids, 3, 1, seed=5), start, steps))

    expected = []
    sampler = ImageBatchSampler(ids, 3, 1, seed=5)
    for epoch in range(4):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert [len(batch) for batch in expected] == [3, 1] * 4
    for start in range(8):
        assert batches(start, 7) == expected[start:7]
        steps = StepBatches(sampler, start, 8)
        assert len(steps) == 8 - start == len(list(steps))
    assert {frozenset(one) for one in expected[::2]} != {frozenset(expected[0])}


def test_learning_rate_by_hand() -> None:
    recipe = replace(RECIPE, steps=6, warmup_steps=2, power=2.0)
    factors = [learning_rate_factor(step, recipe) for step in range(8)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 9 / 16, 4 / 16, 1 / 16, 0.0, 0.0])
    straight = replace(recipe, warmup_steps=0, power=1.0, steps=4)
    assert [learning_rate_factor(step, straight) for step in range(4)] == [1.0, 0.75, 0.5, 0.25]
    only_up = replace(recipe, warmup_steps=4, steps=2)
    assert [learning_rate_factor(step, only_up) for step in range(3)] == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("at", [1, 4])
def test_steps_without_a_usable_expression_change_nothing(tmp_path: Path, at: int) -> None:
    recipe = replace(RECIPE, steps=at + 4)  # fewer than two passes
    errors = ErrorCollector(strict=False)
    failing = {"recipe": recipe, "collate": Failing(at), "problems": errors}
    _, progress = run(tmp_path / "failing", **failing)
    assert progress.step == recipe.steps
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", recipe=recipe, collate=Breaking(at))
    found, expected = state_of(tmp_path / "failing"), state_of(tmp_path / "broken")
    assert (found["step"], expected["step"]) == (at + 4, at)
    assert same(found["model"], expected["model"])
    assert same(found["optimizer"]["state"], expected["optimizer"]["state"])
    assert set(errors.messages) == {"unusable"}
    assert errors.count <= 8  # an item is told once


def test_training_goes_on_after_a_first_step_without_a_usable_expression(
    whole: Path, tmp_path: Path
) -> None:
    errors = ErrorCollector(strict=False)
    # The batch, and each of its two items by itself.
    _, progress = run(tmp_path, collate=Failing(0, 3), errors=errors)
    assert progress.step == 13
    assert errors.messages == ["unusable"] * 2
    rows, usual = lines_of(tmp_path), lines_of(whole)
    assert [row["step"] for row in rows] == [10, 13]
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in usual]
    steps = {int(one["step"]) for one in state_of(tmp_path)["optimizer"]["state"].values()}
    assert steps == {12}


def test_data_of_which_nothing_can_be_used_end_the_training(tmp_path: Path) -> None:
    for name, steps, enough in (("short", 4, 4), ("long", 99, 6)):  # a pass is three steps
        model, recipe = new_model(), replace(RECIPE, steps=steps)
        given = {"model": model, "recipe": recipe, "collate": Failing(0)}
        with pytest.raises(ValueError, match=f"No expression of {enough} steps in a row"):
            run(tmp_path / name, errors=ErrorCollector(strict=False), **given)
        assert same(model.state_dict(), new_model().state_dict())
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [METRICS]


class Diverging(nn.Module):
    """Logits, or a gradient, that stop being numbers after some steps."""

    def __init__(self, kind: str, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.kind = kind
        self.left = after

    def forward(self, images: Tensor, words: Tensor, mask: Tensor, index: Tensor) -> Tensor:
        self.left -= 1
        logits = self.weight * images[index, :1]
        if self.left >= 0:
            return logits
        if self.kind == "loss":
            return logits * float("nan")
        return logits + (self.weight - self.weight).sqrt()  # 0, with an infinite slope


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_divergence_leaves_the_files(tmp_path: Path, kind: str) -> None:
    model = Diverging(kind, 6)
    with pytest.raises(FloatingPointError, match=f"(?i){kind}.*lower learning_rate"):
        run(tmp_path, model=model, checkpoint_every=5)
    state = state_of(tmp_path)
    assert state["step"] == 5
    assert bool(model.weight.isfinite())
    assert bool(state["model"]["weight"].isfinite())
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATE, METRICS, WEIGHTS]


def test_a_step_of_no_finite_loss_changes_nothing() -> None:
    model = Diverging("loss", 1)
    optimizer = torch.optim.Adam(model.parameters())
    batch = Collate(VOCABULARY, SIZE)([images()[0]])
    loss, iou = training_step(model, optimizer, batch, 1.0)
    assert loss.isfinite()
    assert 0 <= float(iou) <= 1
    before = model.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="loss became nan"):
        training_step(model, optimizer, batch, 1.0)
    assert torch.equal(model.weight, before)


def test_iou_of_a_step_by_hand() -> None:
    class Fixed(Diverging):
        def forward(self, images: Tensor, words: Tensor, mask: Tensor, index: Tensor) -> Tensor:
            sides = torch.ones(len(index), 1, SIZE, SIZE)
            sides[..., SIZE // 2 :] = -1
            return self.weight * sides

    sample = images()[0]
    square = replace(
        sample,
        image=torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),
        mask=torch.zeros(SIZE, SIZE, dtype=torch.bool),
    )
    square.mask[: SIZE // 2] = True
    model = Fixed("loss", 9)
    batch = Collate(VOCABULARY, SIZE)([square])
    _, iou = training_step(model, torch.optim.SGD(model.parameters(), lr=0.1), batch, 0.0)
    assert float(iou) == pytest.approx(1 / 3)


def test_resuming_with_other_words_data_or_model(tmp_path: Path) -> None:
    run(tmp_path, recipe=replace(RECIPE, steps=2))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    swapped = (*VOCABULARY.tokens[:-2], *VOCABULARY.tokens[:-3:-1])
    for given in (
        {"config": replace(CONFIG, tokens=swapped)},
        {"dataset": images(4)},
        {"config": replace(CONFIG, options={**OPTIONS, "fused_channels": 9})},
    ):
        with pytest.raises(ValueError, match="another model, vocabulary or number of expressions"):
            run(tmp_path, resume=True, **given)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_resuming_with_another_backend_is_fine(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, collate=Breaking(1), recipe=replace(RECIPE, steps=2))
    config = replace(CONFIG, options={**OPTIONS, "backend": "reference"})
    _, progress = run(tmp_path, resume=True, config=config, recipe=replace(RECIPE, steps=2))
    assert progress.step == 2


def test_resuming_without_or_with_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from"):
        run(tmp_path / "none", resume=True)
    run(tmp_path, recipe=replace(RECIPE, steps=2))
    state = torch.load(tmp_path / STATE, weights_only=True)
    for name in ("optimizer", "seconds", "losses"):
        torch.save({key: state[key] for key in state if key != name}, tmp_path / STATE)
        with pytest.raises(ValueError, match=f"does not fit this model: '{name}'"):
            run(tmp_path, resume=True)
    torch.save(state, tmp_path / STATE)
    for text in ("no json\n", "{}\n", "[]\n"):
        (tmp_path / METRICS).write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.jsonl must hold .* damaged"):
            run(tmp_path, resume=True)
        assert (tmp_path / METRICS).read_text() == text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_items_come_as_they_are(tmp_path: Path, num_workers: int) -> None:
    data = images()
    data.samples = [replace(one, expression=" ") for one in data.samples]
    with pytest.raises(ValueError, match=r"^expression must have at least one word") as caught:
        run(tmp_path, data, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)
    assert "In the sample with image_id" in caught.value.__notes__[0]


def test_the_bar_shows_loss_iou_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "tqdm", _every_step(training.tqdm))
    run(tmp_path)
    shown = capsys.readouterr().err.split("\r")
    assert any(
        "train" in line and "12/13" in line and "<" in line and "loss=" in line and "IoU=" in line
        for line in shown
    )


def _every_step(usual: Any) -> Any:
    return lambda **given: usual(**given, mininterval=0, miniters=1)
