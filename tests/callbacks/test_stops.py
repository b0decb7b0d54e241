"""Stops: when each of them stops, and what it remembers."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from mmrun.callbacks.stops import Stops
from mmrun.module import MultimodalModule


class Fake(MultimodalModule):
    """Only what Stops looks at."""

    def __init__(self) -> None:  # no super: a module without a model
        self.__dict__["validation"] = None


def stops(**settings: Any) -> Stops:
    recorder: Any = SimpleNamespace(losses=[], collect=lambda trainer, module: None)  # noqa: ARG005
    defaults: dict[str, Any] = {
        "patience": math.inf,
        "min_delta": 0.0,
        "target": {},
        "tolerance": 0.0,
        "higher_is_better": {"accuracy": True},
        "monitor": "loss",
    }
    return Stops(recorder, **{**defaults, **settings})


def run(callback: Stops, name: str, values: list[float]) -> int | None:
    """The validation (from 1) at which it stops."""
    trainer: Any = SimpleNamespace(should_stop=False, global_step=0)
    module = Fake()
    for number, value in enumerate(values, 1):
        trainer.global_step = 10 * number
        metrics = {"loss": 1.0, "accuracy": 0.0, name: value}
        module.__dict__["validation"] = SimpleNamespace(metrics=metrics)
        callback.on_validation_end(trainer, module)
        if trainer.should_stop:
            return number
    return None


@pytest.mark.parametrize(
    ("settings", "values", "at"),
    [
        ({}, [3, 3, 3, 3, 3], None),
        ({"patience": 2}, [3, 2, 1, 0.5], None),
        ({"patience": 2}, [3, 2, 2, 2, 1], 4),
        ({"patience": 2}, [3, 4, 2, 4, 4], 5),
        ({"patience": 1}, [3, 3], 2),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.6, 2.4, 2.2, 2.1], 5),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.8, 2.6, 1, 1], 3),
        ({"patience": 2}, [3, math.nan, math.nan], 3),
        ({"patience": 1}, [math.nan], 1),
    ],
)
def test_patience(settings: dict[str, Any], values: list[float], at: int | None):
    callback = stops(**settings)
    assert run(callback, "loss", values) == at
    assert callback.stopped_by == (None if at is None else "patience")


def test_patience_follows_the_monitor_s_direction():
    callback = stops(patience=1, monitor="accuracy")
    assert run(callback, "accuracy", [0.1, 0.2, 0.3, 0.3]) == 4


def test_targets():
    callback = stops(target={"accuracy": 0.5})
    assert run(callback, "accuracy", [0.1, 0.49, 0.5]) == 3
    assert callback.stopped_by == "target"
    assert callback.steps_to_target == 30
    assert run(stops(target={"loss": 0.5}), "loss", [0.6, 0.51, 0.5]) == 3
    both = stops(target={"accuracy": 0.5, "loss": 0.5})
    assert run(both, "accuracy", [0.9, 0.9]) is None
    assert both.steps_to_target is None


def epochs(callback: Stops, losses: list[list[float]]) -> int | None:
    trainer: Any = SimpleNamespace(should_stop=False)
    for number, epoch in enumerate(losses, 1):
        callback.recorder.losses = list(epoch)
        callback.on_train_epoch_end(trainer, Fake())
        assert callback.recorder.losses == [], "each epoch's mean is its own"
        if trainer.should_stop:
            return number
    return None


def test_tolerance():
    assert epochs(stops(tolerance=0.1), [[2, 4], [3.2], [2.0, 2.2], [2.15]]) == 4
    assert epochs(stops(tolerance=0.0), [[1.0], [1.0], [1.0]]) is None
    assert epochs(stops(tolerance=0.5), [[1.0]]) is None


def test_the_first_reason_counts():
    callback = stops(patience=1, target={"loss": 5.0})
    assert run(callback, "loss", [6.0, 6.0, 4.0]) == 2
    run(callback, "loss", [4.0])
    assert callback.stopped_by == "patience"


def test_a_resumed_one_goes_on_waiting():
    first, second = stops(patience=3), stops(patience=3)
    assert run(first, "loss", [1, 2, 2]) is None
    second.load_state_dict(first.state_dict())
    assert run(second, "loss", [2, 2]) == 1
