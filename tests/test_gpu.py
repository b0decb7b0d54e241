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
    for clip in ("none", "0.5", "value_0.1"):
        record = fit(*SMALL, "trainer=gpu", "trainer.max_steps=6", f"clip={clip}")
        assert record["status"] == "finished"
    assert seen.count("training_step") == seen.count("configure_gradient_clipping") == 18


def test_gpu_learns_what_the_cpu_learns():
    words = (*SMALL, "trainer.max_epochs=4", "clip=0.5")
    on_gpu = fit(*words, "trainer=gpu", "trainer.precision=32-true")
    on_cpu = fit(*words, "trainer.accelerator=cpu")
    key = "test_last/loss"
    assert on_gpu["test_last"][key] == pytest.approx(on_cpu["test_last"][key], rel=0.05)
