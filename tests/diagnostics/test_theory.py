"""diagnostics=theory in trainings: it changes nothing, its numbers are those worked out by hand, resuming continues it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmrun import cli, compose, point
from mmrun.balance import Balance
from mmrun.build import build
from mmrun.diagnostics import Aside, Diagnostics
from mmrun.diagnostics._tail import hill
from mmrun.encoders.mlp import MLP
from mmrun.errors import UserError
from mmrun.module import MultimodalModule
from tests.running import SMALL, column, cpu_seconds, fit, record_of, same, saved, table
from tests.test_resume import PerLoss as Plain
from tests.test_resume import interrupted

pytestmark = pytest.mark.trains

# 240 training samples: 15 batches an epoch, 30 steps. Measured at steps that are log points and at others.
WORDS = (
    *SMALL,
    "dataset.batch_size=16",
    "trainer.max_epochs=2",
    "trainer.checkpoint=both",
    "trainer.log_every_n_steps=5",
    "clip=0.5",
)
THEORY = ("diagnostics=theory", "diagnostics.every=3", "diagnostics.tail=0.4")
RANDOM = "missing.train_rate=0.3"  # each step draws numbers
PAIRS = ("a/b", "a/c", "b/c")


class PerLoss(Balance):
    """Manual optimization; counts what it sees, as a method that keeps scores would."""

    per_loss = True

    def __init__(self) -> None:
        self.seen = 0

    def losses(self, batch: Any, output: Any) -> dict[str, Tensor]:  # noqa: ARG002 - contract
        self.seen += 1
        return {"small": 0.01 * self.seen * output.fused.square().mean()}


def per_loss(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("mmrun.build.balance", lambda node: PerLoss())  # noqa: ARG005


def manual(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("mmrun.build.balance", lambda node: Plain())  # noqa: ARG005


def with_state(patch: pytest.MonkeyPatch) -> None:
    """An encoder with everything that a forward pass can change: running statistics and random numbers."""
    original = MLP.__init__

    def made(self: MLP, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.layers = nn.Sequential(*self.layers, nn.BatchNorm1d(self.dim), nn.Dropout(0.3))

    patch.setattr(MLP, "__init__", made)


def nothing(patch: pytest.MonkeyPatch) -> None:
    pass


def changed(*words: str) -> list[str]:
    """WORDS, with these in the place of those that set the same."""
    keys = {word.partition("=")[0] for word in words}
    return [*(word for word in WORDS if word.partition("=")[0] not in keys), *words]


CONFIGS: dict[str, tuple[list[str], Callable[[pytest.MonkeyPatch], None]]] = {
    "plain": ([], nothing),
    "state": ([RANDOM, "optimizer=momentum"], with_state),
    "accumulated": ([RANDOM, "trainer.accumulate_grad_batches=2"], nothing),
    "bf16": (["trainer.precision=bf16-mixed"], nothing),
    "double": ([RANDOM, "trainer.precision=64-true"], nothing),
    "per loss": (["fusion=sum", "trainer.accumulate_grad_batches=2"], per_loss),
    "manual": (["trainer.accumulate_grad_batches=4", RANDOM], manual),
    "sums": (["objective.reduction=sum"], nothing),
    "between": (["trainer.val_check_interval=4", "fusion=attention"], nothing),
}


def theory_of(row: dict[str, str]) -> dict[str, str]:
    return {k: v for k, v in row.items() if k.startswith("theory/")}


def without_theory(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The rows as they would be without diagnostics: a row that has nothing else is not there."""
    kept = [{k: v for k, v in row.items() if not k.startswith("theory/")} for row in rows]
    return [row for row in kept if row["train/loss"] or row["val/loss"]]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_is_the_same_with_and_without(name: str, monkeypatch: pytest.MonkeyPatch):
    words, prepare = CONFIGS[name]
    prepare(monkeypatch)
    plain = fit(*changed(*words), directory=Path("plain"))
    measured = fit(*changed(*words, *THEORY), directory=Path("measured"))
    assert plain["id"] == measured["id"]
    assert plain["status"] == measured["status"] == "finished"
    for key in ("metrics", "test", "test_last", "train_eval", "clip", "steps", "stability"):
        assert plain[key] == measured[key], key
    rows = table(Path("measured/metrics.csv"))
    assert without_theory(rows) == table(Path("plain/metrics.csv"))
    assert table(Path("measured/gradients.csv")) == table(Path("plain/gradients.csv"))
    a, b = saved(Path("plain")), saved(Path("measured"))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "rng", "clip", "loops"):
        assert same(a[key], b[key]), key
    assert set(b["callbacks"]) - set(a["callbacks"]) == {"Diagnosis"}
    steps = measured["steps"]
    due = [row for row in rows if row["theory/smoothness"]]
    assert [int(row["step"]) for row in due] == list(range(3, steps + 1, 3))
    for row in due:
        values = {k: float(v) for k, v in theory_of(row).items() if v}
        tails = [name for name in values if "tail_index" in name]
        assert len(values) - len(tails) == 5 + len(PAIRS)
        assert len(tails) in (0, 1 + len(measured["clip"]["scopes"]))
        assert all(math.isfinite(v) for k, v in values.items() if k != "theory/noise_scale"), row
        assert values["theory/smoothness"] > 0
        assert values["theory/smoothness_norm"] > 0
        assert all(-1.001 < values[f"theory/cosine/{pair}"] < 1.001 for pair in PAIRS)


