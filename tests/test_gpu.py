"""What only a CUDA device can show; skipped with a reason elsewhere, run there with pytest -m gpu."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mmrun.module import MultimodalModule
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
