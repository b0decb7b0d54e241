"""Every encoder of conf/encoder on every kind that it takes: the contract of ``mmrun.encoders``."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from mmrun.encoders import Encoder
from mmrun.errors import UserError
from mmrun.spec import Kind, ModalitySpec

CONF = Path(__file__).parents[2] / "conf"
B, T = 3, 11
SHAPES: dict[str, tuple[int, ...]] = {
    "image": (2, 9, 6),
    "spectrogram": (10, T),
    "waveform": (T,),
    "text": (T,),
    "sequence": (T, 5),
    "vector": (7,),
    "frames": (T, 2, 8, 8),
}
VOCABULARY = 12
# Kinds with a time axis in the mask, and where it is in x [B, ...].
TIME_AXIS = {"spectrogram": 2, "waveform": 1, "text": 1, "sequence": 1}


def classes() -> dict[str, type[Encoder]]:
    """Encoders of this package that need nothing but torch, by option."""
    found = {}
    for file in sorted((CONF / "encoder").glob("*.yaml")):
        target = yaml.safe_load(file.read_text())["_target_"]
        module, name = target.rsplit(".", 1)
        encoder = getattr(import_module(module), name)
        if set(encoder.kinds) <= set(SHAPES):
            found[file.stem] = encoder
    return found


CLASSES = classes()
CASES: list[tuple[str, Kind]] = [
    (option, kind) for option, cls in CLASSES.items() for kind in cls.kinds
]


def spec(kind: Kind, *, padded: bool = False) -> ModalitySpec:
    return ModalitySpec(
        name="m",
        kind=kind,
        shape=SHAPES[kind],
        vocabulary=VOCABULARY if kind == "text" else 0,
        padded=padded,
    )


def knobs(option: str) -> dict[str, Any]:
    """The option's knobs; a short patch, so that a small waveform has several steps."""
    config = yaml.safe_load((CONF / "encoder" / f"{option}.yaml").read_text())
    del config["_target_"]
    return config | ({"patch": 2} if "patch" in config else {})


def build(option: str, kind: Kind, *, padded: bool = False) -> Encoder:
    torch.manual_seed(0)
    return CLASSES[option](spec(kind, padded=padded), **knobs(option)).eval()  # pyright: ignore[reportCallIssue]


