"""Classification: losses against torch, metrics against scikit-learn, chance by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn import functional as F

from mmrun.batch import Batch, Output
from mmrun.errors import UserError
from mmrun.objectives.classification import Classification
from mmrun.spec import DatasetSpec

N, D = 40, 6


def build(classes: int = 3, counts: tuple[int, ...] = (), **knobs: Any) -> Classification:
    torch.manual_seed(0)
    spec = DatasetSpec(modalities={}, target="class", classes=classes, class_counts=counts)
    knobs.setdefault("label_smoothing", 0.0)
    return Classification(spec, {"a": D}, D, **knobs)


def batch(target: Tensor) -> Batch:
    return Batch({}, {}, {}, target, torch.arange(len(target)))


def draw(classes: int = 3, n: int = N) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(1)
    logits = torch.randn(n, classes, generator=make)
    return logits, torch.randint(classes, (n,), generator=make)


def loss(objective: Classification, logits: Tensor, target: Tensor) -> Tensor:
    (value,) = objective.losses(batch(target), Output({}, None, logits)).values()
    return value


def test_loss_is_torchs_cross_entropy():
    logits, target = draw()
    torch.testing.assert_close(loss(build(), logits, target), F.cross_entropy(logits, target))


def test_sum_is_n_times_the_mean():
    logits, target = draw()
    objective = build(reduction="sum")
    assert objective.sums
    assert not build().sums
    torch.testing.assert_close(loss(objective, logits, target), N * loss(build(), logits, target))


def test_label_smoothing_mixes_the_target_with_the_uniform():
    logits, target = draw()
    soft = 0.8 * F.one_hot(target, 3) + 0.2 / 3
    expected = -(soft * logits.log_softmax(dim=1)).sum(dim=1).mean()
    actual = loss(build(label_smoothing=0.2), logits, target)
    torch.testing.assert_close(actual, expected)


def test_balanced_weights_are_scikit_learns():
    labels = np.repeat([0, 1, 2], [10, 3, 7])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    objective = build(counts=(10, 3, 7), class_weights="balanced")
    assert objective.weights is not None
    np.testing.assert_allclose(objective.weights.numpy(), expected, rtol=1e-6)
    logits, target = draw()
    w = objective.weights[target]
    each = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(loss(objective, logits, target), (w * each).sum() / w.sum())


def test_weights_given_by_hand_and_not_in_checkpoints():
    objective = build(class_weights=[1.0, 0.0, 3.0])
    assert objective.weights is not None
    assert objective.weights.tolist() == [1.0, 0.0, 3.0]
    assert "weights" not in objective.state_dict()


@pytest.mark.parametrize(
    ("classes", "hidden", "layers"), [(2, [], 1), (5, [], 1), (3, [8], 3), (3, [8, 4], 5)]
)
def test_head(classes: int, hidden: list[int], layers: int):
    objective = build(classes, hidden=hidden)
    assert len(objective.head) == layers
    assert objective({}, torch.randn(4, D), batch(torch.zeros(4).long())).shape == (4, classes)
    assert len(list(objective.head_parameters())) == 2 * (len(hidden) + 1)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_metrics_are_scikit_learns(classes: int):
    logits, target = draw(classes, 60)
    logits = (2 * logits).round() / 2  # ties
    objective = build(classes)
    metrics = {name: value.item() for name, value in objective.metrics(logits, target).items()}
    guess = logits.argmax(dim=1)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(target, guess))
    assert metrics["f1_macro"] == pytest.approx(f1_score(target, guess, average="macro"))
    assert set(metrics) == set(objective.higher_is_better)
    if classes == 2:
        area = roc_auc_score(target, logits[:, 1] - logits[:, 0])
        assert metrics["auroc"] == pytest.approx(area)
    else:
        assert "auroc" not in metrics


def test_f1_leaves_out_classes_that_do_not_occur():
    target = torch.tensor([0, 0, 1, 1])
    logits = F.one_hot(torch.tensor([0, 1, 1, 1]), 5).float()
    expected = f1_score(target, logits.argmax(dim=1), average="macro")
    assert build(5).metrics(logits, target)["f1_macro"].item() == pytest.approx(expected)


def test_area_of_a_single_class_is_nan_and_of_ties_a_half():
    target = torch.tensor([1, 1])
    assert build(2).metrics(torch.randn(2, 2), target)["auroc"].isnan()
    assert build(2).metrics(torch.zeros(4, 2), torch.tensor([0, 1, 1, 0]))["auroc"] == 0.5


def test_chance_is_the_majority_of_the_given_targets():
    value, margin = build().chance(torch.tensor([0] * 60 + [2] * 40))
    assert value == pytest.approx(0.6)
    assert margin == pytest.approx(2 * (0.6 * 0.4 / 100) ** 0.5)


def test_scores_are_probabilities():
    logits, _ = draw()
    torch.testing.assert_close(build().scores(logits).sum(dim=1), torch.ones(N))
    assert torch.equal(build().scores(logits).argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize(
    "knobs",
    [
        {"label_smoothing": 1.0},
        {"label_smoothing": -0.1},
        {"hidden": [0]},
        {"class_weights": [1.0, 2.0]},
        {"class_weights": [1.0, 2.0, -1.0]},
        {"class_weights": [0.0, 0.0, 0.0]},
        {"class_weights": "balanced"},
    ],
)
def test_knobs_out_of_range_are_the_users_error(knobs: dict[str, Any]):
    with pytest.raises(UserError) as caught:
        build(**knobs)
    assert caught.value.remedy
