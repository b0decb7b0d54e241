"""What theories of clipping ask about: the tail of the norms, the noise, the smoothness, and conflict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrun.batch import Batch
from mmrun.diagnostics import Array, Aside, Diagnostics, Scopes
from mmrun.diagnostics._conflict import alone, cosines
from mmrun.diagnostics._noise import NoiseScale, variance_and_square
from mmrun.diagnostics._smoothness import Smoothness
from mmrun.diagnostics._tail import LEAST, TailIndex
from mmrun.errors import UserError

NORM = "grad/norm"  # <column> and <column>/<scope> of gradients.csv
TAIL = "theory/tail_index"  # also by scope
NOISE = "theory/noise_scale"
VARIANCE = "theory/gradient_variance"
SQUARE = "theory/gradient_square"
SMOOTHNESS = "theory/smoothness"
SMOOTHNESS_NORM = "theory/smoothness_norm"
COSINE = "theory/cosine"  # /<modality>/<modality>


class Theory(Diagnostics):
    """Every so many steps: tail index, noise scale, local smoothness, and the conflict between modalities.

    All but the tail index take passes of their own: one over the parts of a batch, two for the smoothness, and one for each modality.
    The loss is the objective's and that of a learning fill, without what ``balance`` adds, in training mode.

    The cosine is that between losses of modalities: what the same loss is for the samples that have modality a when all the
    others are taken away from them (``missing`` fills the gaps as ever), against the same for b. It is taken over the
    scopes that are no modality's own (fusion, objective, missing, shared), where both losses reach. One modality has none.

    Args:
        scopes: {scope: {parameter name: Parameter}}.
        modalities: their names.
        every: optimizer steps between two measurements.
        window: norms of the last steps for the tail index.
        tail: share of them that is the tail.
        parts: of a batch, for the noise.
        decay: of the running means whose ratio is the noise scale.

    Raises:
        UserError: a knob is out of range.

    Source: in the modules that each stand for one of the four.
    """

    def __init__(
        self,
        scopes: Scopes,
        modalities: Sequence[str],
        *,
        every: int = 50,
        window: int = 1000,
        tail: float = 0.1,
        parts: int = 4,
        decay: float = 0.9,
    ) -> None:
        super().__init__(scopes, modalities)
        if every < 1:
            raise _wrong("every", every, "Give 1 or more optimizer steps.")
        if not 0 < tail < 1:
            raise _wrong("tail", tail, "Give a share above 0 and below 1.")
        if int(tail * window) < LEAST:
            raise _wrong("window", window, f"At tail={tail:g} give {LEAST / tail:.0f} or more.")
        if parts < 2:
            raise _wrong("parts", parts, "Give 2 or more.")
        if not 0 <= decay < 1:
            raise _wrong("decay", decay, "Give 0 <= decay < 1.")
        self.every = every
        self.parts = parts
        self.parameters = [p for named in scopes.values() for p in named.values()]
        self.shared = [
            p for scope, named in scopes.items() if scope not in modalities for p in named.values()
        ]
        pairs = combinations(modalities, 2) if self.shared else ()
        self.pairs = {pair: "/".join((COSINE, *pair)) for pair in pairs}
        self.tails = {f"{NORM}{end}": f"{TAIL}{end}" for end in ("", *(f"/{s}" for s in scopes))}
        own = (NOISE, VARIANCE, SQUARE, SMOOTHNESS, SMOOTHNESS_NORM)
        self.columns = (*self.tails.values(), *own, *self.pairs.values())
        self.tail_index = TailIndex(len(self.tails), window=window, share=tail)
        self.noise = NoiseScale(decay)
        self._smoothness: Smoothness | None = None

    def due(self, step: int) -> bool:
        """Every ``every``-th step."""
        return step % self.every == 0

    def before(self, aside: Aside, batch: Batch) -> dict[str, Tensor]:
        """Noise and conflict; the smoothness begins."""
        with aside.drawing():
            variance, square = variance_and_square(aside, batch, self.parameters, self.parts)
        with aside.drawing():
            self._smoothness = Smoothness(self.parameters, aside.gradient(batch, self.parameters))
        return {VARIANCE: variance, SQUARE: square, **self._cosines(aside, batch)}

    def _cosines(self, aside: Aside, batch: Batch) -> dict[str, Tensor]:
        if not self.pairs:
            return {}
        gradients: dict[str, list[Tensor]] = {}
        for modality in self.modalities:
            mine = alone(batch, modality)
            with aside.drawing():
                gradients[modality] = (
                    aside.gradient(mine, self.shared)
                    if len(mine.index)
                    else [torch.zeros_like(parameter) for parameter in self.shared]
                )
        return {self.pairs[pair]: cosine for pair, cosine in cosines(gradients).items()}

    def after(self, aside: Aside, batch: Batch) -> dict[str, Tensor]:
        """The smoothness ends."""
        begun, self._smoothness = self._smoothness, None
        assert begun is not None
        with aside.drawing():
            smoothness, norm = begun.along(aside.gradient(batch, self.parameters))
        return {SMOOTHNESS: smoothness, SMOOTHNESS_NORM: norm}

    def logged(self, values: Mapping[str, float]) -> dict[str, float]:
        """What was measured, and the noise scale of it and what was before."""
        return {**values, NOISE: self.noise.update(values[VARIANCE], values[SQUARE])}

    def fetched(self, steps: Array, rows: Mapping[str, Array]) -> dict[str, float]:
        """The tail index, where a measured step is among these."""
        self.tail_index.extend(np.stack([rows[name] for name in self.tails], axis=1))
        if not (steps % self.every == 0).any():
            return {}
        values = zip(self.tails.values(), self.tail_index.values(), strict=True)
        return {name: value for name, value in values if value is not None}

    def state_dict(self) -> dict[str, Any]:
        """The window of norms, and the running means of the noise."""
        norms = torch.from_numpy(self.tail_index.norms.copy())
        return {"norms": norms, "noise": self.noise.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a state; a window that is shorter now keeps the newest norms."""
        self.tail_index.norms = state["norms"].numpy()[-self.tail_index.window :]
        self.noise.load_state_dict(state["noise"])


def _wrong(name: str, value: object, remedy: str) -> UserError:
    return UserError(f"diagnostics.{name} cannot be this", given=value, remedy=remedy)
