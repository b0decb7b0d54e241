"""Which class? Softmax cross-entropy over two or more classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrun.batch import Batch, Output, Tokens
from mmrun.errors import UserError
from mmrun.objectives import Objective
from mmrun.spec import DatasetSpec


class Classification(Objective):
    """loss = sum_i w_(y_i) CE(logits_i, y_i) / sum_i w_(y_i); the prediction is the logits [B, C].

    Args:
        spec: the dataset.
        dims: {modality: width}; not used.
        fused_dim: width of the fused feature.
        hidden: widths of the head's hidden layers, each with ReLU; none makes the head linear.
        class_weights: w: ``none`` (all one), ``balanced`` (w_c = N / (C n_c) over the training
            samples) or one weight per class.
        label_smoothing: probability in [0, 1) that the target spreads evenly over all classes.
        reduction: ``mean`` as above, or ``sum``: without the denominator, so that gradients and
            clip thresholds grow with the batch.

    Raises:
        UserError: a knob is out of range.

    Source: label smoothing: Szegedy et al., 2015 (arXiv 1512.00567), section 7; the formula of
    ``balanced`` is scikit-learn's.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)

    def __init__(
        self,
        spec: DatasetSpec,
        dims: Mapping[str, int],
        fused_dim: int,
        *,
        hidden: list[int] = [],  # noqa: B006 - read only
        class_weights: Literal["none", "balanced"] | list[float] = "none",
        label_smoothing: float = 0.1,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__(spec, dims, fused_dim)
        if any(width < 1 for width in hidden):
            raise UserError(
                "objective.hidden lists widths",
                given=hidden,
                remedy="Give positive whole numbers, such as [64,32].",
            )
        if not 0 <= label_smoothing < 1:
            raise UserError(
                "objective.label_smoothing is a probability",
                given=label_smoothing,
                remedy="Give 0 <= label_smoothing < 1.",
            )
        widths = [fused_dim, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(widths[-1], spec.classes))
        self.register_buffer("weights", _weights(spec, class_weights), persistent=False)
        self.weights: Tensor | None
        self.label_smoothing = float(label_smoothing)
        self.reduction = reduction
        self.sums = reduction == "sum"
        self.primary = "accuracy"
        self.higher_is_better = {"accuracy": True, "f1_macro": True}
        if spec.classes == 2:
            self.higher_is_better["auroc"] = True
        self.ranges = {**dict.fromkeys(self.higher_is_better, (0.0, 1.0)), "loss": (0.0, math.inf)}

    def forward(self, tokens: Mapping[str, Tokens], fused: Tensor | None, batch: Batch) -> Tensor:  # noqa: ARG002 - contract
        """Logits [B, C] from the fused feature [B, D]."""
        return self.head(fused)

    def losses(self, batch: Batch, output: Output) -> dict[str, Tensor]:
        """The cross-entropy of the batch."""
        loss = F.cross_entropy(
            output.prediction,
            batch.target,
            weight=self.weights,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )
        return {"cross_entropy": loss}

    def metrics(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Accuracy, macro F1 and, for two classes, the area under the ROC curve.

        Macro F1 averages over the classes that occur among targets or guesses; the area is NaN
        where the targets hold one class only.
        """
        guess = prediction.argmax(dim=1)
        classes = prediction.shape[1]
        hits = torch.bincount(target[guess == target], minlength=classes)
        occurrences = torch.bincount(target, minlength=classes) + torch.bincount(
            guess, minlength=classes
        )
        f1 = 2 * hits / occurrences.clamp(min=1)
        scores = {
            "accuracy": (guess == target).float().mean(),
            "f1_macro": f1.sum() / (occurrences > 0).sum(),
        }
        if classes == 2:
            scores["auroc"] = _auroc(prediction[:, 1] - prediction[:, 0], target)
        return scores

    def chance(self, target: Tensor) -> tuple[float, float]:
        """The majority's share of the targets, and two standard errors of it.

        At most half of what is left to 1, so that a perfect score is never a guess; of one class alone nothing can be
        told from guessing, and nothing is called so.
        """
        share = torch.bincount(target).max().item() / len(target)
        if share == 1:
            return -math.inf, 0.0
        return share, min(2 * (share * (1 - share) / len(target)) ** 0.5, (1 - share) / 2)

    def scores(self, prediction: Tensor) -> Tensor:
        """Class probabilities [B, C]."""
        return prediction.softmax(dim=1)


def _weights(
    spec: DatasetSpec, class_weights: Literal["none", "balanced"] | list[float]
) -> Tensor | None:
    """Weight per class [C]; None when all are one. A class without samples counts as one sample."""
    if class_weights == "none":
        return None
    if class_weights == "balanced":
        if len(spec.class_counts) != spec.classes:
            raise UserError(
                "objective.class_weights=balanced needs the dataset's class counts, which it lacks",
                remedy="Give one weight per class.",
            )
        counts = torch.tensor(spec.class_counts, dtype=torch.float32)
        return counts.sum() / (spec.classes * counts.clamp(min=1))
    if len(class_weights) != spec.classes or min(class_weights) < 0 or max(class_weights) == 0:
        raise UserError(
            f"objective.class_weights needs {spec.classes} numbers, none negative and not all zero",
            given=class_weights,
            remedy="Give one weight per class, or none or balanced.",
        )
    return torch.tensor(class_weights, dtype=torch.float32)


def _auroc(score: Tensor, target: Tensor) -> Tensor:
    """P(score of a positive > score of a negative), ties counting half (Mann-Whitney U)."""
    _, inverse, counts = torch.unique(score, return_inverse=True, return_counts=True)
    highest = counts.cumsum(0).double()
    rank = (highest - (counts - 1) / 2)[inverse]  # 1-based, ties share their mean rank
    positive = target == 1
    n = positive.sum().double()
    pairs = n * (len(target) - n)
    return ((rank[positive].sum() - n * (n + 1) / 2) / pairs).float()
