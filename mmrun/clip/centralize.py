"""Gradient centralisation: the mean of each output row is taken off."""

from __future__ import annotations

import math
from typing import ClassVar

import torch

from mmrun.clip.law import Law
from mmrun.clip.step import Gradients, InForce


class Centralize(Law):
    """g_r -> g_r - mean(g_r) for each output row r of a parameter with rows of several elements.

    Vectors, numbers and embedding tables stay. So do rows of a single element, of which the paper's code would leave 0
    for good, and rows with an element that is not finite. Source: Yong et al. 2020, arXiv 2004.01461. It bounds
    nothing, and goes before what does: ``Chain(Centralize(), Norm(1.0))``.

    Only modules tell an embedding table, and a transposed convolution, whose output rows lie along the second
    dimension: call it with them, not with their parameters or an optimizer, where there are any.

    Raises:
        UserError: a sharded parameter's rows are spread over processes.
    """

    algorithm: ClassVar[str] = "centralize"

    def __init__(self) -> None:
        super().__init__(math.inf)

    def clip(self, gradients: Gradients) -> InForce:
        """Nothing is bounded."""
        plan, tables = gradients.plan, gradients.plan.layout.anatomy.tables
        parts = zip(plan.present, gradients.sparse, gradients.open(), strict=True)
        for k, (i, sparse, g) in enumerate(parts):
            parameter = plan.layout.parameters[i]
            if parameter.ndim < 2 or sparse or parameter in tables:
                continue
            axis = plan.whole_axis(k, f"clip={self.algorithm}")
            over = [d for d in range(g.ndim) if d != axis]
            if math.prod(g.shape[d] for d in over) < 2:
                continue
            wide = g.dtype if plan.cast is None else plan.cast
            mean = g.mean(over, keepdim=True, dtype=wide)
            g.sub_(torch.where(torch.isfinite(mean), mean, 0.0))
        return InForce(plan.filled(math.inf, 1 + len(plan.scopes)), plan.no_payer)
