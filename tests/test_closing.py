"""What a training came to: when a score counts as guessing, and what later trainings must not inherit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import mmrun
from mmrun import compose
from mmrun.build import build
from mmrun.closing import score_checkpoints
from mmrun.errors import UserError
from mmrun.objectives.classification import Classification
from mmrun.objectives.regression import Regression
from mmrun.spec import DatasetSpec
from tests.running import SMALL, fit

CLASSES = DatasetSpec(modalities={}, target="class", classes=3)
VALUES = DatasetSpec(modalities={}, target="value", target_shape=(1,))


@pytest.mark.parametrize("counts", [(60, 0, 0), (57, 3, 0), (4, 3, 3), (1, 1, 0), (500, 300, 200)])
def test_a_perfect_score_is_no_guess_and_a_constant_one_is(counts: tuple[int, ...]):
    target = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    chance, margin = Classification(CLASSES, {}, 4).chance(target)
    assert chance + margin < 1.0
    constant = max(counts) / sum(counts)
    assert (constant <= chance + margin) is (constant < 1)  # of one class alone nothing can be told


def test_equal_targets_call_no_regression_a_guess():
    goal = Regression(VALUES, {}, 4)
    assert goal.chance(torch.full((5, 1), 2.0)) == (math.inf, 0.0)
    assert goal.chance(torch.tensor([[0.0], [2.0]])) == (1.0, 0.0)


@pytest.mark.trains
def test_deterministic_kernels_end_with_the_training_that_asked_for_them(
    monkeypatch: pytest.MonkeyPatch,
):
    seen: list[bool] = []

    def looking(*given: Any) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return score_checkpoints(*given)

    monkeypatch.setattr("mmrun.train.score_checkpoints", looking)
    words = (*SMALL, "trainer=smoke")
    fit(*words, "trainer.deterministic=true")
    assert not torch.are_deterministic_algorithms_enabled()
    fit(*words, "seed=1")
    assert seen == [True, False]


@pytest.mark.trains
def test_a_loaded_model_leaves_threads_and_random_numbers_alone():
    record = fit(*SMALL, "trainer=smoke", "trainer.checkpoint=best")
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    try:
        mmrun.load(record["directory"])
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.rand(3), expected)
    finally:
        torch.set_num_threads(1)


@pytest.mark.trains
def test_what_was_trained_on_a_gpu_is_used_without_one(monkeypatch: pytest.MonkeyPatch):
    record = fit(*SMALL, "trainer=smoke", "trainer.checkpoint=best")
    path = record["directory"] / "run.json"
    text = path.read_text()
    assert '"accelerator": "auto"' in text
    path.write_text(text.replace('"accelerator": "auto"', '"accelerator": "gpu"'))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not mmrun.load(record["directory"]).training


@pytest.mark.trains
def test_a_wandb_that_fails_ends_no_training(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("wandb.sdk.wandb_run.Run.log", broken)
    words = [word for word in SMALL if word != "logger=none"]
    record = fit(*words, "logger=offline", "trainer=smoke")
    assert record["status"] == "finished"
    log = (record["directory"] / "train.log").read_text()
    assert log.count("W&B: logging has stopped") == 1


def test_a_target_is_what_its_package_defines_and_not_what_it_imports():
    config = compose.point([*SMALL]).config
    for target in ("mmrun.evaluate.torch.hub.load", "torch.optim.optimizer.torch.load"):
        with pytest.raises(UserError, match="only imported"):
            build({**config, "schedule": {"_target_": target}})


def test_large_seeds_thin_modalities():
    built = build(compose.point([*SMALL, "missing.test_rate=0.5", f"data_seed={2**62}"]).config)
    batch = built.dataset.split("test").batch(torch.arange(16))
    built.module.eval()
    assert torch.isfinite(built.module(batch).prediction).all()