def test_the_columns():
    point_ = compose.point([*SMALL, "diagnostics=theory", "fusion=sum"])
    columns = build(point_.config).diagnostics.columns
    scoped = [f"theory/tail_index/{s}" for s in ("a", "b", "c", "fusion", "objective")]
    own = [
        f"theory/{name}"
        for name in (
            *("noise_scale", "gradient_variance", "gradient_square"),
            *("smoothness", "smoothness_norm"),
        )
    ]
    assert list(columns) == [
        "theory/tail_index", *scoped, *own, *(f"theory/cosine/{pair}" for pair in PAIRS)
    ]  # fmt: skip
    one = build({**point_.config, "encoder": point_.config["encoder"]} | _using("a"))
    assert not [name for name in one.diagnostics.columns if "cosine" in name]
    assert build(compose.point(SMALL).config).diagnostics.columns == ()


def _using(*modalities: str) -> dict[str, Any]:
    """The part of a config that leaves these modalities only."""
    words = [*SMALL, "diagnostics=theory", f"dataset.use=[{','.join(modalities)}]"]
    config = compose.point(words).config
    return {key: config[key] for key in ("dataset", "encoder")}


def test_a_single_modality_trains():
    fit(*changed(*THEORY, "dataset.use=[a]", "trainer.max_epochs=1"), directory=Path("run"))
    rows = table(Path("run/metrics.csv"))
    assert not [name for name in theory_of(rows[0]) if "cosine" in name]
    assert sum(bool(row["theory/smoothness"]) for row in rows) == 5


# What the numbers are


