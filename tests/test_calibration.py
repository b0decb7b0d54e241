"""The calibration pass: what it measures, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmrun import cli
from mmrun.balance import Balance
from mmrun.batch import Tokens
from mmrun.build import Built, build
from mmrun.calibration import calibrate_features, run_batches
from mmrun.compose import point
from mmrun.fusion.concat import Concat
from mmrun.module import MultimodalModule
from mmrun.watching import Watch
from tests.running import SMALL, column, fit, record_of, same, saved

pytestmark = pytest.mark.trains
CPU = torch.device("cpu")


class Marked(Concat):
    """Keeps a buffer and a plain attribute that every forward pass changes, and draws numbers."""

    def __init__(self, dims: Mapping[str, int]) -> None:
        super().__init__(dims)
        self.norm = nn.BatchNorm1d(self.dim)
        self.calls = 0

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        self.calls += 1
        drawn = torch.rand(()) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return self.norm(super().forward(tokens)) * (1 + 0 * drawn)


class PerLoss(Balance):
    """The gradient is twice that of the loss."""

    per_loss = True

    def combine(self, gradients: Any) -> dict[str, Tensor]:
        return {name: 2 * gradient for name, gradient in super().combine(gradients).items()}


def built(*words: str) -> Built:
    return build(point((*SMALL, *words)).config)


def run(made: Built, batches: int = 4, **keywords: Any) -> int:
    return run_batches(made, batches, seed=1, device=CPU, **keywords)


def state(module: MultimodalModule) -> dict[str, Any]:
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    return {
        "state": copy.deepcopy(module.state_dict()),
        "gradients": {n: copy.deepcopy(p.grad) for n, p in module.named_parameters()},
        "modes": [each.training for each in module.modules()],
        "torch": torch.get_rng_state(),
        "numpy": numpy_state[1].tolist(),
        "python": random.getstate(),
        "device": str(module.device),
        "steps": module.pipeline.steps,
        "waiting": len(module.telemetry) + len(module.micro_losses),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmrun.build.fusion", lambda node, dims: Marked(dims))  # noqa: ARG005
    made = built("missing.train_rate=0.3", "trainer.deterministic=true")
    module = made.module
    fusion = module.model.fusion
    assert isinstance(fusion, Marked)
    module.model.encoders.eval()  # a mode that is not the training's
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, calls = state(module), fusion.calls
    seen: list[MultimodalModule] = []
    assert run(made, measure=seen.append) == 4
    assert all(each is not module and each.training for each in seen)
    assert all(each.training for each in seen[0].modules())
    other = seen[0].model.fusion
    assert isinstance(other, Marked)
    assert other.calls == calls + 4
    assert same(state(module), before)
    assert fusion.calls == calls


def test_it_draws_its_own_numbers():
    made = built("missing.train_rate=0.5")
    norms: list[list[float]] = [[], [], []]
    for row, seed in zip(norms, (1, 1, 2), strict=True):
        torch.manual_seed(len(norms))
        torch.rand(len(row))
        run_batches(made, 2, seed=seed, device=CPU, measure=lambda m, row=row: row.append(norm(m)))
    assert norms[0] == norms[1] != norms[2]


def norm(module: MultimodalModule) -> float:
    return torch.nn.utils.get_total_norm(
        [p.grad for p in module.parameters() if p.grad is not None]
    ).item()


@pytest.mark.parametrize("balance", [Balance, PerLoss])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_measured_is_the_gradient_of_the_first_step(
    accumulate: int, balance: type[Balance], monkeypatch: pytest.MonkeyPatch
):
    """The batches are those of epoch 0: with no weight moving, the norms of a training at learning rate 0."""
    monkeypatch.setattr("mmrun.build.balance", lambda node: balance())  # noqa: ARG005
    words = (f"trainer.accumulate_grad_batches={accumulate}", "optimizer=sgd", "optimizer.lr=1e-30")
    words = (*words, "schedule=constant", "trainer.max_epochs=1", "clip=none")
    record = fit(*SMALL, *words)
    want = column(record["directory"] / "gradients.csv", "grad/norm")
    norms: list[float] = []
    steps = run(built(*words), 100, measure=lambda module: norms.append(norm(module)))
    assert steps == len(norms) == len(want) == -(-4 // accumulate)  # one epoch, no more
    assert norms == pytest.approx(want, rel=1e-5)
    few: list[float] = []
    assert run(built(*words), accumulate, measure=lambda module: few.append(norm(module))) == 1
    assert few == norms[:1]


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_it_computes_as_the_training(precision: str):
    types: set[torch.dtype] = set()
    made = built(f"trainer.precision={precision}", "fusion=sum", "model.feature_clip=p99")

    class Look(Watch):
        def features(self, fused: Tensor) -> None:
            types.add(fused.dtype)

    run(made, watch=Look())
    assert types == {torch.float64 if precision == "64-true" else torch.bfloat16}
    calibrate_features(made, 2, seed=0, device=CPU)
    assert 0 < made.module.model.bounds[0].value < 100


def test_limits_of_the_training_hold():
    assert run(built("trainer.limit_train_batches=2"), 100) == 2


# The bounds


def measured(*words: str, batches: int = 3) -> dict[str, np.ndarray]:
    """|features| and per-sample norms by modality over the first batches, worked out from the parts of the model."""
    made = built(*words)
    module, seen = made.module, {"": [np.empty(0)]}
    fusion = module.model.fusion
    assert isinstance(fusion, Concat)
    for k, batch in enumerate(made.loader("train", shuffle=True)):
        if k == batches:
            break
        tokens, _ = module.model(batch)
        pooled = {n: each.pooled.detach().requires_grad_() for n, each in tokens.items()}
        again = {n: Tokens(each.values, each.mask, pooled[n]) for n, each in tokens.items()}
        fused = fusion(again)
        logits = module.objective(again, fused, batch)
        loss = torch.nn.functional.cross_entropy(logits, batch.target)
        gradients = torch.autograd.grad(loss, list(pooled.values()))
        seen[""].append(fused.detach().abs().numpy().ravel())
        for name, gradient in zip(pooled, gradients, strict=True):
            seen.setdefault(name, []).append(np.linalg.norm(gradient.numpy(), axis=1))
    return {name: np.concatenate(values) for name, values in seen.items()}


def test_percentiles_are_numpys():
    words = ("model.feature_clip=p99", "model.gradient_clip=p90.5")
    want = measured()
    made = built(*words)
    lines = calibrate_features(made, 3, seed=0, device=CPU)
    feature, gradient = made.module.model.bounds
    assert feature.value == pytest.approx(np.percentile(want[""], 99), rel=1e-6)
    assert set(gradient) == set(want) - {""}
    for name, each in gradient.items():
        assert each.value == pytest.approx(np.percentile(want[name], 90.5), rel=1e-5)
    assert len(lines) == 1 + len(gradient)
    assert lines[0].startswith(f"model.feature_clip: p99 is {feature.value:.6g} (p50 ")


def test_a_number_beside_a_percentile_stays_and_acts():
    made = built("model.feature_clip=0.01", "model.gradient_clip=p90")
    free = built("model.gradient_clip=p90")
    for each in (made, free):
        calibrate_features(each, 2, seed=0, device=CPU)
    (feature, clamped), (_, unclamped) = made.module.model.bounds, free.module.model.bounds
    assert feature.value == 0.01
    assert all(clamped[name].value < 0.9 * unclamped[name].value for name in clamped)


def test_training_goes_as_with_the_numbers_themselves():
    """The random numbers and the order of the data are what they are without a calibration."""
    words = (*SMALL, "missing.train_rate=0.3", "trainer.max_epochs=2", "trainer.checkpoint=both")
    words = (*words, "clip=0.5")
    calibrated = fit(*words, "model.feature_clip=p95", directory=Path("word"))
    value = calibrated["features"]["feature_clip"]["bound"]
    assert calibrated["features"]["feature_clip"]["given"] == "p95"
    given = fit(*words, f"model.feature_clip={value!r}", directory=Path("number"))
    mine, theirs = saved(Path("word"))["state_dict"], saved(Path("number"))["state_dict"]
    assert float(mine.pop("model.feature_clip._extra_state")) == value
    assert same(mine, theirs)
    assert same(record_of(Path("word"))["test"], given["test"])
    log = Path("word/train.log").read_text()
    assert f"calibrated model.feature_clip: p95 is {value:.6g}" in log


def test_as_many_batches_as_the_clip_says(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def spy(made: Built, batches: int, **keywords: Any) -> list[str]:  # noqa: ARG001
        asked.append(batches)
        return []

    monkeypatch.setattr("mmrun.train.calibrate_features", spy)
    fit(*SMALL, "trainer.max_steps=1")
    assert asked == [16]


def test_a_spread_too_wide_is_refused_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    original = Concat.forward

    def heavy(self: Concat, tokens: Mapping[str, Tokens]) -> Tensor:
        fused = original(self, tokens)
        return torch.cat((fused[:, :1] * 1e6, fused[:, 1:]), dim=1)

    monkeypatch.setattr(Concat, "forward", heavy)
    assert cli.main(["train", *SMALL, "model.feature_clip=p99"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mmrun: model.feature_clip cannot be calibrated: the p99")
    assert len(said.splitlines()) == 1
    assert not Path("outputs").exists()


def test_a_modality_into_which_no_gradient_goes_stays_free(monkeypatch: pytest.MonkeyPatch):
    original = Concat.forward

    def deaf(self: Concat, tokens: Mapping[str, Tokens]) -> Tensor:
        first = self.modalities[0]
        cut = Tokens(tokens[first].values, tokens[first].mask, tokens[first].pooled.detach())
        return original(self, {**tokens, first: cut})

    monkeypatch.setattr(Concat, "forward", deaf)
    made = built("model.gradient_clip=p90")
    lines = calibrate_features(made, 2, seed=0, device=CPU)
    first, *others = made.module.model.bounds[1].values()
    assert first.value == float("inf")
    assert all(each.value < 1 for each in others)
    assert lines[0].endswith("off, no gradient goes there")


@pytest.mark.parametrize("objective", ["mean", "sum"])
def test_bounds_are_in_units_of_the_steps_loss(objective: str):
    """Two halves of a batch give the bounds of the whole: accumulated losses are divided before the backward pass."""
    words = ("model.gradient_clip=p100", f"objective.reduction={objective}")
    whole = built(*words, "dataset.batch_size=240")
    halves = built(*words, "dataset.batch_size=120", "trainer.accumulate_grad_batches=2")
    calibrate_features(whole, 1, seed=0, device=CPU)
    calibrate_features(halves, 2, seed=0, device=CPU)
    factor = {"mean": 1.0, "sum": 0.5}[objective]
    for name, each in whole.module.model.bounds[1].items():
        assert halves.module.model.bounds[1][name].value == pytest.approx(
            factor * each.value, rel=1e-5
        )
