"""A gated recurrent unit."""

from __future__ import annotations

from torch import Tensor, nn

from mmrun.encoders._steps import Recurrent, at_least
from mmrun.spec import ModalitySpec


class GRU(Recurrent):
    """h_t = (1 - z_t) n_t + z_t h_(t-1): states are tokens, the last valid one is the pooled vector.

    Source: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, 2014
    (arXiv 1406.1078), in the form of ``torch.nn.GRU``.

    Args:
        spec: the modality.
        dim: width D of the state.
        embedding_dim: width of a text id's embedding.
        layers: number of stacked layers.
        patch: samples of a waveform per step.
    """

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        embedding_dim: int = 16,
        layers: int = 1,
        patch: int = 64,
    ) -> None:
        super().__init__(spec, dim=dim, embedding_dim=embedding_dim, patch=patch)
        at_least(1, layers=layers)
        self.cell = nn.GRU(self.steps.features, dim, layers, batch_first=True)

    def states(self, steps: Tensor) -> Tensor:
        """The states [B, T, D] after each of the steps [B, T, F]."""
        return self.cell(steps)[0]
