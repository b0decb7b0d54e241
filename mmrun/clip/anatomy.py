"""What a parameter is within its module, where its shape alone does not tell."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


class Anatomy(NamedTuple):
    """Facts about parameters that a law may need.

    Args:
        axes: {parameter: the dimension along which its output units lie}; 0 for those that are not named: rows of
            Linear, Conv, Embedding, of an LSTM's and an attention's stacked projections. So it is for a transposed
            convolution in several groups, where no dimension holds the outputs alone: a unit is an input channel, which
            in a depthwise one is the output channel.
        tables: embedding tables, whose rows are no weights of one unit.
    """

    axes: dict[Tensor, int]
    tables: frozenset[Tensor]


NO_ANATOMY = Anatomy({}, frozenset())


def anatomy(*modules: nn.Module) -> Anatomy:
    """The facts about all parameters of some modules."""
    axes: dict[Tensor, int] = {}
    tables: set[Tensor] = set()
    for each in (m for module in modules for m in module.modules()):
        if isinstance(each, _ConvTransposeNd) and each.groups == 1:
            shape = (each.in_channels, each.out_channels, *each.kernel_size)
            axes.update(dict.fromkeys(_weights(each, shape), 1))
        elif isinstance(each, nn.Embedding | nn.EmbeddingBag):
            tables.update(_weights(each, (each.num_embeddings, each.embedding_dim)))
    return Anatomy(axes, frozenset(tables))


def _weights(module: nn.Module, shape: tuple[int, ...]) -> list[nn.Parameter]:
    """The parameters of this shape that a module's weight is, or is computed from (weight_norm, spectral_norm).

    Found where they are registered: ``module.weight`` would compute it, and change what the computation remembers.
    """
    own = [(name, p) for name, p in module.named_parameters(recurse=False)]
    own += [
        (name.removeprefix("parametrizations."), p)
        for name, p in module.named_parameters()
        if name.startswith("parametrizations.weight.original")
    ]
    return [p for name, p in own if name.startswith("weight") and tuple(p.shape) == shape]
