"""A long short-term memory; with ReLU for tanh its state is unbounded and its gradients explode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrun.encoders._steps import Recurrent, at_least
from mmrun.spec import ModalitySpec


class LSTM(Recurrent):
    """c_t = f_t c_(t-1) + i_t a(g_t), h_t = o_t a(c_t): states h are tokens, the last valid one is pooled.

    Source: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997, with forget gate, in the form
    of ``torch.nn.LSTM``. ``activation=relu`` replaces both tanh and runs as a loop over steps; its
    parameters keep their names.

    Args:
        spec: the modality.
        dim: width D of the state.
        embedding_dim: width of a text id's embedding.
        layers: number of stacked layers.
        activation: a.
        patch: samples of a waveform per step.
    """

    def __init__(
        self,
        spec: ModalitySpec,
        *,
        dim: int = 32,
        embedding_dim: int = 16,
        layers: int = 1,
        activation: Literal["tanh", "relu"] = "tanh",
        patch: int = 64,
    ) -> None:
        super().__init__(spec, dim=dim, embedding_dim=embedding_dim, patch=patch)
        at_least(1, layers=layers)
        self.activation = activation
        self.cell = nn.LSTM(self.steps.features, dim, layers, batch_first=True)

    def states(self, steps: Tensor) -> Tensor:
        """The states [B, T, D] after each of the steps [B, T, F]."""
        if self.activation == "tanh":
            return self.cell(steps)[0]
        return lstm_loop(self.cell, steps, F.relu)


def lstm_loop(cell: nn.LSTM, steps: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """``cell`` over steps [B, T, F], step by step, with any activation; states [B, T, D]."""
    inputs = steps
    for weight_ih, weight_hh, bias_ih, bias_hh in cell.all_weights:
        gates_in = F.linear(inputs, weight_ih, bias_ih + bias_hh)  # [B, T, 4 D]
        recurrent = weight_hh.t()
        h = c = inputs.new_zeros(len(inputs), cell.hidden_size)
        states: list[Tensor] = []
        for gate_in in gates_in.unbind(dim=1):
            i, f, g, o = torch.addmm(gate_in, h, recurrent).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * activation(g)
            h = o.sigmoid() * activation(c)
            states.append(h)
        inputs = torch.stack(states, dim=1)
    return inputs
