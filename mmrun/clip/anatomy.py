"""What a parameter is within its module, where its shape alone does not tell."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


class Anatomy(NamedTuple):
    """Facts about parameters that a law may need.

    Args:
        axes: {parameter: the dimension along which its output units lie}; 0 for those that are not named: rows of
            Linear, Conv, Embedding, of an LSTM's and an attention's stacked projections.
        tables: embedding tables, whose rows are no weights of one unit.
    """

    axes: dict[Tensor, int]
    tables: frozenset[Tensor]


NO_ANATOMY = Anatomy({}, frozenset())


def anatomy(*modules: nn.Module) -> Anatomy:
    """The facts about all parameters of some modules."""
    every = [each for module in modules for each in module.modules()]
    transposed = [m for m in every if isinstance(m, _ConvTransposeNd)]
    tables = [m.weight for m in every if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    return Anatomy({m.weight: 1 for m in transposed}, frozenset(tables))
