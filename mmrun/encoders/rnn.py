"""An Elman network; with ReLU and identity start it is the IRNN, which clipping makes trainable."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from mmrun.encoders._steps import Recurrent, at_least
from mmrun.spec import ModalitySpec


class RNN(Recurrent):
    """h_t = f(W x_t + U h_(t-1) + b): states are tokens, the last valid one is the pooled vector.

    Source: Elman, Finding Structure in Time, 1990; ``nonlinearity=relu init=identity``: Le, Jaitly
    and Hinton, A Simple Way to Initialize Recurrent Networks of Rectified Linear Units, 2015
    (arXiv 1504.00941). Deviation: W keeps PyTorch's initial values, where the paper draws it with
    a standard deviation of 0.001.

    Args:
        spec: the modality.
        dim: width D of the state.
        embedding_dim: width of a text id's embedding.
        layers: number of stacked layers.
        nonlinearity: f.
        init: initial U of every layer; ``identity`` also sets b to zero.
        patch: samples of a waveform per step.
    """

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        embedding_dim: int = 16,
        layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        init: Literal["default", "identity", "orthogonal"] = "default",
        patch: int = 64,
    ) -> None:
        super().__init__(spec, dim=dim, embedding_dim=embedding_dim, patch=patch)
        at_least(1, layers=layers)
        self.cell = nn.RNN(
            self.steps.features, dim, layers, nonlinearity=nonlinearity, batch_first=True
        )
        for name, parameter in self.cell.named_parameters():
            if init == "identity" and name.startswith("weight_hh"):
                nn.init.eye_(parameter)
            elif init == "identity" and name.startswith("bias"):
                nn.init.zeros_(parameter)
            elif init == "orthogonal" and name.startswith("weight_hh"):
                nn.init.orthogonal_(parameter)

    def states(self, steps: Tensor) -> Tensor:
        """The states [B, T, D] after each of the steps [B, T, F]."""
        return self.cell(steps)[0]
