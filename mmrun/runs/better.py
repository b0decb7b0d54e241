"""Which way is a metric better? By the words of its name: an error is better small, everything else large."""

from __future__ import annotations

_LESS = {"loss", "mse", "mae", "rmse", "nll", "ece", "brier", "error", "rank", "perplexity"}


def higher(name: str) -> bool:
    """Whether more of a metric is better, by its name.

    >>> higher("accuracy"), higher("val/loss"), higher("recall@1")
    (True, False, True)
    """
    return not _LESS.intersection(name.replace("@", "_").replace("/", "_").split("_"))
