"""The training loop: determinism, interruption and resuming, validation, divergence, files."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import CONFIG, OPTIONS, RECIPE, SIZE, VOCABULARY, images, new_model, run
from torch import Tensor, nn

import cmsa_fast.training.loop as training
from cmsa_fast.data.batch import Collate
from cmsa_fast.data.errors import ErrorCollector
from cmsa_fast.data.types import Sample
from cmsa_fast.models.checkpoint import CONFIG as CONFIG_FILE
from cmsa_fast.models.checkpoint import VOCABULARY as VOCABULARY_FILE
from cmsa_fast.models.checkpoint import WEIGHTS, load_model
from cmsa_fast.training.loop import LAST, METRICS, training_step
from cmsa_fast.training.state import STATE


def same(first: Any, second: Any) -> bool:
    """Bitwise equality, through containers."""
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


def assert_same_run(first: Path, second: Path) -> None:
    assert same(state_of(first), state_of(second))
    assert lines_of(first) == lines_of(second)
    assert sorted(path.name for path in first.iterdir()) == sorted(p.name for p in second.iterdir())
    for path in first.glob("*.safetensors"):
        weights = (load_model(one)[0].state_dict() for one in (path, second / path.name))
        assert same(*weights)


class Failing(Collate):
    """Fails for `number` calls from call number `at` on; KeyboardInterrupt simulates Ctrl-C."""

    def __init__(self, at: int, error: type[BaseException] = KeyboardInterrupt, number: int = 10**9) -> None:
        super().__init__(VOCABULARY, SIZE)
        self.calls = count()
        self.failing, self.error = range(at, at + number), error

    def __call__(self, samples: list[Sample]) -> Any:
        if next(self.calls) in self.failing:
            raise self.error("unusable")
        return super().__call__(samples)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_seed_decides_the_weights(whole: Path, tmp_path: Path) -> None:
    run(tmp_path / "same")
    assert_same_run(whole, tmp_path / "same")
    run(tmp_path / "order", seed=1)
    assert not same(state_of(whole)["model"], state_of(tmp_path / "order")["model"])
    run(tmp_path / "start", model=new_model(1))
    assert not same(state_of(whole)["model"], state_of(tmp_path / "start")["model"])


def test_workers_do_not_change_the_result(whole: Path, tmp_path: Path) -> None:
    run(tmp_path, num_workers=1)
    assert_same_run(whole, tmp_path)


def test_metrics_file(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 13]
    assert all(
        list(row) == ["step", "loss", "iou", "learning_rate", "seconds"] and row["seconds"] > 0 for row in rows
    )
    last = RECIPE.learning_rate * (1 - 9 / 10) ** RECIPE.power
    assert rows[1]["learning_rate"] == pytest.approx(last)


@pytest.mark.parametrize("at", [0, 1, 4, 5, 9, 10, 12])
def test_interrupted_at_any_step_and_resumed_equals_uninterrupted(
    whole: Path, tmp_path: Path, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, collate=Failing(at), checkpoint_every=5)
    assert state_of(tmp_path)["step"] == at
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        STATE,
        CONFIG_FILE,
        METRICS,
        WEIGHTS,
        VOCABULARY_FILE,
    ]
    assert f"Stopped at step {at} of 13; --run-dir {tmp_path} --resume continues." in caplog.text
    _, progress = run(tmp_path, model=new_model(7), resume=True, num_workers=int(at == 9))
    assert progress.step == 13
    assert_same_run(whole, tmp_path)


def test_ctrl_c_within_a_step_is_deferred_to_its_end(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = torch.optim.AdamW.step
    calls = count(1)

    def step(self: torch.optim.AdamW, *given: Any) -> Any:
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            [None for _ in range(10)]  # the interpreter runs signal handlers between instructions
        return usual(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert state_of(tmp_path)["step"] == 4
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(tmp_path, model=new_model(7), resume=True)
    assert same(state_of(whole), state_of(tmp_path))


def test_killed_run_resumes_from_the_last_checkpoint(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        run(tmp_path, collate=Failing(12, MemoryError), checkpoint_every=7)
    assert state_of(tmp_path)["step"] == 7
    assert [row["step"] for row in lines_of(tmp_path)] == [10]
    with (tmp_path / METRICS).open("a") as lines:
        lines.write('{"step": 1')  # cut off
    run(tmp_path, model=new_model(7), resume=True)
    assert_same_run(whole, tmp_path)


def test_resuming_a_finished_run_changes_nothing(whole: Path, tmp_path: Path) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model, progress = run(tmp_path, model=new_model(7), resume=True)
    assert progress.step == 13
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert same(model.state_dict(), state_of(whole)["model"])


@pytest.mark.parametrize("at", [1, 4])
def test_steps_without_a_usable_expression_change_no_weights(tmp_path: Path, at: int) -> None:
    recipe = replace(RECIPE, steps=at + 4)  # fewer than two passes
    errors = ErrorCollector(strict=False)
    failing = {"recipe": recipe, "collate": Failing(at, ValueError), "errors": errors}
    _, progress = run(tmp_path / "failing", **failing)
    assert progress.step == recipe.steps
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", recipe=recipe, collate=Failing(at))
    actual, expected = state_of(tmp_path / "failing"), state_of(tmp_path / "broken")
    assert (actual["step"], expected["step"]) == (at + 4, at)
    assert same(actual["model"], expected["model"])
    assert same(actual["optimizer"]["state"], expected["optimizer"]["state"])
    assert set(errors.messages) == {"unusable"}
    assert errors.count <= 8  # every item is reported once


def test_first_step_without_a_usable_expression(whole: Path, tmp_path: Path) -> None:
    errors = ErrorCollector(strict=False)
    # The batch, then each of its two items alone.
    _, progress = run(tmp_path, collate=Failing(0, ValueError, 3), errors=errors)
    assert progress.step == 13
    assert errors.messages == ["unusable"] * 2
    rows, usual = lines_of(tmp_path), lines_of(whole)
    assert [row["step"] for row in rows] == [10, 13]
    assert [row["learning_rate"] for row in rows] == [row["learning_rate"] for row in usual]
    steps = {int(one["step"]) for one in state_of(tmp_path)["optimizer"]["state"].values()}
    assert steps == {12}


def test_unusable_data_end_the_training(tmp_path: Path) -> None:
    for name, steps, enough in (("short", 4, 4), ("long", 99, 6)):  # a pass is three steps
        model, recipe = new_model(), replace(RECIPE, steps=steps)
        given = {"model": model, "recipe": recipe, "collate": Failing(0, ValueError)}
        with pytest.raises(ValueError, match=f"None of the expressions of {enough} consecutive steps"):
            run(tmp_path / name, errors=ErrorCollector(strict=False), **given)
        assert same(model.state_dict(), new_model().state_dict())
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [CONFIG_FILE, METRICS, VOCABULARY_FILE]


class Diverging(nn.Module):
    """Logits or gradients become NaN after some steps."""

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
def test_divergence_keeps_the_files(tmp_path: Path, kind: str) -> None:
    model = Diverging(kind, 6)
    with pytest.raises(FloatingPointError, match=f"(?i){kind}.*lower learning_rate"):
        run(tmp_path, model=model, checkpoint_every=6)
    state = state_of(tmp_path)
    assert state["step"] == 6
    assert bool(model.weight.isfinite())
    assert torch.equal(state["model"]["weight"], model.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        STATE,
        CONFIG_FILE,
        METRICS,
        WEIGHTS,
        VOCABULARY_FILE,
    ]


def test_iou_of_a_step() -> None:
    class Fixed(Diverging):
        def forward(self, images: Tensor, words: Tensor, mask: Tensor, index: Tensor) -> Tensor:
            sides = torch.ones(len(index), 1, SIZE, SIZE)
            sides[..., SIZE // 2 :] = -1
            return self.weight * sides

    image = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    mask = torch.arange(SIZE)[:, None].expand(SIZE, SIZE) < SIZE // 2
    sample = replace(images()[0], image=image, mask=mask)
    model = Fixed("loss", 9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss, iou = training_step(model, optimizer, Collate(VOCABULARY, SIZE)([sample]), 1.0)
    assert float(iou) == pytest.approx(1 / 3)
    # Without the pixels where prediction and truth differ, the loss of the others remains.
    differing = mask ^ (torch.arange(SIZE) < SIZE // 2)
    batch = Collate(VOCABULARY, SIZE)([replace(sample, ignore=differing)])
    less, iou = training_step(model, optimizer, batch, 1.0)
    assert float(iou) == 1
    assert float(less) < float(loss) / 2


def test_resuming_with_another_vocabulary_data_set_or_model_fails(tmp_path: Path) -> None:
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


def test_resuming_with_another_backend(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, collate=Failing(1), recipe=replace(RECIPE, steps=2))
    config = replace(CONFIG, options={**OPTIONS, "backend": "reference"})
    _, progress = run(tmp_path, resume=True, config=config, recipe=replace(RECIPE, steps=2))
    assert progress.step == 2


def test_resuming_with_missing_or_damaged_files_fails(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        run(tmp_path / "none", resume=True)
    run(tmp_path, recipe=replace(RECIPE, steps=2))
    state = torch.load(tmp_path / STATE, weights_only=True)
    for name in ("optimizer", "seconds", "losses"):
        torch.save({key: state[key] for key in state if key != name}, tmp_path / STATE)
        with pytest.raises(ValueError, match=f"does not fit this run: '{name}'"):
            run(tmp_path, resume=True)
    torch.save(state, tmp_path / STATE)
    for text in ("no json\n", "{}\n", "[]\n"):
        (tmp_path / METRICS).write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.jsonl must hold .* damaged"):
            run(tmp_path, resume=True)
        assert (tmp_path / METRICS).read_text() == text


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_items_are_raised_unchanged(tmp_path: Path, num_workers: int) -> None:
    data = images()
    data.samples = [replace(one, expression=" ") for one in data.samples]
    with pytest.raises(ValueError, match=r"^expression must have at least one word") as caught:
        run(tmp_path, data, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)
    assert "In the sample with image_id" in caught.value.__notes__[0]


def test_progress_bar_shows_loss_iou_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "tqdm", partial(training.tqdm, mininterval=0, miniters=1))
    run(tmp_path)
    shown = capsys.readouterr().err.split("\r")
    parts = ("train", "12/13", "<", "loss=", "IoU=")
    assert any(all(part in line for part in parts) for line in shown)


def validate(model: nn.Module) -> dict[str, float]:
    """Metrics that depend on the weights, with draws from the generator that training uses."""
    torch.rand(3)
    return {"overall_iou": sum(float(p.detach().abs().sum()) for p in model.parameters()) % 1}


VALIDATED = replace(RECIPE, validate_every=3, ema_decay=0.5)


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validated")
    run(folder, recipe=VALIDATED, validate=validate)
    return folder


def test_validation_keeps_the_best_weights(tmp_path: Path) -> None:
    ious = iter([0.7, 0.7, 0.5, 0.6, 0.3])  # of equal ones the later is kept
    steps: list[dict[str, Tensor]] = []

    def measured(model: nn.Module) -> dict[str, float]:
        steps.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"overall_iou": next(ious), "mean_iou": 0.25}

    recipe = replace(RECIPE, validate_every=3)
    model, progress = run(tmp_path, recipe=recipe, validate=measured)
    assert progress.best_step == 6
    assert len(steps) == 5  # steps 3, 6, 9, 12 and the last one
    assert same(load_model(tmp_path)[0].state_dict(), steps[1])
    assert same(model.state_dict(), steps[1])
    assert same(load_model(tmp_path / LAST)[0].state_dict(), steps[4])
    rows = [row for row in lines_of(tmp_path) if "validation" in row]
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 13]
    assert rows[1]["validation"] == {"overall_iou": 0.7, "mean_iou": 0.25}


def test_checkpoint_is_written_after_a_validation(tmp_path: Path) -> None:
    with pytest.raises(MemoryError):
        run(tmp_path, recipe=VALIDATED, validate=validate, collate=Failing(4, MemoryError))
    assert (state_of(tmp_path)["validated"], state_of(tmp_path)["best"][0]) == (3, 3)


class Dropping(nn.Module):
    """The tiny model, freshly seeded, with dropout, which draws from the global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.model = new_model()

    def forward(self, *batch: Tensor) -> Tensor:
        return nn.functional.dropout(self.model(*batch), 0.1, self.training)


