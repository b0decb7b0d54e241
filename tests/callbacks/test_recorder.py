"""The recorder: rows of metrics.csv are means over gradients.csv, whatever the log points."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmrun.callbacks.recorder import FRACTION, LR, Recorder
from mmrun.diagnostics import Diagnostics
from mmrun.gradients import GradientPipeline
from tests.running import SMALL, column, fit, record_of, table, the_run

pytestmark = pytest.mark.trains

# 240 training samples: 15 batches an epoch, 30 steps.
WORDS = (*SMALL, "dataset.batch_size=16", "trainer.max_epochs=2", "clip=0.5")


def columns(directory: Path, name: str) -> dict[str, np.ndarray]:
    rows = table(directory / name)
    return {
        key: np.array([float(row[key]) if row[key] else math.nan for row in rows])
        for key in rows[0]
    }


@pytest.mark.parametrize("every", [1, 4, 15, 50])
def test_a_row_is_the_mean_over_the_steps_since_the_last(every: int):
    words = [word for word in WORDS if not word.startswith("clip")]
    words += ["clip=value_0.1", f"trainer.log_every_n_steps={every}"]
    directory = fit(*words)["directory"]
    metrics, gradients = columns(directory, "metrics.csv"), columns(directory, "gradients.csv")
    assert 0 < gradients["clip/elements"].max() < 0.5, "some elements, not all"
    assert gradients["clip/elements"].min() == 0, "and not at every step"
    assert gradients["step"].tolist() == list(range(1, 31))
    points = sorted({s for s in range(1, 31) if s % every == 0 or s % 15 == 0})
    assert metrics["step"].tolist() == points
    before = 0
    for row, step in enumerate(points):
        window = slice(before, step)
        for name in (
            "train/loss",
            "grad/norm",
            "grad/norm/a",
            "clip/coefficient",
            "grad/norm_clipped",
        ):
            mean = gradients[name][window].mean()
            assert metrics[name][row] == pytest.approx(mean, rel=1e-6), (name, step)
        changed = (gradients["clip/elements"][window] > 0).mean()
        assert metrics[FRACTION][row] == pytest.approx(changed)
        before = step
    assert np.isfinite(metrics["val/loss"]).tolist() == [s % 15 == 0 for s in points]
    assert metrics["epoch"].tolist() == [(s - 1) // 15 for s in points]


def test_rows_are_thinned_by_record_every_and_means_are_not():
    dense = columns(fit(*WORDS)["directory"], "metrics.csv")
    sparse_run = fit(*WORDS, "clip.record_every=4")["directory"]
    assert column(sparse_run / "gradients.csv", "step").tolist() == [4, 8, 12, 16, 20, 24, 28]
    sparse = columns(sparse_run, "metrics.csv")
    for name, values in dense.items():
        assert values == pytest.approx(sparse[name], nan_ok=True), name


@pytest.mark.parametrize("every", [4, 1000])
def test_the_verdict_counts_every_step_whatever_is_recorded(every: int):
    words = [*WORDS[:-1], "clip=value_0.1"]
    dense, sparse = fit(*words), fit(*words, f"clip.record_every={every}")
    engaged = column(dense["directory"] / "gradients.csv", "clip/elements") > 0
    assert dense["clip"]["fraction"] == pytest.approx(engaged.mean())
    assert 0 < engaged.mean() < 1
    for key in ("fraction", "elements"):
        assert sparse["clip"][key] == pytest.approx(dense["clip"][key]), key
    for scope, block in dense["clip"]["scopes"].items():
        assert sparse["clip"]["scopes"][scope]["fraction"] == block["fraction"], scope
    said = dense["clip"]["verdict"].split(",")[0]
    assert sparse["clip"]["verdict"].startswith(said)


def test_stability_is_judged_by_every_loss():
    words = [*WORDS, "optimizer=sgd", "optimizer.lr=0", "schedule=constant"]
    assert fit(*words, "clip.record_every=7")["stability"] == "collapsed"


def test_time_grows_and_the_rate_is_the_optimizer_s():
    directory = fit(
        *WORDS, "schedule=constant", "optimizer.lr=0.02", "trainer.log_every_n_steps=3"
    )["directory"]
    lines = (directory / "metrics.csv").read_text().splitlines()
    times = [float(line.split(",")[2]) for line in lines[1:]]
    assert times == sorted(times)
    assert times[-1] < 60
    assert set(column(directory / "metrics.csv", LR)) == {0.02}


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make the gradient of these steps infinite in one scope."""
    original = GradientPipeline.apply

    def poisoned(self: GradientPipeline, *args: Any, **kwargs: Any) -> Any:
        if self.steps + 1 in steps:
            next(iter(self.scopes["a"].values())).grad.fill_(math.inf)  # pyright: ignore[reportOptionalMemberAccess]
        return original(self, *args, **kwargs)

    monkeypatch.setattr(GradientPipeline, "apply", poisoned)


def test_a_gradient_that_is_let_through_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    """Step 20 has an infinite gradient: seen at the next log point, told with its step."""
    poison(monkeypatch, 20)
    record = fit(*WORDS, "trainer.log_every_n_steps=8", "clip.nonfinite=pass")
    directory = record["directory"]
    assert record["status"] == "diverged"
    assert record["error"].endswith("step 20")
    gradients = columns(directory, "gradients.csv")
    assert gradients["step"][-1] == 24, "the log point at which it is seen"
    counted = gradients["grad/nonfinite"]
    assert counted[:19].tolist() == [0] * 19
    assert counted[19] == 1
    assert (np.diff(counted) >= 0).all()
    assert np.isinf(gradients["grad/norm"][19])
    assert np.isinf(gradients["grad/norm/a"][19])
    assert np.isfinite(gradients["grad/norm/b"][19])


