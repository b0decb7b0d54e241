"""Config -> objects: scopes, optimizer groups, what may be named, and every mistake before a run exists."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mmrun import compose
from mmrun.build import build, make, scopes_of
from mmrun.errors import UserError
from mmrun.fusion import Fusion
from tests.running import SMALL


def made(*overrides: str) -> Any:
    return build(compose.point(overrides).config)


def test_every_parameter_is_in_exactly_one_scope():
    built = made("fusion=attention", "encoder/text=lstm")
    scopes = built.module.pipeline.scopes
    assert list(scopes) == ["image", "audio", "text", "fusion", "objective"]
    named = {name: p for scope in scopes.values() for name, p in scope.items()}
    assert named == dict(built.module.named_parameters())
    for scope in ("image", "audio", "text"):
        assert all(name.startswith(f"model.encoders.{scope}.") for name in scopes[scope])
    assert all(name.startswith("model.fusion.") for name in scopes["fusion"])
    assert all(name.startswith("objective.") for name in scopes["objective"])


def test_a_scope_without_parameters_is_none():
    built = made("dataset=linear")
    assert list(built.module.pipeline.scopes) == ["objective"]


def test_tied_weights_are_shared():
    built = made(*SMALL)
    model, objective = built.module.model, built.module.objective
    a, b = model.encoders["a"], model.encoders["b"]
    tied: Any = a
    b.layers = tied.layers
    scopes = scopes_of(model, objective)
    assert set(scopes) == {"shared", "c", "objective"}
    assert len(scopes["shared"]) == len(list(a.parameters()))
    for parameter in model.encoders["c"].parameters():
        parameter.requires_grad = False
    assert "c" not in scopes_of(model, objective)


def groups(built: Any) -> list[dict[str, Any]]:
    return built.module.make_optimizer().param_groups


def test_vectors_are_not_decayed_and_scopes_have_their_own_rates():
    built = made(
        *SMALL, "fusion=sum", "optimizer.weight_decay=0.1", "optimizer.scopes.b.lr=0.5",
        "optimizer.scopes.fusion={lr: 0.25, weight_decay: 0.2}",
    )  # fmt: skip
    found: dict[int, tuple[float, float]] = {}
    for group in groups(built):
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    scopes = built.module.pipeline.scopes
    rates = {"b": 0.5, "fusion": 0.25}
    for scope, named in scopes.items():
        for name, parameter in named.items():
            decay = {"fusion": 0.2}.get(scope, 0.1) if parameter.ndim > 1 else 0.0
            assert found[id(parameter)] == (rates.get(scope, 3e-3), decay), name
    assert len(found) == len(list(built.module.parameters()))


def test_equal_settings_are_one_group():
    assert len(groups(made(*SMALL, "optimizer.weight_decay=0.1"))) == 2
    assert len(groups(made(*SMALL, "optimizer=sgd"))) == 1


def test_widths_are_derived():
    built = made(*SMALL, "encoder/a=identity", "encoder.b.dim=5", "fusion=concat")
    head = built.module.objective.head[0]
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (16 + 5 + 32, 8)


def test_initialisation_follows_the_seed_and_data_the_data_seed():
    def weights(built: Any) -> torch.Tensor:
        return torch.cat([p.detach().ravel() for p in built.module.parameters()])

    def data(built: Any) -> torch.Tensor:
        return built.dataset.split("train").batch(torch.arange(5)).inputs["a"]

    one, two, three = (
        made(*SMALL),
        made(*SMALL, "seed=1", "data_seed=0"),
        made(*SMALL, "data_seed=1"),
    )
    torch.manual_seed(99)
    again = made(*SMALL)
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(two))
    assert torch.equal(weights(one), weights(three))
    assert torch.equal(data(one), data(two))
    assert not torch.equal(data(one), data(three))
    assert one.loader("train", shuffle=True).order().tolist() != list(range(240))
    order = [each.loader("train", shuffle=True).order().tolist() for each in (one, two, three)]
    assert order[0] == order[1] != order[2]


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ([], 4 * 20),
        (["dataset.batch_size=16"], 15 * 20),
        (["dataset.batch_size=all"], 20),
        (["trainer.accumulate_grad_batches=3"], 2 * 20),
        (["trainer.max_steps=7"], 7),
        (["trainer.max_steps=7", "trainer.max_epochs=1"], 4),
        (["trainer.max_steps=7", "trainer.max_epochs=-1"], 7),
        (["trainer.limit_train_batches=2"], 2 * 20),
        (["trainer.limit_train_batches=0.5"], 2 * 20),
    ],
)
def test_steps_are_planned(overrides: list[str], steps: int):
    assert made(*SMALL, *overrides).module.total_steps == steps


def test_the_clip_s_settings_are_hyperparameters():
    assert dict(made(*SMALL, "clip=0.5").module.hparams) == {
        "gradient_clip_val": 0.5,
        "gradient_clip_algorithm": "norm",
    }
    assert made(*SMALL).module.hparams["gradient_clip_val"] == math.inf


def test_a_nested_target_is_not_called():
    """Only what a group names is made; a mapping inside a knob stays a mapping."""
    node = {"_target_": "mmrun.fusion.sum.Sum", "dim": {"_target_": "mmrun.fusion.concat.Concat"}}
    with pytest.raises(UserError, match=r"fusion\.dim has the wrong type"):
        make(node, "fusion", Fusion)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "names no _target_"),
        ({"_target_": "mmrun.fusion.nothing.Sum"}, "cannot be loaded"),
        ({"_target_": "mmrun.fusion.sum.Nothing"}, "cannot be loaded"),
        ({"_target_": "mmrun.encoders.mlp.MLP"}, "is no Fusion"),
        ({"_target_": "mmrun.build.build"}, "is no Fusion"),
        ({"_target_": "mmrun.fusion.sum.Sum", "dmi": 3}, "takes no dmi.*dim"),
        ({"_target_": "mmrun.fusion.sum.Sum", "dim": "x"}, "an integer"),
    ],
)
def test_a_group_that_cannot_be_made(node: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        make(node, "fusion", Fusion)


# Mistakes in values, all before a run exists

MISTAKES = [
    ("clip=-0.5", "clip.threshold"),
    ("clip=0", "clip.threshold"),
    ("clip=nan", "clip.threshold"),
    ("clip=norm clip.p=0", "clip.p"),
    ("clip=norm clip.per=layer", "clip.per"),
    ("clip=norm clip.threshold=high", "clip.threshold"),
    ("optimizer.lr=-1", "learning rate"),
    ("optimizer.lr=fast", "optimizer.lr"),
    ("optimizer.scopes.d.lr=1", "no scope d"),
    ("optimizer.scopes.a.momentum=1", "momentum"),
    ("optimizer.scopes.a.lr=fast", "optimizer.scopes.a.lr"),
    ("encoder/a=cnn", "vector"),
    ("objective=regression", "class"),
    ("fusion=attention fusion.heads=5", "fusion"),
    ("objective.hidden=[0]", "objective.hidden"),
    ("seed=one", "seed"),
    ("seed=1.5", "seed"),
    ("threads=0", "threads"),
    ("dataset.batch_size=0", "dataset.batch_size"),
    ("dataset.batch_size=some", "dataset.batch_size"),
    ("dataset.classes=1", "classes"),
    ("missing.train_rate=1", "missing.train_rate"),
    ("missing.test_rate=-0.1", "missing.test_rate"),
    ("model.feature_clip=0", "model.feature_clip"),
    ("model.gradient_clip=-1", "model.gradient_clip"),
    ("model.straight_through=1", "model.straight_through"),
    ("schedule.warmup=2", "schedule.warmup"),
    ("schedule=step schedule.at=0.5", "schedule.at"),
    ("trainer.max_epochs=0", "trainer.max_epochs"),
    ("trainer.max_epochs=2.5", "trainer.max_epochs"),
    ("trainer.max_steps=0", "trainer.max_steps"),
    ("trainer.max_time=soon", "trainer.max_time"),
    ("trainer.patience=0", "trainer.patience"),
    ("trainer.patience=.nan", "trainer.patience"),
    ("trainer.precision=64", "trainer.precision"),
    ("trainer.precision=16-mixed", "16-mixed"),
    ("trainer.val_check_interval=0", "trainer.val_check_interval"),
    ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches"),
    ("trainer.devices=0", "trainer.devices"),
    ("trainer.checkpoint=all", "trainer.checkpoint"),
    ("trainer.accumulate_grad_batches=0", "accumulate_grad_batches"),
]


@pytest.mark.parametrize(("given", "hint"), MISTAKES)
def test_a_mistake_is_told_before_anything_exists(given: str, hint: str):
    with pytest.raises(UserError) as caught:
        made("dataset=synthetic", "dataset.samples=100", *given.split())
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(Path.cwd().iterdir()) == []


def test_more_samples_than_there_are_is_the_whole_set():
    assert made(*SMALL, "dataset.batch_size=1000000").batch_size == 240
    assert made(*SMALL, "dataset.batch_size=all").batch_size == 240
