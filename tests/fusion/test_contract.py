"""Every fusion of conf/fusion: the contract of ``mmrun.fusion``."""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from mmrun.batch import Tokens
from mmrun.fusion import Fusion

CONF = Path(__file__).parents[2] / "conf" / "fusion"
DIMS = {"text": 6, "audio": 4, "image": 5}
LENGTHS = {"text": 3, "audio": 1, "image": 2}


def classes() -> dict[str, type[Fusion]]:
    found = {}
    for file in sorted(CONF.glob("*.yaml")):
        module, name = yaml.safe_load(file.read_text())["_target_"].rsplit(".", 1)
        found[file.stem] = getattr(import_module(module), name)
    return found


CLASSES = classes()


def build(option: str, dims: dict[str, int] | None = None) -> Fusion:
    torch.manual_seed(0)
    return CLASSES[option](dims or DIMS).eval()


def make(n: int, present: dict[str, Tensor] | None = None, seed: int = 0) -> dict[str, Tokens]:
    """Random tokens of n samples; present {modality: Bool [n]}, all when not given."""
    draw = torch.Generator().manual_seed(seed)
    tokens = {}
    for name in sorted(DIMS):
        values = torch.randn(n, LENGTHS[name], DIMS[name], generator=draw)
        pooled = torch.randn(n, DIMS[name], generator=draw)
        whole = Tokens(values, torch.ones(n, LENGTHS[name], dtype=torch.bool), pooled)
        tokens[name] = whole if present is None else whole.keep(present[name])
    return tokens


def patterns() -> dict[str, Tensor]:
    """Every pattern of presence with at least one present, one per sample."""
    rows = [row for row in product([True, False], repeat=len(DIMS)) if any(row)]
    return {name: torch.tensor([row[k] for row in rows]) for k, name in enumerate(sorted(DIMS))}


def test_discovery_finds_the_fusions():
    assert {"concat", "sum", "attention"} <= set(CLASSES)


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_yaml_is_the_constructors_schema(option: str):
    text = (CONF / f"{option}.yaml").read_text()
    config = yaml.safe_load(text)
    assert text.startswith("# ")
    assert CLASSES[option].__name__.lower() == option.replace("_", "")
    config.pop("_target_")
    parameters = list(signature(CLASSES[option]).parameters.values())[1:]
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert config == {p.name: p.default for p in parameters}


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_every_pattern_of_missing_modalities_is_finite(option: str):
    fusion = build(option)
    present = patterns()
    n = len(present["text"])
    fused = fusion(make(n, present))
    assert n == 7
    assert fused.shape[0] == n
    assert fused.shape[-1] == fusion.dim
    assert fused.isfinite().all()
    fused.square().sum().backward() if list(fusion.parameters()) else None
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_gradient_reaches_every_parameter_and_modality(option: str):
    fusion = build(option)
    tokens = make(5)
    for of in tokens.values():
        of.values.requires_grad_()
        of.pooled.requires_grad_()
    fusion(tokens).square().sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    for name, of in tokens.items():
        assert of.pooled.grad is not None or of.values.grad is not None, name


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_order_of_the_dicts_does_not_matter(option: str):
    tokens = make(4)
    expected = build(option)(tokens)
    assert torch.equal(build(option)(dict(reversed(tokens.items()))), expected)
    turned = build(option, dict(reversed(DIMS.items())))
    assert torch.equal(turned(tokens), expected)


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_a_sample_does_not_depend_on_its_batch(option: str):
    fusion = build(option).train()
    present = patterns()
    tokens = make(len(present["text"]), present)
    together = fusion(tokens)
    for row in range(len(together)):
        one = slice(row, row + 1)
        alone = {n: Tokens(t.values[one], t.mask[one], t.pooled[one]) for n, t in tokens.items()}
        torch.testing.assert_close(fusion(alone)[0], together[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_an_absent_modality_has_no_say(option: str):
    """Two samples alike but for the modality that both lack have the same fused feature."""
    fusion = build(option)
    for absent in DIMS:
        present = {name: torch.full((4,), name != absent) for name in DIMS}
        one, other = make(4, seed=0), make(4, seed=1)
        other = {name: (other if name == absent else one)[name] for name in DIMS}
        expected = fusion({name: t.keep(present[name]) for name, t in one.items()})
        actual = fusion({name: t.keep(present[name]) for name, t in other.items()})
        assert torch.equal(actual, expected)
        assert not torch.allclose(fusion(one), expected)


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_every_present_modality_has_a_say(option: str):
    fusion = build(option)
    one, other = make(4, seed=0), make(4, seed=1)
    for name in DIMS:
        assert not torch.allclose(fusion(one | {name: other[name]}), fusion(one))


@pytest.mark.parametrize("option", sorted(CLASSES))
def test_one_modality_works(option: str):
    fusion = build(option, {"text": DIMS["text"]})
    fused = fusion({"text": make(2)["text"]})
    assert fused.shape[0] == 2
    assert fused.isfinite().all()