@pytest.mark.parametrize("policy", ["skip", "zero"])
def test_single_steps_that_are_not_finite_are_left_out_and_counted(
    policy: str, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, 5, 6, 20)
    record = fit(
        *WORDS, "trainer.log_every_n_steps=8", f"clip.nonfinite={policy}", "clip.max_nonfinite=3"
    )
    assert (record["status"], record["stability"]) == ("finished", "ok")
    assert "3 steps with non-finite gradients" in record["clip"]["verdict"]
    gradients = columns(record["directory"], "gradients.csv")
    assert gradients["grad/nonfinite"][[3, 4, 5, 18, 19, 29]].tolist() == [0, 1, 2, 2, 3, 3]
    assert np.isinf(gradients["grad/norm"][[4, 5, 19]]).all()
    left = gradients["grad/norm_clipped"][[4, 5, 19]]
    assert (left == 0).all() if policy == "skip" else (left > 0).all() and (left < 0.51).all()
    assert (gradients["clip/elements"][[4, 5, 19]] == 0).all(), "that was not the law"
    metrics = columns(record["directory"], "metrics.csv")
    assert np.isfinite(metrics["train/loss"]).all()
    assert np.isfinite(metrics["grad/norm"]).all()


@pytest.mark.parametrize("steps", [range(17, 20), range(29, 31)])
def test_too_many_in_a_row_are_a_divergence(steps: range, monkeypatch: pytest.MonkeyPatch):
    """Across two log windows; and a row that training ends in."""
    poison(monkeypatch, *steps)
    record = fit(*WORDS, "trainer.log_every_n_steps=6", "clip.max_nonfinite=3")
    assert record["status"] == "diverged"
    assert record["error"].endswith(f"step {steps[0]}")


def test_a_strict_run_fails_at_the_first(monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, 20)
    with pytest.raises(FloatingPointError, match=r"step 20 .*nonfinite=raise"):
        fit(*WORDS, "trainer.log_every_n_steps=8", "clip.nonfinite=raise")
    assert record_of(the_run())["status"] == "failed"
    assert columns(the_run(), "gradients.csv")["step"].tolist() == list(range(1, 25))


def test_the_summary_has_the_best_step_by_each_metric_s_own_direction(tmp_path: Path):
    recorder = Recorder(
        None,
        columns=["clip/elements", "clip/elements/a", "grad/nonfinite"],
        validation=["loss", "accuracy"],
        diagnostics=Diagnostics({}, ()),
        every=5,
        record_every=1,
    )
    recorder.modes = {"val/loss": "min", "val/accuracy": "max"}
    values = {1: (3.0, 0.1), 2: (1.0, 0.5), 3: (2.0, 0.4), 4: (1.0, 0.5), 5: (math.nan, 0.2)}
    for step, (loss, accuracy) in values.items():
        for name, value in (("val/loss", loss), ("val/accuracy", accuracy)):
            recorder._summarise(name, value, step)
    loss, accuracy = recorder.summary["val/loss"], recorder.summary["val/accuracy"]
    assert (loss["min"], loss["max"], loss["best_step"]) == (1.0, 3.0, 2)
    assert math.isnan(loss["last"])
    assert accuracy == {"last": 0.2, "min": 0.1, "max": 0.5, "best_step": 2}
    assert list(tmp_path.iterdir()) == []


def test_what_was_logged_is_on_disk_after_a_failure(monkeypatch: pytest.MonkeyPatch):
    """Log points between validations are buffered; a bad ending writes them."""
    from tests.test_train import fail, raise_at

    raise_at(monkeypatch, 10, fail)
    with pytest.raises(ArithmeticError):
        fit(*WORDS, "trainer.log_every_n_steps=2")
    directory = the_run()
    assert record_of(directory)["status"] == "failed"
    assert column(directory / "metrics.csv", "step").tolist() == [2, 4, 6, 8, 10]
    assert column(directory / "gradients.csv", "step").tolist() == list(range(1, 11))


def test_nothing_is_read_from_the_device_between_log_points(monkeypatch: pytest.MonkeyPatch):
    """A step copies no value to the host: .item(), float() and .cpu() happen at log points only."""
    taken: list[int] = []
    steps: list[int] = []
    for name in ("item", "cpu", "__float__", "__bool__", "tolist"):
        original = getattr(torch.Tensor, name)

        def seen(self: torch.Tensor, *args: Any, _original: Any = original, **kw: Any) -> Any:
            taken.append(len(steps))
            return _original(self, *args, **kw)

        monkeypatch.setattr(torch.Tensor, name, seen)
    original_apply = GradientPipeline.apply

    def counted(self: GradientPipeline, *args: Any, **kwargs: Any) -> Any:
        steps.append(1)
        return original_apply(self, *args, **kwargs)

    monkeypatch.setattr(GradientPipeline, "apply", counted)
    monkeypatch.setattr("mmrun.clip.engine.may_look", lambda device: False)  # as on a GPU  # noqa: ARG005
    fit(*WORDS, "trainer.log_every_n_steps=10", "optimizer=sgd")
    # Calls after the pipeline of step n and before that of n + 1; the first step sets things up.
    quiet = [n for n in taken if 1 < n < 30 and n % 10 and n % 15]
    assert quiet == []
    assert [n for n in taken if n % 10 == 0], "log points do read"
