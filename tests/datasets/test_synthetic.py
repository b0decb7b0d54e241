"""synthetic: who knows what of the class, and the tails of the noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from mmrun.datasets.synthetic import Synthetic
from mmrun.errors import UserError

CLEAN = {"kind": "vector", "dim": 8, "noise": 0.05}
THREE = {"a": CLEAN, "b": CLEAN, "c": CLEAN}


def both(data: Synthetic, modalities):
    parts = []
    for name in ("train", "test"):
        split = data.split(name)
        batch = split.batch(torch.arange(len(split)))
        parts.append(
            (torch.cat([batch.inputs[m] for m in modalities], 1).numpy(), batch.target.numpy())
        )
    return parts


def linear_accuracy(data: Synthetic, modalities) -> float:
    (x, y), (x_test, y_test) = both(data, modalities)
    return float(LinearDiscriminantAnalysis().fit(x, y).score(x_test, y_test))


def test_redundant_each_modality_knows_the_class():
    data = Synthetic(seed=0, modalities=THREE, samples=1200)
    assert all(linear_accuracy(data, [m]) > 0.98 for m in THREE)


def test_redundant_at_the_default_noise_modalities_help_each_other():
    data = Synthetic(seed=0, modalities=dict.fromkeys("abc", "vector"), samples=4000)
    alone = max(linear_accuracy(data, [m]) for m in "abc")
    assert 0.4 < alone < 0.9
    assert linear_accuracy(data, list("abc")) > alone + 0.1


def test_unique_each_modality_knows_one_bit_of_three():
    data = Synthetic(seed=0, modalities=THREE, samples=1600, interaction="unique")
    for m in THREE:  # one bit of eight classes leaves four
        assert linear_accuracy(data, [m]) == pytest.approx(0.25, abs=0.06)
    assert linear_accuracy(data, ["a", "b"]) == pytest.approx(0.5, abs=0.06)
    assert linear_accuracy(data, list(THREE)) > 0.98


@pytest.mark.parametrize("classes", [2, 3])
def test_synergistic_only_all_modalities_together_know(classes):
    data = Synthetic(
        seed=0, modalities=THREE, samples=3000, classes=classes, interaction="synergistic"
    )
    train, test = both(data, ["a", "b", "c"])
    error = 3 * math.sqrt(0.25 / len(test[1]))
    # The nearest direction gives each modality's code; the class is their sum, modulo the classes.
    codes = []
    for start in (0, 8, 16):
        centres = train[0][:1, start : start + 8]
        for row in train[0][:, start : start + 8]:
            if np.linalg.norm(centres - row, axis=1).min() > 0.6:
                centres = np.vstack([centres, row])
        assert len(centres) == classes
        distance = np.linalg.norm(test[0][:, None, start : start + 8] - centres, axis=2)
        codes.append(distance.argmin(1))
    joint = (codes[0] * classes + codes[1]) * classes + codes[2]
    for cell in np.unique(joint):
        assert len(np.unique(test[1][joint == cell])) == 1, "the codes do not decide the class"
    for pair in (codes[0] * classes + codes[1], codes[1] * classes + codes[2]):
        guess = [np.bincount(test[1][pair == cell]).max() for cell in np.unique(pair)]
        # The best guess per cell of the test itself is above chance by its own noise.
        assert sum(guess) / len(test[1]) < 1 / classes + 2.5 * error
    for pair in (["a"], ["b"], ["c"], ["a", "b"], ["b", "c"], ["a", "c"]):
        assert abs(linear_accuracy(data, pair) - 1 / classes) < error


def residuals(**settings) -> np.ndarray:
    entry = {"kind": "vector", "signal": 0.0, "noise": 1.0, "dim": 20, **settings}
    data = Synthetic(seed=0, modalities={"a": entry}, samples=5000)
    return both(data, ["a"])[0][0]


def test_noise_tails_outliers_and_scale():
    gaussian = residuals()
    assert gaussian.std() == pytest.approx(1, rel=0.02)
    assert abs(gaussian).max() < 6
    heavy = residuals(tail=2.0)
    # Student's t with 2 degrees of freedom: P(|t| > 4.303) = 0.05.
    assert (abs(heavy) > 4.303).mean() == pytest.approx(0.05, abs=0.005)
    rows = np.linalg.norm(residuals(outliers=0.1), axis=1)
    assert (rows > 30).mean() == pytest.approx(0.1, abs=0.02)
    np.testing.assert_allclose(residuals(scale=5.0), 5 * gaussian, rtol=1e-6)


def test_imbalance_counts():
    data = Synthetic(seed=0, modalities=THREE, classes=4, samples=2000, imbalance=27.0)
    # 300 of each class, then 300 / 3, 300 / 9, 300 / 27.
    assert data.spec.class_counts == (300, 100, 33, 11)
    target = data.split("test").batch(torch.arange(500)).target
    assert torch.bincount(target).tolist() == [125] * 4


@pytest.mark.parametrize(
    ("knobs", "text"),
    [
        ({"modalities": {}}, "modalities is empty"),
        ({"modalities": {"a": "image"}}, "is a vector"),
        ({"modalities": {"a": "vectr"}}, "Did you mean vector"),
        ({"modalities": {"a": {"kind": "vector", "noize": 1}}}, "Did you mean noise"),
        ({"modalities": {"a": {"kind": "vector", "dim": 0}}}, "modalities.a.dim is out of range"),
        ({"modalities": {"a": {"kind": "vector", "dim": 2.5}}}, "whole number"),
        ({"modalities": {"a": {"kind": "vector", "noise": "x"}}}, "is a number"),
        ({"modalities": THREE, "interaction": "unique", "classes": 4}, "dataset.classes=8"),
        ({"modalities": {"a": CLEAN}, "interaction": "synergistic"}, "needs two modalities"),
        ({"modalities": THREE, "classes": 1}, "dataset.classes is out of range"),
        ({"modalities": THREE, "use": []}, "dataset.use is empty"),
    ],
)
def test_errors(knobs, text):
    with pytest.raises(UserError, match=text):
        Synthetic(seed=0, **knobs)
