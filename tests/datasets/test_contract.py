"""Every dataset of conf/dataset: the YAML fits the constructor, the splits fit the spec."""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from mmrun.datasets import Dataset, SplitName
from mmrun.errors import UserError
from mmrun.spec import KINDS

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(path.stem for path in (CONF / "dataset").glob("*.yaml"))
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
NOT_KNOBS = ("batch_size", "encoders", "objective")


def config(option: str) -> dict[str, Any]:
    """An option with the options it builds on, merged as Hydra does."""
    node = OmegaConf.load(CONF / "dataset" / f"{option}.yaml")
    plain: Any = OmegaConf.to_container(node)
    own = {key: value for key, value in plain.items() if key != "defaults"}
    merged = OmegaConf.create({})
    for entry in plain.get("defaults", ["_self_"]):
        merged = OmegaConf.merge(merged, own if entry == "_self_" else config(entry))
    result: Any = OmegaConf.to_container(merged)
    return result


def constructor(option: str) -> Any:
    module, name = config(option)["_target_"].rsplit(".", 1)
    return getattr(__import__(module, fromlist=[name]), name)


@cache
def build(option: str, seed: int = 0, use: str = "all") -> Dataset:
    knobs = {k: v for k, v in config(option).items() if k not in (*NOT_KNOBS, "_target_", "use")}
    return constructor(option)(seed=seed, use=use, **knobs)


# Sets that read a folder or a download of the user's have no data here.
EMBEDDED = [o for o in OPTIONS if not {"root", "path"} & set(config(o))]

# Presets of one class differ in numbers alone: the slower tests take the first of each class.
ONE_OF_EACH = sorted({config(o)["_target_"]: o for o in reversed(EMBEDDED)}.values())


def test_there_are_options_to_test():
    assert {"digits3", "synthetic", "linear"} <= set(EMBEDDED)
    assert {"arrays", "avmnist"} <= set(OPTIONS) - set(EMBEDDED)


@pytest.mark.parametrize("option", OPTIONS)
def test_yaml_fits_the_constructor(option: str):
    node = config(option)
    first = (CONF / "dataset" / f"{option}.yaml").read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
    assert node["batch_size"] == "all" or node["batch_size"] > 0
    parameters = inspect.signature(constructor(option)).parameters
    knobs = set(node) - {*NOT_KNOBS, "_target_"}
    assert knobs <= set(parameters)
    assert set(parameters) <= knobs | {"seed"}, "a knob that the YAML does not show"
    assert set(node["encoders"]) <= set(node["modalities"])
    for encoder in node["encoders"].values():
        assert (CONF / "encoder" / f"{encoder}.yaml").is_file()
    assert (CONF / "objective" / f"{node['objective']}.yaml").is_file()


@pytest.mark.parametrize("option", EMBEDDED)
def test_splits_fit_the_spec(option: str):
    data = build(option)
    assert list(data.spec.modalities) == list(config(option)["modalities"])
    for name in SPLITS:
        split = data.split(name)
        assert len(split) == data.spec.sizes[name] > 0
        index = torch.tensor([0, len(split) - 1, 0])
        batch = split.batch(index)
        assert set(batch.inputs) == set(batch.present) == set(data.spec.modalities)
        for modality, spec in data.spec.modalities.items():
            values = batch.inputs[modality]
            assert spec.kind in KINDS
            assert values.shape == (3, *spec.shape)
            assert values.dtype == (torch.int64 if spec.kind == "text" else torch.float32)
            assert values.isfinite().all()
            assert batch.present[modality].dtype == torch.bool
            assert batch.present[modality].shape == (3,)
            assert (modality in batch.mask) == spec.padded
            if spec.padded:
                assert batch.mask[modality].dtype == torch.bool
                assert batch.mask[modality].shape == (3, spec.shape[0])
                assert batch.mask[modality].any(1).all()
        assert batch.index.tolist() == index.tolist()
        assert torch.equal(batch.target[0], batch.target[2])
        if data.spec.target == "class":
            assert batch.target.dtype == torch.int64
            assert batch.target.shape == (3,)
        elif data.spec.target == "value":
            assert batch.target.dtype == torch.float32
            assert batch.target.shape == (3, *data.spec.target_shape)
        assert split.group.dtype == torch.int64
        assert split.group.shape == (len(split),)


@pytest.mark.parametrize("option", EMBEDDED)
def test_no_group_is_in_two_splits(option: str):
    groups = [set(build(option).split(name).group.tolist()) for name in SPLITS]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]


@pytest.mark.parametrize("option", EMBEDDED)
def test_class_counts_are_those_of_train(option: str):
    data = build(option)
    if data.spec.target != "class":
        pytest.skip("the target is no class")
    train = data.split("train")
    target = train.batch(torch.arange(len(train))).target
    counts = torch.bincount(target, minlength=data.spec.classes)
    assert data.spec.class_counts == tuple(counts.tolist())
    assert len(data.spec.class_names) in (0, data.spec.classes)


def everything(data: Dataset, name: SplitName):
    split = data.split(name)
    return split.batch(torch.arange(len(split)))


@pytest.mark.parametrize("option", ONE_OF_EACH)
def test_equal_seed_equal_data_and_other_seed_other_data(option: str):
    first, other = build(option), build(option, seed=1)
    again = build.__wrapped__(option)
    for name in SPLITS:
        a, b, c = (everything(data, name) for data in (first, again, other))
        assert torch.equal(a.target, b.target)
        for modality in a.inputs:
            assert torch.equal(a.inputs[modality], b.inputs[modality])
            same_shape = a.inputs[modality].shape == c.inputs[modality].shape
            assert not same_shape or not torch.equal(a.inputs[modality], c.inputs[modality])


@pytest.mark.parametrize("option", ONE_OF_EACH)
def test_fewer_modalities_in_use_changes_nothing_else(option: str):
    data = build(option)
    for modality in data.spec.modalities:
        alone = build(option, use=modality)
        assert list(alone.spec.modalities) == [modality]
        for name in SPLITS:
            a, b = everything(data, name), everything(alone, name)
            assert torch.equal(a.inputs[modality], b.inputs[modality])
            assert torch.equal(a.target, b.target)


@pytest.mark.parametrize("option", ONE_OF_EACH)
def test_unknown_modality_in_use(option: str):
    with pytest.raises(UserError, match=r"dataset\.use names a modality"):
        build(option, use="imag")
