"""The module's wiring: one pipeline call per optimizer step, by automatic and by manual optimization."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmrun.balance import Balance
from mmrun.batch import Batch, Output
from mmrun.build import build
from mmrun.compose import point
from mmrun.gradients import GradientPipeline
from mmrun.module import MultimodalModule, sum_of
from tests.running import SMALL, column, fit, saved, table

pytestmark = pytest.mark.trains


class TwoLosses(Balance):
    """A second loss, so that there are gradients to combine; the sum of gradients is the base's own."""

    def losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:  # noqa: ARG002 - contract
        assert output.fused is not None
        return {"small": 0.1 * output.fused.square().mean()}


class PerLoss(TwoLosses):
    per_loss = True

    def __init__(self) -> None:
        self.seen: list[dict[str, set[str]]] = []

    def combine(self, gradients: Any) -> dict[str, Tensor]:
        self.seen.append({loss: set(named) for loss, named in gradients.items()})
        return super().combine(gradients)


class FirstLossOnly(PerLoss):
    """Not the identity: what manual optimization makes of it must differ."""

    def combine(self, gradients: Any) -> dict[str, Tensor]:
        return super().combine({"cross_entropy": gradients["cross_entropy"]})


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pipeline calls, optimizer steps and schedule steps, in order."""
    found: list[str] = []

    def spy(owner: type, name: str, word: str) -> None:
        original = getattr(owner, name)

        def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(word)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    spy(GradientPipeline, "apply", "pipeline")
    spy(MultimodalModule, "optimizer_step", "step")  # automatic optimization only
    return found


def balanced(balance: Balance, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr("mmrun.build.balance", lambda node: balance)  # noqa: ARG005
    return fit(
        *SMALL, "trainer.max_epochs=2", "trainer.checkpoint=both", "clip=0.5", "fusion=sum",
        "optimizer=momentum", "trainer.log_every_n_steps=3", *overrides,
    )  # fmt: skip


# 240 training samples: 4 batches of 64 an epoch.
@pytest.mark.parametrize(("accumulate", "per_epoch"), [(1, 4), (2, 2), (3, 2), (9, 1)])
@pytest.mark.parametrize("manual", [False, True])
def test_the_pipeline_is_called_once_per_optimizer_step(
    manual: bool,
    accumulate: int,
    per_epoch: int,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
):
    balance = PerLoss() if manual else TwoLosses()
    record = balanced(
        balance, f"trainer.accumulate_grad_batches={accumulate}", monkeypatch=monkeypatch
    )
    assert record["steps"] == 2 * per_epoch
    assert calls.count("pipeline") == 2 * per_epoch
    assert column(record["directory"] / "gradients.csv", "step").tolist() == list(
        range(1, 2 * per_epoch + 1)
    )
    checkpoint = saved(record["directory"])
    assert checkpoint["clip"]["steps"] == 2 * per_epoch
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 2 * per_epoch
    assert calls.count("step") == (0 if manual else 2 * per_epoch)
    if isinstance(balance, PerLoss):
        assert len(balance.seen) == 2 * per_epoch
        names = {"cross_entropy", "small"}
        assert all(set(each) == names for each in balance.seen)
        assert any("objective" in name for name in balance.seen[0]["cross_entropy"])
        assert not any("objective" in name for name in balance.seen[0]["small"])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_manual_equals_automatic(accumulate: int, monkeypatch: pytest.MonkeyPatch):
    words = [f"trainer.accumulate_grad_batches={accumulate}", "trainer.precision=64-true"]
    automatic, manual, other = (
        balanced(balance, *words, monkeypatch=monkeypatch)
        for balance in (TwoLosses(), PerLoss(), FirstLossOnly())
    )
    a, m, o = (saved(record["directory"])["state_dict"] for record in (automatic, manual, other))
    for name in a:
        torch.testing.assert_close(a[name], m[name], rtol=1e-10, atol=1e-12, msg=name)
    assert max(float((a[name] - o[name]).abs().max()) for name in a) > 1e-4
    rows, again = (table(r["directory"] / "gradients.csv") for r in (automatic, manual))
    assert len(rows) == len(again)
    for row, same in zip(rows, again, strict=True):
        for name, value in row.items():
            assert float(value) == pytest.approx(float(same[name]), rel=1e-7, abs=1e-9), name


def test_norms_before_and_after_are_what_the_law_says(monkeypatch: pytest.MonkeyPatch):
    record = balanced(TwoLosses(), monkeypatch=monkeypatch)
    path = record["directory"] / "gradients.csv"
    raw, clipped = column(path, "grad/norm"), column(path, "grad/norm_clipped")
    assert (raw > 0.5).any()
    assert clipped == pytest.approx(raw.clip(max=0.5), rel=1e-6)
    assert column(path, "clip/coefficient") == pytest.approx(clipped / raw, rel=1e-6)
    squares = sum(
        column(path, f"grad/norm/{s}") ** 2 for s in ("a", "b", "c", "fusion", "objective")
    )
    assert squares**0.5 == pytest.approx(raw, rel=1e-6)
    for scope in ("a", "b", "c", "fusion", "objective"):
        ratio = column(path, f"grad/norm_clipped/{scope}") / column(path, f"grad/norm/{scope}")
        assert ratio == pytest.approx(clipped / raw, rel=1e-5), "a global law scales all alike"


@pytest.mark.parametrize("world", [1, 2])
def test_half_gradients_come_back_to_their_rank_or_as_their_mean(world: int):
    """On as many ranks each gets its own; on another number, what averages to the same."""
    module = build(point(SMALL).config).module
    name, parameter = next(iter(module.named_parameters()))
    ranks = [
        {
            "losses": [torch.tensor(float(k))],
            "gradients": {name: torch.full_like(parameter, float(k))},
            "per_loss": {"task": {name: torch.full_like(parameter, 10.0 * k)}},
        }
        for k in (1, 2)
    ]
    state = {"clip": module.pipeline.state_dict(), "rng": [{}] * 3, "accumulated": ranks}
    module.on_load_checkpoint(state)
    module._trainer = SimpleNamespace(world_size=world, global_rank=world - 1)  # pyright: ignore[reportAttributeAccessIssue]
    module.on_train_start()
    expected = {1: 1.5, 2: 2.0}[world]
    assert module.micro_losses == [torch.tensor(expected)]
    assert parameter.grad is not None
    assert set(parameter.grad.flatten().tolist()) == {expected}
    assert set(module._per_loss["task"][name].flatten().tolist()) == {10 * expected}


def test_accumulated_micro_batches_are_the_whole_batch():
    """Three batches of 80 in one step are the gradient of 240 samples, of a mean over each."""
    words = [*SMALL, "optimizer=sgd", "schedule=constant", "trainer.max_epochs=3", "clip=0.5"]
    words += ["trainer.checkpoint=both", "trainer.precision=64-true"]
    parts = fit(*words, "dataset.batch_size=80", "trainer.accumulate_grad_batches=3")
    whole = fit(*words, "dataset.batch_size=all")
    assert parts["steps"] == whole["steps"] == 3
    a, b = (saved(record["directory"])["state_dict"] for record in (parts, whole))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-12, atol=1e-13, msg=name)
    losses = [column(r["directory"] / "gradients.csv", "train/loss") for r in (parts, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


def test_the_trainer_itself_never_clips(monkeypatch: pytest.MonkeyPatch):
    """Its own setting stays unset; the numbers travel as hyperparameters."""
    from pytorch_lightning import Trainer

    seen: list[Any] = []
    original = Trainer.fit

    def watched(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        seen.append((self.gradient_clip_val, self.gradient_clip_algorithm))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", watched)
    record = fit(*SMALL, "clip=value_0.2", "trainer=smoke", "trainer.checkpoint=both")
    assert seen == [(None, None)]
    kept = saved(record["directory"])["hyper_parameters"]
    assert kept == {"gradient_clip_val": 0.2, "gradient_clip_algorithm": "value"}


def test_the_checkpoint_holds_the_clip_apart_from_the_weights():
    record = fit(*SMALL, "clip=0.5", "trainer=smoke", "trainer.checkpoint=both")
    checkpoint = saved(record["directory"])
    assert set(checkpoint["clip"]) == {"steps", "laws"}
    assert not [name for name in checkpoint["state_dict"] if "clip" in name or "law" in name]
    assert all(name.startswith(("model.", "objective.")) for name in checkpoint["state_dict"])


def test_sum_of_losses():
    one, two = torch.tensor(1.0, requires_grad=True), torch.tensor(2.0)
    assert sum_of({"a": one}) is one
    assert sum_of({"a": one, "b": two}) == 3