def gradients_at(module: MultimodalModule, batch: Any) -> list[Tensor]:
    """Of the training loss, the plain way."""
    module.zero_grad()
    sum(module.losses(batch, module(batch)).values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    return [p.new_zeros(p.shape) if p.grad is None else p.grad.clone() for p in module.parameters()]


def flat(tensors: Any) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def test_one_step_of_least_squares_by_hand():
    """A quadratic loss: its Hessian along the step that was taken; noise and conflict at the weights it started from."""
    words = ["dataset=linear", "logger=none", "optimizer=momentum", "optimizer.lr=0.3", "clip=0.1"]
    words += ["trainer.precision=64-true", "trainer.max_steps=1", "trainer.checkpoint=both"]
    words += ["diagnostics=theory", "diagnostics.every=1", "diagnostics.parts=8"]
    words += ["dataset.noise=0.5", "schedule=constant"]
    record = fit(*words, directory=Path("run"))
    (row,) = [r for r in table(Path("run/metrics.csv")) if r["theory/smoothness"]]
    found = {name: float(value) for name, value in theory_of(row).items() if value}
    built = build(record["config"])
    module = built.module
    loader = built.loader("train", shuffle=True)
    loader.set_epoch(0)
    (batch,) = loader
    x = torch.cat([batch.inputs[m] for m in sorted(batch.inputs)], dim=1).double()
    y = batch.target.double()
    batch = batch.take(slice(None))
    batch.inputs = {k: v.double() for k, v in batch.inputs.items()}
    batch.target = y
    design = torch.cat((x, torch.ones(len(x), 1, dtype=x.dtype)), dim=1)
    hessian = 2 * design.T @ design / len(x)
    names = [name for name, _ in module.named_parameters()]
    assert [tuple(p.shape) for p in module.parameters()] == [(1, 3), (1,)], names
    start, end = flat(module.parameters()), flat(saved(Path("run"))["state_dict"][n] for n in names)
    step = end - start
    assert step.norm() == pytest.approx(0.3 * 0.1), "the clipped one"
    each = 2 * (design @ start - y.flatten()).unsqueeze(1) * design  # [B, 4]: per-sample gradients
    mean = each.mean(0)
    assert torch.allclose(mean, flat(gradients_at(module, batch)))
    assert found["theory/smoothness"] == pytest.approx(
        float((hessian @ step).norm() / step.norm()), rel=1e-6
    )
    assert found["theory/smoothness_norm"] == pytest.approx(float(mean.norm()))
    assert float(row["grad/norm"]) == pytest.approx(float(mean.norm()))
    parts = each.reshape(8, -1, 4).mean(1)
    size = len(x) / 8
    variance = float(size * (parts - mean).square().sum() / 7)
    square = float(mean.square().sum()) - variance / len(x)
    assert found["theory/gradient_variance"] == pytest.approx(variance)
    assert found["theory/gradient_square"] == pytest.approx(square)
    assert found["theory/noise_scale"] == pytest.approx(variance / square)
    assert "theory/tail_index" not in found, "too few norms"
    # The head sees a in two columns, b in one; alone, each leaves the others at zero, and they share the bias only.
    bias = {
        name: float((2 * (design[:, own] @ start[own] - y.flatten())).mean())
        for name, own in (("a", [0, 1, 3]), ("b", [2, 3]))
    }
    assert found["theory/cosine/a/b"] == pytest.approx(math.copysign(1, bias["a"] * bias["b"]))


def test_the_tail_index_is_that_of_the_norms_in_the_file():
    fit(
        *changed(*THEORY, "diagnostics.window=25", "trainer.val_check_interval=15"),
        directory=Path("run"),
    )
    rows = table(Path("run/metrics.csv"))
    assert column(Path("run/gradients.csv"), "step").tolist() == list(range(1, 31))
    seen = []
    for row in rows:
        if not row["theory/tail_index"]:
            continue
        step = int(row["step"])
        seen.append(step)
        for end in ("", "/a", "/objective"):
            norms = column(Path("run/gradients.csv"), f"grad/norm{end}")[max(0, step - 25) : step]
            expected = hill(norms, int(0.4 * len(norms)))
            assert float(row[f"theory/tail_index{end}"]) == pytest.approx(expected, rel=1e-5)
    assert seen == [25, 30], (
        "log points with a measured step before them, and ten norms in the tail"
    )


def test_opposed_modalities_have_a_cosine_of_minus_one(monkeypatch: pytest.MonkeyPatch):
    """A loss that wants of the shared bias one thing where a is there and the opposite where it is not."""
    from mmrun.objectives.classification import Classification

    def opposed(self: Classification, batch: Any, output: Any) -> dict[str, Tensor]:  # noqa: ARG001
        alone = output.tokens["a"].mask.any(1) & ~output.tokens["b"].mask.any(1)
        sign = torch.where(alone, 1.0, -1.0).unsqueeze(1)
        weights = torch.arange(1.0, 1.0 + output.prediction.shape[1])
        return {"opposed": (sign * weights * output.prediction).mean()}

    monkeypatch.setattr(Classification, "losses", opposed)
    fit(*changed(*THEORY, "trainer.max_steps=6"), directory=Path("run"))
    for pair, expected in (("a/b", -1), ("a/c", -1), ("b/c", 1)):
        assert column(Path("run/metrics.csv"), f"theory/cosine/{pair}") == pytest.approx(
            [expected] * 2, abs=1e-9
        )


# Resuming


@pytest.mark.parametrize("name", ["plain", "state", "accumulated", "manual", "between"])
def test_resumed_rows_are_those_of_a_run_that_nothing_interrupted(
    name: str, monkeypatch: pytest.MonkeyPatch
):
    own, prepare = CONFIGS[name]
    prepare(monkeypatch)
    words = changed(*own, *THEORY, "trainer.max_epochs=3")
    whole = fit(*words, directory=Path("whole"))
    directory = Path("parts").absolute()
    interrupted(lambda: fit(*words, directory=directory), "before a step", 26)
    assert 0 < saved(directory)["global_step"] < whole["steps"]
    point.run(directory, resume=True)
    for file in ("metrics.csv", "gradients.csv"):
        assert table(directory / file) == table(Path("whole") / file)
    a, b = saved(Path("whole")), saved(directory)
    for key in ("state_dict", "rng"):
        assert same(a[key], b[key]), key
    assert same(a["callbacks"]["Diagnosis"], b["callbacks"]["Diagnosis"])
    assert len(a["callbacks"]["Diagnosis"]["norms"]) == whole["steps"]


def test_resume_takes_its_settings_and_not_another_option(capsys: pytest.CaptureFixture[str]):
    fit(*changed(*THEORY, "trainer.max_epochs=1"), directory=Path("run"))
    assert cli.main(["resume", "run", "diagnostics=none"]) == 2
    assert "keeps the option of every group" in capsys.readouterr().err
    assert cli.main(["resume", "run", "diagnostics.evry=1"]) == 2
    assert "diagnostics.evry" in capsys.readouterr().err
    words = ["trainer.max_epochs=2", "diagnostics.every=5", "diagnostics.window=30"]
    assert cli.main(["resume", "run", *words]) == 0
    steps = [int(r["step"]) for r in table(Path("run/metrics.csv")) if r["theory/smoothness"]]
    assert steps == [3, 6, 9, 12, 15, 20, 25, 30]


# Runs and configs


def test_a_run_from_before_there_were_any(capsys: pytest.CaptureFixture[str]):
    """Its config has no such group: it is read, restored, scored and resumed."""
    fit(*changed("trainer.max_epochs=1"), directory=Path("run"))
    record = record_of(Path("run"))
    del record["config"]["diagnostics"], record["choices"]["diagnostics"]
    Path("run/run.json").write_text(json.dumps(record))
    assert type(build(record["config"]).diagnostics) is Diagnostics
    for words in (["show", "run"], ["compare", "run"], ["eval", "run"]):
        assert cli.main(words) == 0, words
    assert cli.main(["resume", "run", "trainer.max_epochs=2"]) == 0
    capsys.readouterr()
    assert cli.main(["resume", "run", "diagnostics.every=2"]) == 2
    assert "the run has no setting diagnostics.every" in capsys.readouterr().err
    record["config"]["diagnostics"] = None
    Path("run/run.json").write_text(json.dumps(record))
    assert cli.main(["eval", "run"]) == 2
    assert "the config has no diagnostics" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("every=0", "1 or more"),
        ("window=0", "100 or more"),
        ("window=99", "100 or more"),
        ("tail=1", "below 1"),
        ("tail=0", "above 0"),
        ("parts=1", "2 or more"),
        ("decay=1", "decay < 1"),
        ("every=often", "an integer"),
    ],
)
def test_knobs_out_of_range(word: str, said: str):
    with pytest.raises(UserError, match=f"diagnostics.*{said}"):
        build(compose.point([*SMALL, "diagnostics=theory", f"diagnostics.{word}"]).config)


