"""linear: the weights are known, so least squares must find them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmrun.datasets.linear import Linear
from mmrun.errors import UserError

MODALITIES = {
    "a": {"kind": "vector", "weights": [1.0, -2.0]},
    "b": {"kind": "vector", "weights": [0.5]},
}


def everything(data: Linear, name):
    split = data.split(name)
    batch = split.batch(torch.arange(len(split)))
    x = torch.cat([batch.inputs[m] for m in batch.inputs], 1)
    return torch.cat([x, torch.ones(len(x), 1)], 1).double().numpy(), batch.target.double().numpy()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_least_squares_recovers_the_weights(split):
    x, y = everything(Linear(seed=3, modalities=MODALITIES, bias=0.25), split)
    found = np.linalg.lstsq(x, y, rcond=None)[0][:, 0]
    np.testing.assert_allclose(found, [1.0, -2.0, 0.5, 0.25], atol=1e-5)


def test_targets_are_exact_by_hand():
    data = Linear(seed=0, modalities=MODALITIES)
    batch = data.split("train").batch(torch.arange(3))
    a, b = batch.inputs["a"], batch.inputs["b"]
    assert set(a.unique().tolist()) <= {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert torch.equal(batch.target, a[:, :1] - 2 * a[:, 1:] + 0.5 * b)


@pytest.mark.parametrize("use", ["all", ["b"]])
def test_no_splits_share_a_sample(use):
    data = Linear(seed=0, modalities=MODALITIES, samples=200, use=use)
    rows = {name: {tuple(row) for row in everything(data, name)[0]} for name in data.spec.sizes}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not rows[one] & rows[other]


def test_noise_has_the_size_asked_for():
    x, y = everything(Linear(seed=0, modalities=MODALITIES, noise=0.3, samples=4000), "train")
    residual = y - x @ np.array([[1.0], [-2.0], [0.5], [0.0]])
    assert residual.std() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize(
    "modalities",
    [
        {"a": "vector"},
        {"a": {"kind": "image", "weights": [1.0]}},
        {"a": {"kind": "vector", "weights": []}},
        {"a": {"kind": "vector", "weights": ["1"]}},
        {"a": {"kind": "vector", "weights": [1.0], "dim": 3}},
        {"A": {"kind": "vector", "weights": [1.0]}},
        {"fusion": {"kind": "vector", "weights": [1.0]}},
        {},
    ],
)
def test_wrong_modalities(modalities):
    with pytest.raises(UserError):
        Linear(seed=0, modalities=modalities)