def test_validation_does_not_change_the_training(tmp_path: Path) -> None:
    states = {}
    for name, every in (("without", 0), ("with", 2)):
        recipe = replace(RECIPE, steps=5, validate_every=every)
        with pytest.raises(KeyboardInterrupt):  # a whole run would load the best weights
            run(tmp_path / name, recipe=recipe, model=Dropping(), validate=validate, collate=Failing(4))
        states[name] = state_of(tmp_path / name)
    assert states["with"]["validated"] == 4
    for part in ("model", "optimizer", "schedule"):
        assert same(states["without"][part], states["with"][part])


@pytest.mark.parametrize("case", ["muon and batch norm", "dropout"])
def test_resumed_run_with_muon_batch_norm_or_dropout_equals_uninterrupted(tmp_path: Path, case: str) -> None:
    def start(name: str, seed: int = 0, **options: Any) -> None:
        if case == "dropout":
            run(tmp_path / name, model=Dropping(), num_workers=seed, **options)
            return
        torch.manual_seed(seed)
        config = replace(CONFIG, options=OPTIONS | {"backbone": "compact", "mask_scale": 2})
        recipe = replace(RECIPE, optimizer="muon")
        run(tmp_path / name, model=config.build(), config=config, recipe=recipe, **options)

    start("whole")
    with pytest.raises(KeyboardInterrupt):
        start("broken", collate=Failing(4))
    start("broken", 1, resume=True)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "broken"))


