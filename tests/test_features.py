"""Feature clipping in real trainings: its columns against a recomputation, its record, its absence, its bits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmrun import cli, load
from mmrun.batch import Tokens
from mmrun.build import build
from mmrun.compare.show import show
from mmrun.compare.summary import summary
from mmrun.compose import point
from mmrun.fusion.concat import Concat
from mmrun.runs.features import feature_block
from tests.running import SMALL, column, fit, record_of, same, saved, table

pytestmark = pytest.mark.trains

WORDS = (*SMALL, "clip=0.5", "trainer.max_epochs=2", "trainer.log_every_n_steps=3")
FEATURE, GRADIENT = 0.2, 0.005  # near the median of what is bounded
BOTH = (f"model.feature_clip={FEATURE}", f"model.gradient_clip={GRADIENT}")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """What went over the boundary in each training batch: the fused feature, gradients by modality, who is there."""
    found: list[dict[str, np.ndarray]] = []
    original = Concat.forward

    def forward(self: Concat, tokens: Mapping[str, Tokens]) -> Tensor:
        fused = original(self, tokens)
        if self.training and torch.is_grad_enabled():
            here: dict[str, np.ndarray] = {"": fused.detach().float().numpy().copy()}
            for name, each in tokens.items():
                here[f"there/{name}"] = each.mask.any(dim=1).numpy()

                def keep(gradient: Tensor, name: str = name, here: Any = here) -> None:
                    here[name] = gradient.double().numpy().copy()

                each.pooled.register_hook(keep)
            found.append(here)
        return fused

    monkeypatch.setattr(Concat, "forward", forward)
    return found


def recomputed(batches: list[dict[str, np.ndarray]], c: float) -> dict[str, float]:
    """Of the micro-batches of one step."""
    fused = np.concatenate([batch[""].ravel() for batch in batches])
    row = {
        "feature/clamped": float((np.abs(fused) > np.float32(FEATURE)).mean()),
        "feature/largest": float(np.abs(fused).max()),
    }
    for name in (key for key in batches[0] if key and "/" not in key):
        there = np.concatenate([batch[f"there/{name}"] for batch in batches])
        norms = np.concatenate([np.linalg.norm(batch[name], axis=1) for batch in batches])[there]
        row[f"feature/gradient_clipped/{name}"] = float((norms > c).mean())
        row[f"feature/gradient_largest/{name}"] = float(norms.max())
    return row


@pytest.mark.parametrize(
    ("accumulate", "words"),
    [
        (1, ()),
        (1, ("missing.train_rate=0.3", "trainer.precision=64-true")),
        (3, ("missing.train_rate=0.3",)),
    ],
)
def test_what_is_logged_is_what_went_over_the_boundary(
    accumulate: int, words: tuple[str, ...], seen: list[dict[str, np.ndarray]]
):
    c = GRADIENT / accumulate
    more = (f"model.feature_clip={FEATURE}", f"model.gradient_clip={c}", *words)
    more = (*more, f"trainer.accumulate_grad_batches={accumulate}")
    record = fit(*WORDS, *more)
    directory = record["directory"]
    assert len(seen) == 8  # of validation nothing is counted
    epochs = (seen[:4], seen[4:])
    steps = [epoch[k : k + accumulate] for epoch in epochs for k in range(0, 4, accumulate)]
    want = [recomputed(step, c) for step in steps]
    assert 0.05 < np.mean([row["feature/clamped"] for row in want]) < 0.95
    assert 0.01 < np.mean([row["feature/gradient_clipped/a"] for row in want]) < 0.99
    for name in want[0]:
        every = np.array([row[name] for row in want])
        assert column(directory / "gradients.csv", name) == pytest.approx(every, rel=1e-5), name
        at = column(directory / "metrics.csv", "step").astype(
            int
        )  # a row at every third step and at each epoch's end
        windows = np.split(every, at[:-1])
        how = np.max if "largest" in name else np.mean
        assert column(directory / "metrics.csv", name) == pytest.approx(
            [how(window) for window in windows], rel=1e-5
        ), name
        block = record["features"]
        values = block["feature_clip"] | {"clipped": None}
        if "/gradient" in name:
            values = block["gradient_clip"]["scopes"][name.rpartition("/")[2]]
        key = "largest" if "largest" in name else "clamped" if "clamped" in name else "clipped"
        assert values[key] == pytest.approx(how(every), rel=1e-5), name


def test_off_there_is_no_column_and_no_word():
    record = fit(*WORDS)
    for name in ("metrics.csv", "gradients.csv"):
        header = (record["directory"] / name).read_text().partition("\n")[0]
        assert "feature" not in header
    assert record["features"] == {}
    assert "features" not in show(record["directory"])
    assert not any(
        "extra_state" in name for name in saved(record["directory"], "best")["state_dict"]
    )


def test_off_is_bit_for_bit_what_bounds_that_nothing_reaches_are():
    words = (*WORDS, "trainer.checkpoint=both", "missing.train_rate=0.2")
    off = fit(*words, directory=Path("off"))
    far = fit(*words, "model.feature_clip=1e30", "model.gradient_clip=1e30", directory=Path("far"))
    mine, theirs = (saved(record["directory"])["state_dict"] for record in (off, far))
    assert same(mine, theirs)
    rows = table(Path("off/gradients.csv"))
    again = [
        {k: v for k, v in row.items() if k in rows[0]} for row in table(Path("far/gradients.csv"))
    ]
    assert rows == again
    assert far["features"]["verdict"].startswith("feature_clip 1e+30: nothing clamped, the largest")
    assert far["features"]["verdict"].endswith("gradient_clip 1e+30: no gradient clipped")
    near = fit(*words, *BOTH, directory=Path("near"))
    assert not same(saved(near["directory"])["state_dict"], mine)


def test_under_autocast():
    record = fit(*WORDS, *BOTH, "trainer.precision=bf16-mixed", "fusion=sum")
    assert 0 < record["features"]["feature_clip"]["clamped"] < 1
    assert all(
        0 < s["clipped"] <= 1 for s in record["features"]["gradient_clip"]["scopes"].values()
    )


def test_a_run_says_what_feature_clipping_did(capsys: pytest.CaptureFixture[str]):
    words = (*WORDS, "model.feature_clip=p95", "model.gradient_clip=p90", "trainer.checkpoint=both")
    assert cli.main(["train", *words]) == 0
    out = capsys.readouterr().out
    (directory,) = Path("outputs").iterdir()
    record = record_of(directory)
    said = record["features"]["verdict"]
    assert f"features {said}" in out
    assert summary({**record, "directory": directory}).count(said) == 1
    shown = " ".join(show(directory).split())
    assert said in shown
    bound = record["features"]["feature_clip"]["bound"]
    assert said.startswith(f"feature_clip p95 ({bound:.2g}): ")
    assert "% of features clamped, the largest was" in said
    # Used again, it clamps as it did.
    model = load(directory).model
    assert model.bounds[0].value == bound
    scopes = record["features"]["gradient_clip"]["scopes"]
    assert {n: each.value for n, each in model.bounds[1].items()} == {
        n: values["bound"] for n, values in scopes.items()
    }
    # Scored again: the test scores are those of the clamped model.
    assert cli.main(["eval", str(directory)]) == 0
    evaluated = next((directory / "eval").iterdir()).read_text()
    assert f"{record['test']['test/loss']:.6f}"[:7] in evaluated


def test_a_run_that_died_says_what_its_rows_say():
    directory = fit(*WORDS, *BOTH)["directory"]
    record = record_of(directory)
    final = record["features"]["verdict"]
    dead = Path(shutil.copytree(directory, "dead"))
    blank = feature_block({"feature_clip": FEATURE}, FEATURE, {})
    assert blank["verdict"] == f"feature_clip {FEATURE}"
    record |= {
        "status": "killed",
        "features": feature_block(
            record["config"]["model"], FEATURE, dict.fromkeys("abc", GRADIENT)
        ),
    }
    assert record["features"]["verdict"] != final
    (dead / "run.json").write_text(json.dumps(record))
    assert final in " ".join(show(dead).split())


def test_resuming_does_not_calibrate_again(monkeypatch: pytest.MonkeyPatch):
    words = (*WORDS, "model.feature_clip=p95", "trainer.checkpoint=both")
    directory = fit(*words, directory=Path("run"))["directory"]
    bound = record_of(directory)["features"]["feature_clip"]["bound"]

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("mmrun.train.calibrate_features", never)
    assert cli.main(["resume", "run", "trainer.max_epochs=3"]) == 0
    assert record_of(directory)["features"]["feature_clip"]["bound"] == bound
    assert float(saved(directory)["state_dict"]["model.feature_clip._extra_state"]) == bound


@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_are_clipped_in_units_of_the_steps_loss(scaled: bool):
    """16-mixed scales the loss; of four ranks each has the loss of its own quarter: four times its gradient."""
    made = build(point((*SMALL, f"model.gradient_clip={GRADIENT}")).config)
    module, batch = made.module, next(iter(made.loader("train", shuffle=True)))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    found: list[tuple[Tensor, Tensor]] = []
    for world, used in ((1, None), (4, scaler if scaled else None)):
        plugin = SimpleNamespace(scaler=used)
        module._trainer = SimpleNamespace(world_size=world, precision_plugin=plugin)  # pyright: ignore[reportAttributeAccessIssue]
        module.on_train_start()
        loss = module.training_step(batch, 0)
        assert loss is not None
        factor = world if used is None else scaler.scale(torch.tensor(float(world)))
        (loss * factor).backward()
        module.meter.end_step()
        weight = next(module.parameters())
        assert weight.grad is not None
        found.append((weight.grad / factor, module.meter.take(torch.zeros(1, 1))))
        module.zero_grad()
    assert 0 < found[0][1][0, 0] < 1
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-9)