def sample(kind: str, n: int = B, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    if kind == "text":
        return torch.randint(1, VOCABULARY, (n, T), generator=draw)
    return torch.randn(n, *SHAPES[kind], generator=draw)


def padded_cases() -> list[tuple[str, Kind]]:
    """Cases in which the modality may be padded: the encoder does not refuse it."""
    cases: list[tuple[str, Kind]] = []
    for option, kind in CASES:
        if kind not in TIME_AXIS:
            continue
        try:
            build(option, kind, padded=True)
        except UserError:
            continue
        cases.append((option, kind))
    return cases


PADDED = padded_cases()


def test_discovery_finds_the_encoders():
    assert {"identity", "mlp", "cnn", "resnet", "conv", "rnn", "lstm", "gru"} <= set(CLASSES)
    assert len(PADDED) >= 20


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_yaml_is_the_constructors_schema(option: str):
    file = CONF / "encoder" / f"{option}.yaml"
    config = yaml.safe_load(file.read_text())
    assert file.read_text().startswith("# ")
    assert CLASSES[option].__name__.lower() == option
    config.pop("_target_")
    parameters = list(signature(CLASSES[option]).parameters.values())[1:]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert config == {p.name: p.default for p in parameters}


def test_default_by_kind_takes_the_kind():
    defaults = yaml.safe_load((CONF / "kinds.yaml").read_text())
    assert set(SHAPES) - {"frames"} <= set(defaults) <= set(SHAPES)
    for kind, option in defaults.items():
        if option in CLASSES:
            assert kind in CLASSES[option].kinds


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_shapes(option: str, kind: Kind):
    encoder = build(option, kind)
    tokens = encoder(sample(kind))
    assert tokens.pooled.shape == (B, encoder.dim)
    assert tokens.values.shape == (B, tokens.mask.shape[1], encoder.dim)
    assert tokens.mask.dtype == torch.bool
    assert tokens.mask.all()
    assert tokens.values.isfinite().all()
    if "dim" in knobs(option):
        assert encoder.dim == knobs(option)["dim"]


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_gradient_reaches_every_parameter(option: str, kind: Kind):
    encoder = build(option, kind)
    x = sample(kind, 8)
    reached: dict[str, Tensor] = dict(encoder.named_parameters())
    if x.is_floating_point():
        reached["x"] = x.requires_grad_()
    encoder(x).pooled.square().sum().backward()
    for name, parameter in reached.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_a_sample_does_not_depend_on_its_batch(option: str, kind: Kind):
    encoder = build(option, kind).train()
    for module in encoder.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = sample(kind)
    together = encoder(x)
    alone = encoder(x[1:2])
    torch.testing.assert_close(alone.pooled[0], together.pooled[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone.values[0], together.values[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_pooled_depends_on_the_sample(option: str, kind: Kind):
    pooled = build(option, kind)(sample(kind)).pooled
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3


def lengths_mask(*lengths: int) -> Tensor:
    return torch.arange(T) < torch.tensor(lengths).unsqueeze(1)


@pytest.mark.parametrize(("option", "kind"), PADDED)
def test_garbage_at_invalid_steps_changes_nothing(option: str, kind: Kind):
    encoder = build(option, kind, padded=True)
    mask = lengths_mask(T, 5, 1)
    axis = [1] * len(SHAPES[kind])
    axis[TIME_AXIS[kind] - 1] = T
    valid = mask.view(B, *axis)
    x = sample(kind)
    clean = torch.where(valid, x, torch.zeros_like(x))
    garbage = torch.where(valid, x, torch.full_like(x, 3 if kind == "text" else torch.nan))
    expected, actual = encoder(clean, mask), encoder(garbage, mask)
    assert torch.equal(actual.pooled, expected.pooled)
    assert torch.equal(actual.mask, expected.mask)
    assert torch.equal(actual.values, expected.values)


@pytest.mark.parametrize(("option", "kind"), PADDED)
@pytest.mark.parametrize("length", [1, 4, 5, 6, 7])
def test_padding_does_not_change_pooled(option: str, kind: Kind, length: int):
    """A sample cut to its valid length, and padded to T: same pooled vector, same valid tokens."""
    encoder = build(option, kind, padded=True)
    x = sample(kind)
    short = x.narrow(TIME_AXIS[kind], 0, length)
    expected = encoder(short, torch.ones(B, length, dtype=torch.bool))
    padded = encoder(x, lengths_mask(*[length] * B))
    torch.testing.assert_close(padded.pooled, expected.pooled, rtol=1e-4, atol=1e-5)
    tokens = expected.values[expected.mask]
    torch.testing.assert_close(padded.values[padded.mask], tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("option", "kind"), PADDED)
def test_all_false_rows_are_finite_forward_and_backward(option: str, kind: Kind):
    encoder = build(option, kind, padded=True)
    tokens = encoder(sample(kind), lengths_mask(T, 0, 3))
    assert tokens.pooled.isfinite().all()
    assert tokens.values.isfinite().all()
    assert not tokens.mask[1].any()
    (tokens.pooled.square().sum() + tokens.values.square().sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("option", "kind"), PADDED)
def test_every_valid_step_counts(option: str, kind: Kind):
    """The last valid step reaches some token: nothing is cut off by rounding."""
    encoder = build(option, kind, padded=True)
    mask = lengths_mask(*[7] * B)
    x = sample(kind)
    other = x.clone()
    at = other.select(TIME_AXIS[kind], 6)
    at.copy_(at % (VOCABULARY - 1) + 1 if kind == "text" else at + 5)
    assert not torch.allclose(encoder(x, mask).values, encoder(other, mask).values)