@pytest.mark.parametrize("at", [2, 3, 4, 12])
def test_interrupted_run_with_validation_and_average_resumes(validated: Path, tmp_path: Path, at: int) -> None:
    given = {"recipe": VALIDATED, "validate": validate, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, collate=Failing(at), **given)
    model, _ = run(tmp_path, model=new_model(7), resume=True, **given)
    assert_same_run(validated, tmp_path)
    assert same(model.state_dict(), load_model(tmp_path)[0].state_dict())


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", [1, 3, 5])
def test_run_stopped_during_a_validation_resumes(
    validated: Path, tmp_path: Path, error: type[BaseException], call: int
) -> None:
    calls = count(1)

    def stopped(model: nn.Module) -> dict[str, float]:
        if next(calls) == call:
            raise error
        return validate(model)

    given: dict[str, Any] = {"recipe": VALIDATED, "checkpoint_every": 2}
    with pytest.raises(error):
        run(tmp_path, validate=stopped, **given)
    if call == 3:  # killed between this line and the checkpoint that follows
        with (tmp_path / METRICS).open("a") as lines:
            lines.write(json.dumps({"step": 9, "validation": {}, "seconds": 1.0}) + "\n")
    run(tmp_path, model=new_model(7), resume=True, validate=validate, **given)
    assert_same_run(validated, tmp_path)


def test_moving_average_is_saved_and_evaluated(whole: Path, tmp_path: Path) -> None:
    model, _ = run(tmp_path, recipe=replace(RECIPE, ema_decay=0.9))
    state = state_of(tmp_path)
    assert same(state["model"], state_of(whole)["model"])  # training itself is the same
    average = {name.removeprefix("module."): v for name, v in state["average"].items()}
    assert int(average.pop("n_averaged")) == 13
    assert same(load_model(tmp_path)[0].state_dict(), average)
    assert same(model.state_dict(), average)
    assert not same(state["model"], average)
