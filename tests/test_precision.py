"""Mixed precision and fused optimizers in the trainer: what is clipped are the gradients of the loss, unscaled."""

from __future__ import annotations

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins import MixedPrecision

from mmrun import cli
from mmrun.gradients import GradientPipeline
from tests.running import SMALL, column, fit, same, saved
from tests.test_module import PerLoss, TwoLosses

pytestmark = pytest.mark.trains

WORDS = (
    *SMALL, "fusion=sum", "trainer.max_epochs=2", "trainer.checkpoint=both", "schedule=constant",
)  # fmt: skip
FUSED = "+optimizer.fused=true"


class ScaledLoss(MixedPrecision):
    """Lightning's 16-mixed on a CPU, but that everything is computed in float32: only the scaling is left of it."""

    def autocast_context_manager(self) -> Any:
        return contextlib.nullcontext()


def with_a_scaler(
    monkeypatch: pytest.MonkeyPatch, *words: str, scale: float = 2.0**14, **keywords: Any
) -> tuple[dict[str, Any], torch.amp.GradScaler]:
    """Train under a loss scaler, as trainer.precision=16-mixed does on a GPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)

    def make(**given: Any) -> Trainer:
        del given["precision"]
        given["plugins"] = [ScaledLoss("16-mixed", "cpu", scaler)]
        return Trainer(**given)

    with monkeypatch.context() as patch:
        patch.setattr("mmrun.trainer.Trainer", make)
        return fit(*words, **keywords), scaler


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", ["0.5", "value_0.01"])
def test_clipping_sees_unscaled_gradients(fused: bool, clip: str, monkeypatch: pytest.MonkeyPatch):
    """Bit for bit what training without a scale does; also fused, where Lightning leaves unscaling to the step."""
    words = (*WORDS, f"clip={clip}", *([FUSED] if fused else []))
    plain = fit(*words)
    scaled, scaler = with_a_scaler(monkeypatch, *words)
    assert scaler.get_scale() == 2.0**14
    check_equal(plain, scaled)


def check_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert same(saved(a["directory"])["state_dict"], saved(b["directory"])["state_dict"])
    for name in ("train/loss", "grad/norm", "grad/norm_clipped", "clip/coefficient"):
        mine, theirs = (column(r["directory"] / "gradients.csv", name) for r in (a, b))
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_per_loss_gradients_under_a_scaler(
    fused: bool, accumulate: int, monkeypatch: pytest.MonkeyPatch
):
    """Manual optimization: losses are scaled, and what is combined and clipped is not."""
    monkeypatch.setattr("mmrun.build.balance", lambda node: PerLoss())  # noqa: ARG005
    words = [*WORDS, "clip=0.5", f"trainer.accumulate_grad_batches={accumulate}"]
    words += [FUSED] if fused else []
    plain = fit(*words)
    scaled, _ = with_a_scaler(monkeypatch, *words)
    check_equal(plain, scaled)
    monkeypatch.setattr("mmrun.build.balance", lambda node: TwoLosses())  # noqa: ARG005
    automatic = fit(*words)
    torch.testing.assert_close(
        saved(automatic["directory"])["state_dict"],
        saved(scaled["directory"])["state_dict"],
        rtol=1e-4,
        atol=1e-5,
    )


# Lightning steps the schedule also where the scaler has left the first step out.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("on", ["gradient", "update"])
def test_a_scale_that_is_too_large_is_halved_and_nothing_else(
    fused: bool, on: str, monkeypatch: pytest.MonkeyPatch
):
    """Its infinite steps leave weights, moments and the clip alone."""
    before: list[Any] = []
    original = GradientPipeline.apply

    def watched(self: GradientPipeline, *args: Any) -> Any:
        before.append([p.detach().clone() for s in self.scopes.values() for p in s.values()])
        return original(self, *args)

    monkeypatch.setattr(GradientPipeline, "apply", watched)
    words = [*WORDS, "clip=0.5", f"clip.on={on}", *([FUSED] if fused else [])]
    words += ["objective.reduction=sum"]  # for gradients above 2, and so infinite ones
    record, scaler = with_a_scaler(monkeypatch, *words, scale=2.0**127)
    nonfinite = column(record["directory"] / "gradients.csv", "grad/nonfinite")  # so far
    bad = int(nonfinite[-1])
    assert 0 < bad < 6
    assert nonfinite.tolist() == [min(k, bad) for k in range(1, 9)]
    assert scaler.get_scale() == 2.0 ** (127 - bad)
    stayed = [same(a, b) for a, b in pairwise(before)]
    assert stayed == [k < bad for k in range(len(stayed))]
    if on == "update":
        moved = column(record["directory"] / "gradients.csv", "update/norm")
        assert not moved[:bad].any()
        assert moved[bad:].all()


def test_bf16_autocast_clips_float32_gradients(monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[set[torch.dtype], float, float]] = []
    original = GradientPipeline.apply

    def watched(self: GradientPipeline, *args: Any) -> Any:
        gradients = [p.grad for s in self.scopes.values() for p in s.values() if p.grad is not None]
        norm = torch.cat([g.double().flatten() for g in gradients]).norm().item()
        out = original(self, *args)
        after = torch.cat([g.double().flatten() for g in gradients]).norm().item()
        seen.append(({g.dtype for g in gradients}, norm, after))
        return out

    monkeypatch.setattr(GradientPipeline, "apply", watched)
    record = fit(*WORDS, "clip=0.2", "trainer.precision=bf16-mixed")
    assert all(dtypes == {torch.float32} for dtypes, _, _ in seen)
    path = record["directory"] / "gradients.csv"
    assert column(path, "grad/norm") == pytest.approx([n for _, n, _ in seen], rel=1e-6)
    assert column(path, "grad/norm_clipped") == pytest.approx([n for _, _, n in seen], rel=1e-6)
    assert (column(path, "grad/norm") > 0.2).any()
    exact = fit(*WORDS, "clip=0.2")
    rounded = column(exact["directory"] / "gradients.csv", "grad/norm") - column(path, "grad/norm")
    assert rounded.any(), "autocast was on"


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "momentum"])
def test_fused_is_a_word_of_the_command_line(optimizer: str):
    words = [*WORDS, "clip=0.5", f"optimizer={optimizer}"]
    fused, plain = fit(*words, FUSED), fit(*words)
    groups = saved(fused["directory"])["optimizer_states"][0]["param_groups"]
    assert all(group["fused"] for group in groups)
    torch.testing.assert_close(
        saved(fused["directory"])["state_dict"],
        saved(plain["directory"])["state_dict"],
        rtol=1e-3,
        atol=1e-5,
    )


def test_an_optimizer_that_cannot_be_fused_says_so(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["train", *WORDS, "optimizer=rmsprop", FUSED]) == 2
    said = capsys.readouterr().err
    assert "optimizer.fused" in said
    assert "Traceback" not in said
    assert not Path("outputs").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("on", ["gradient", "update"])
def test_16_mixed_on_a_gpu(fused: bool, on: str):
    """Norms are those of the loss's gradient, not of the scaled one; the scale is found on the way."""
    words = [*WORDS, "clip=0.5", f"clip.on={on}", "trainer=gpu", *([FUSED] if fused else [])]
    half, whole = (fit(*words, f"trainer.precision={p}") for p in ("16-mixed", "32-true"))
    norms, exact = (column(r["directory"] / "gradients.csv", "grad/norm") for r in (half, whole))
    fine = np.isfinite(norms)
    assert fine.sum() >= 4
    assert norms[fine][0] == pytest.approx(exact[0], rel=0.05)
    if on == "gradient":
        clipped = column(half["directory"] / "gradients.csv", "grad/norm_clipped")
        assert clipped[fine] == pytest.approx(norms[fine].clip(max=0.5), rel=1e-5)
