"""What only a CUDA device can show; skipped with a reason elsewhere, run there with pytest -m gpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmrun.clip import Clipper
from mmrun.module import MultimodalModule
from tests.oracles import OPTIONS, build
from tests.running import SMALL, fit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.trains,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch):
    """CUDA itself raises where a step synchronises: forward, loss, clip and telemetry."""
    seen: list[str] = []

    def strict(name: str) -> None:
        original: Callable[..., Any] = getattr(MultimodalModule, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen.append(name)
            torch.cuda.set_sync_debug_mode("error")
            try:
                return original(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        monkeypatch.setattr(MultimodalModule, name, call)

    strict("training_step")
    strict("configure_gradient_clipping")
    features = ("model.feature_clip=p99", "model.gradient_clip=0.005")
    runs = [("clip=none",), ("clip=0.5",), ("clip=value_0.1",), features]
    runs.append((*features, "trainer.precision=16-mixed"))
    for words in runs:
        record = fit(*SMALL, "trainer=gpu", "trainer.max_steps=6", *words)
        assert record["status"] == "finished"
    assert seen.count("training_step") == seen.count("configure_gradient_clipping") == 6 * len(runs)


@pytest.mark.parametrize("option", OPTIONS)
def test_no_law_waits_for_the_device(option: str):
    """Nor the engine around it; the first step makes what the later ones find there."""
    model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3)).cuda()
    law, words = Clipper(build(option)), torch.arange(9, device="cuda")
    law.bind({"text": dict(model[0].named_parameters()), "head": dict(model[1].named_parameters())})
    for step in range(4):
        model.zero_grad()
        model(words).square().sum().backward()
        torch.cuda.set_sync_debug_mode("error" if step else "default")
        try:
            stats = law.apply()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(stats["norm_clipped"][""])


def test_a_scaled_loss_leaves_the_shares_of_gradients():
    words = (*SMALL, "trainer=gpu", "trainer.max_epochs=2", "model.gradient_clip=0.005")
    whole, half = (fit(*words, f"trainer.precision={p}") for p in ("32-true", "16-mixed"))
    for name, scope in whole["features"]["gradient_clip"]["scopes"].items():
        got = half["features"]["gradient_clip"]["scopes"][name]
        assert got["clipped"] == pytest.approx(scope["clipped"], abs=0.1)
        assert got["largest"] == pytest.approx(scope["largest"], rel=0.1)


def test_gpu_learns_what_the_cpu_learns():
    words = (*SMALL, "trainer.max_epochs=4", "clip=0.5")
    on_gpu = fit(*words, "trainer=gpu", "trainer.precision=32-true")
    on_cpu = fit(*words, "trainer.accelerator=cpu")
    key = "test_last/loss"
    assert on_gpu["test_last"][key] == pytest.approx(on_cpu["test_last"][key], rel=0.05)