def test_a_sweep_over_it_is_one_run():
    assert cli.main(["train", "-m", *SMALL, "trainer=smoke", "diagnostics=none,theory"]) == 0
    (sweep,) = Path("outputs").iterdir()
    assert (
        len([each for each in sweep.iterdir() if each.is_dir() and (each / "run.json").exists()])
        == 1
    )


# Ranks


def test_ranks_measure_their_own_share_and_log_the_mean():
    """Nothing waits for ever, nothing differs from a training without, and the norm is the mean of two."""
    words = [*SMALL, "dataset.batch_size=all", "clip=0.5", "trainer=ddp", "trainer.max_epochs=3"]
    words += ["trainer.checkpoint=both", "optimizer=sgd", "optimizer.lr=0.5", "schedule=constant"]
    plain = fit(*words, directory=Path("plain"))
    theory = ["diagnostics=theory", "diagnostics.every=1"]
    measured = fit(*words, *theory, directory=Path("measured").absolute())
    assert plain["status"] == measured["status"] == "finished"
    rows = table(Path("measured/metrics.csv"))
    assert without_theory(rows) == table(Path("plain/metrics.csv"))
    assert same(saved(Path("plain"))["state_dict"], saved(Path("measured"))["state_dict"])
    built = build(measured["config"])
    norms = []
    for rank in (0, 1):
        loader = built.loader("train", shuffle=True, rank=rank, world=2)
        loader.set_epoch(0)
        (batch,) = loader
        norms.append(float(flat(gradients_at(built.module, batch)).norm()))
    assert norms[0] != norms[1]
    logged = column(Path("measured/metrics.csv"), "theory/smoothness_norm")
    assert len(logged) == 3
    assert logged[0] == pytest.approx(np.mean(norms), rel=1e-5)


# Cost


def test_a_measurement_costs_some_steps():
    """Nine passes where a step has one; a wide margin, since a busy machine is no clock."""
    built = build(compose.point([*SMALL, *THEORY]).config)
    module, diagnostics = built.module, built.diagnostics
    batch = built.dataset.split("train").batch(torch.arange(64))

    def loss(b: Any) -> Tensor:
        return sum(module.losses(b, module(b)).values())  # pyright: ignore[reportReturnType]

    def step() -> None:
        for _ in range(20):
            gradients_at(module, batch)

    def measurement() -> None:
        for _ in range(20):
            aside = Aside(loss, module, sums=False)
            diagnostics.before(aside, batch)
            diagnostics.after(aside, batch)

    assert cpu_seconds(measurement) < 40 * cpu_seconds(step)
