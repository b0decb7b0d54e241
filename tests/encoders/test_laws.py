"""What single encoders promise beyond the contract."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmrun.encoders.cnn import CNN
from mmrun.encoders.conv import Conv
from mmrun.encoders.gru import GRU
from mmrun.encoders.identity import Identity
from mmrun.encoders.lstm import LSTM, lstm_loop
from mmrun.encoders.mlp import MLP
from mmrun.encoders.resnet import MaskedGroupNorm, ResNet
from mmrun.encoders.rnn import RNN
from mmrun.encoders.transformer import Transformer
from mmrun.errors import UserError
from mmrun.spec import ModalitySpec

T, F = 9, 4
SEQUENCE = ModalitySpec(name="m", kind="sequence", shape=(T, F), padded=True)
IMAGE = ModalitySpec(name="m", kind="image", shape=(1, 8, 8))


def test_identity_has_no_parameters_and_returns_its_input():
    encoder = Identity(ModalitySpec(name="m", kind="vector", shape=(3,)))
    x = torch.randn(2, 3)
    assert list(encoder.parameters()) == []
    assert encoder(x).pooled is x


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_recurrent_encoders_read_the_last_valid_step(activation: str):
    """Pooled equals the final state that the cell itself returns for each unpadded sequence."""
    torch.manual_seed(0)
    x = torch.randn(3, T, F)
    lengths = torch.tensor([T, 4, 1])
    mask = torch.arange(T) < lengths.unsqueeze(1)
    for encoder in (
        RNN(SEQUENCE, nonlinearity="relu" if activation == "relu" else "tanh"),
        LSTM(SEQUENCE, activation="relu" if activation == "relu" else "tanh", layers=2),
        GRU(SEQUENCE, layers=2),
    ):
        pooled = encoder(x, mask).pooled
        for row, length in enumerate(lengths.tolist()):
            alone = x[row : row + 1, :length]
            if isinstance(encoder, LSTM) and activation == "relu":
                final = lstm_loop(encoder.cell, alone, torch.relu)[0, -1]
            elif isinstance(encoder, LSTM):
                final = encoder.cell(alone)[1][0][-1, 0]
            else:
                final = encoder.cell(alone)[1][-1, 0]
            torch.testing.assert_close(pooled[row], final)


@pytest.mark.parametrize("layers", [1, 2])
def test_lstm_loop_with_tanh_is_torchs_lstm(layers: int):
    """Parity in float64: states, and the gradient of every parameter and of the input."""
    torch.manual_seed(0)
    cell = nn.LSTM(F, 5, layers, batch_first=True).double()
    x = torch.randn(3, T, F, dtype=torch.float64, requires_grad=True)
    inputs = [x, *cell.parameters()]
    weight = torch.randn(3, T, 5, dtype=torch.float64)
    results = []
    for states in (cell(x)[0], lstm_loop(cell, x, torch.tanh)):
        results.append([states, *torch.autograd.grad((weight * states).sum(), inputs)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_lstm_with_relu_keeps_the_parameter_names_and_is_unbounded():
    tanh, relu = LSTM(SEQUENCE), LSTM(SEQUENCE, activation="relu")
    relu.load_state_dict(tanh.state_dict())
    x = 50 * torch.ones(1, T, F)
    assert tanh(x).pooled.abs().max() <= 1
    assert relu(x).pooled.abs().max() > 1


def test_rnn_with_identity_start_adds_up_what_it_sees():
    """h_T = relu(sum of inputs) as long as every partial sum is positive."""
    encoder = RNN(SEQUENCE, dim=F, nonlinearity="relu", init="identity")
    weights = dict(encoder.cell.named_parameters())
    assert torch.equal(weights["weight_hh_l0"], torch.eye(F))
    assert not weights["bias_ih_l0"].any()
    assert not weights["bias_hh_l0"].any()
    x = torch.rand(2, T, F)
    nn.init.eye_(weights["weight_ih_l0"])
    torch.testing.assert_close(encoder(x).pooled, x.sum(dim=1))


def test_rnn_with_orthogonal_start():
    weight = RNN(SEQUENCE, init="orthogonal", layers=2).cell.get_parameter("weight_hh_l1")
    torch.testing.assert_close(weight @ weight.T, torch.eye(32), rtol=0, atol=1e-5)


def test_masked_group_norm_is_group_norm_of_the_valid_columns():
    torch.manual_seed(0)
    norm = MaskedGroupNorm(2, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 5, 6)
    mask = torch.arange(6).expand(3, 6) < 4
    torch.testing.assert_close(norm(x, mask)[..., :4], norm(x[..., :4]), rtol=1e-4, atol=1e-5)


def test_large_images_have_few_tokens():
    encoder = CNN(ModalitySpec(name="m", kind="image", shape=(3, 64, 40)), grid=4)
    tokens = encoder(torch.randn(2, 3, 64, 40))
    assert tokens.values.shape == (2, 16, 32)


def test_a_waveform_longer_than_its_patches_keeps_its_end():
    spec = ModalitySpec(name="m", kind="waveform", shape=(10,), padded=True)
    encoder = Conv(spec, patch=4)
    mask = torch.arange(10).expand(1, 10) < 9
    assert encoder(torch.randn(1, 10), mask).mask.tolist() == [[True, True, True]]
    mask = torch.arange(10).expand(1, 10) < 8
    assert encoder(torch.randn(1, 10), mask).mask.tolist() == [[True, True, False]]


def test_mlp_refuses_padding_with_a_way_out():
    with pytest.raises(UserError, match="conv"):
        MLP(SEQUENCE)


def test_mlp_without_hidden_layers_is_linear():
    encoder = MLP(IMAGE, hidden=[])
    x, y = torch.randn(2, 1, 1, 8, 8)
    zero = encoder(torch.zeros_like(x)).pooled
    total = encoder(x).pooled + encoder(y).pooled - zero
    torch.testing.assert_close(encoder(x + y).pooled, total)


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(IMAGE, dim=0),
        lambda: MLP(IMAGE, hidden=[4, 0]),
        lambda: CNN(IMAGE, kernel=2),
        lambda: CNN(IMAGE, grid=0),
        lambda: CNN(IMAGE, dropout=1.0),
        lambda: Conv(SEQUENCE, kernel=4),
        lambda: Conv(SEQUENCE, layers=0),
        lambda: Conv(SEQUENCE, dropout=-0.1),
        lambda: RNN(SEQUENCE, dim=-1),
        lambda: LSTM(SEQUENCE, layers=0),
        lambda: GRU(SEQUENCE, patch=0),
        lambda: Transformer(SEQUENCE, dim=30, heads=4),
        lambda: ResNet(IMAGE, groups=5),
    ],
)
def test_knobs_out_of_range_are_the_users_error(build):
    with pytest.raises(UserError) as caught:
        build()
    assert caught.value.given
    assert caught.value.remedy
