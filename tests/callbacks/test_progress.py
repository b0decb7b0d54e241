"""What a person sees: one line per validation in a pipe, a bar in a terminal that is taken away again."""

from __future__ import annotations

import pytest

from tests.running import SMALL, column, fit, table

pytestmark = pytest.mark.trains

WORDS = (*SMALL, "trainer.max_epochs=3", "clip=0.3")


def test_one_line_per_validation_where_nobody_watches(capsys: pytest.CaptureFixture[str]):
    record = fit(*WORDS)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3
    losses = column(record["directory"] / "metrics.csv", "train/loss")
    accuracy = column(record["directory"] / "metrics.csv", "val/accuracy")
    fraction = column(record["directory"] / "metrics.csv", "clip/fraction")
    for number, line in enumerate(lines):
        words = " ".join(line.split())
        assert words.startswith(f"epoch {number + 1} step {4 * (number + 1)} ")
        assert f" loss {losses[number]:.3f} " in words
        assert f" accuracy {accuracy[number]:.3f} " in words
        assert words.endswith(f" clipped {100 * fraction[number]:.0f} %")


def test_a_training_that_ends_between_two_validations_has_a_line_for_its_end(
    capsys: pytest.CaptureFixture[str],
):
    record = fit(*WORDS, "trainer.max_steps=6")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert [line.split()[:4] for line in lines] == [
        ["epoch", "1", "step", "4"],
        ["epoch", "2", "step", "6"],
    ]
    rows = table(record["directory"] / "metrics.csv")
    assert [(row["step"], row["epoch"]) for row in rows] == [("4", "0"), ("6", "1")]
    assert all(row["val/loss"] and row["train/loss"] for row in rows)
    assert record["epochs"] == 2


def test_the_bar_and_the_lines_can_be_switched_off(capsys: pytest.CaptureFixture[str]):
    fit(*WORDS, "trainer.enable_progress_bar=false")
    assert "epoch  " not in capsys.readouterr().out


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes stdout for a terminal then
    monkeypatch.setattr("mmrun.callbacks.progress.REDRAW_S", 0.0)
    fit(*WORDS)
    shown = capsys.readouterr().out
    assert "0/12" in shown
    assert "11/12" in shown
    assert "val loss" in shown
    assert "clipped" in shown
    assert "epoch   1" not in shown
