"""The meter of feature clipping: exact shares on tensors made by hand, for every form of fused feature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mmrun.batch import Batch, Tokens
from mmrun.bounds import Bound
from mmrun.encoders import Encoder
from mmrun.fusion import Fusion
from mmrun.missing import Missing
from mmrun.model import MultimodalModel
from mmrun.spec import ModalitySpec
from mmrun.watching import FeatureMeter

SIZES = {"a": 2, "b": 3}


class Scale(Encoder):
    """x times a weight of one, as a vector and as two tokens."""

    kinds = ("vector",)

    def __init__(self, spec: ModalitySpec) -> None:
        super().__init__(spec)
        self.dim = spec.shape[0]
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tokens:  # noqa: ARG002 - contract
        values = torch.stack((x, 2 * x), dim=1) * self.weight
        return Tokens(values, torch.ones(len(x), 2, dtype=torch.bool), x * self.weight)


class Late(Fusion):
    """Each modality's own decision feature, [B, M, 2]: its sum, and the negative of that."""

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        sums = torch.stack([tokens[name].pooled.sum(dim=1) for name in self.modalities], dim=1)
        return torch.stack((sums, -sums), dim=2)


class Side(Fusion):
    """[B, 5], from the pooled vectors, from the tokens, or from both."""

    reads: str = "pooled"

    def forward(self, tokens: Mapping[str, Tokens]) -> Tensor:
        read = {
            "pooled": lambda t: t.pooled,
            "values": lambda t: t.values.sum(dim=1),
            "both": lambda t: t.pooled + t.values.sum(dim=1),
        }[self.reads]
        return torch.cat([read(tokens[name]) for name in self.modalities], dim=1)


def model(fusion: Fusion, **clips: Any) -> MultimodalModel:
    specs = {n: ModalitySpec(name=n, kind="vector", shape=(size,)) for n, size in SIZES.items()}
    encoders = {name: Scale(spec) for name, spec in specs.items()}
    return MultimodalModel(encoders, Missing(), fusion, **clips)


def batch(rows: int, present: Mapping[str, list[bool]] | None = None) -> Batch:
    torch.manual_seed(rows)
    inputs = {name: torch.randn(rows, size) for name, size in SIZES.items()}
    there = {n: torch.tensor((present or {}).get(n, [True] * rows)) for n in SIZES}
    return Batch(inputs, there, {}, torch.zeros(rows, 0), torch.arange(rows))


def look(
    model: MultimodalModel, meter: FeatureMeter, *batches: Batch, upstream: Tensor
) -> dict[str, float]:
    """One step over micro-batches; each sample's gradient of its fused feature is its row of ``upstream``."""
    for each in batches:
        _, fused = model(each, meter)
        assert fused is not None
        rows = upstream[: len(fused)].view(-1, *[1] * (fused.ndim - 1))
        (fused * rows).sum().backward()
    meter.end_step()
    (row,) = meter.take(torch.zeros(1, 1)).tolist()
    return dict(zip(meter.columns, row, strict=True))


@pytest.mark.parametrize("straight_through", [False, True])
def test_clamped_share_and_largest(straight_through: bool):
    given = model(Side(SIZES), feature_clip=0.5, straight_through=straight_through)
    meter = FeatureMeter(*given.bounds)
    first, second = batch(4), batch(2)
    seen = look(given, meter, first, second, upstream=torch.ones(4))
    features = torch.cat(
        [torch.cat((b.inputs["a"], b.inputs["b"]), dim=1) for b in (first, second)]
    )
    assert features.numel() == 30
    assert set(seen) == {"feature/clamped", "feature/largest"}
    assert seen["feature/clamped"] == pytest.approx(
        sum(abs(x) > 0.5 for x in features.flatten().tolist()) / 30
    )
    assert seen["feature/largest"] == features.abs().max()


def test_a_feature_at_the_bound_is_not_clamped():
    meter = FeatureMeter(Bound(1.0), {})
    meter.features(torch.tensor([[-1.0, 1.0, 1.5, math.inf]]))
    meter.end_step()
    assert meter.take(torch.zeros(1)).tolist() == [[0.5, math.inf]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_counted_is_what_the_clamp_changes(dtype: torch.dtype):
    """A bound that the type does not have: 0.3 is between two numbers of bfloat16."""
    meter = FeatureMeter(Bound(0.3), {})
    x = torch.arange(-128, 128).div(256).to(dtype).unsqueeze(0)
    meter.features(x)
    meter.end_step()
    (row,) = meter.take(torch.zeros(1)).tolist()
    assert row[0] == (x.clamp(-0.3, 0.3) != x).float().mean().item()


@pytest.mark.parametrize("reads", ["pooled", "values", "both"])
def test_shares_of_gradients_are_of_what_the_fusion_read(reads: str):
    """Upstream rows of 0.1 to 0.4: over D ones the norm is that times sqrt(D) (pooled), and sqrt(2), sqrt(3) times that."""
    fusion = Side(SIZES)
    fusion.reads = reads
    given = model(fusion, gradient_clip=0.41)
    seen = look(
        given, FeatureMeter(*given.bounds), batch(4), upstream=torch.tensor([0.1, 0.2, 0.3, 0.4])
    )
    factor = {"pooled": 1, "values": 2, "both": 3}[reads] ** 0.5
    assert set(seen) == {
        f"feature/gradient_{what}/{n}" for what in ("clipped", "largest") for n in SIZES
    }
    for name, size in SIZES.items():
        norms = [u * (size**0.5) * factor for u in (0.1, 0.2, 0.3, 0.4)]
        assert seen[f"feature/gradient_clipped/{name}"] == sum(n > 0.41 for n in norms) / 4
        assert seen[f"feature/gradient_largest/{name}"] == pytest.approx(max(norms))


def test_samples_without_a_modality_do_not_count_for_it():
    given = model(Side(SIZES), gradient_clip=0.25)
    gaps = {"a": [True, False, False, False], "b": [True, True, True, False]}
    seen = look(
        given,
        FeatureMeter(*given.bounds),
        batch(4, gaps),
        upstream=torch.tensor([0.1, 0.2, 0.1, 9.0]),
    )
    assert seen["feature/gradient_clipped/a"] == 0
    assert seen["feature/gradient_clipped/b"] == pytest.approx(1 / 3)
    assert seen["feature/gradient_largest/b"] == pytest.approx(0.2 * 3**0.5)


def test_a_decision_level_fusion_is_clamped_elementwise_and_clipped_by_modality():
    """[B, M, 2]: both elements of a modality are +-its sum, and the gradient into it is that of its own feature."""
    given = model(Late(SIZES), feature_clip=1.0, gradient_clip=0.5, straight_through=True)
    meter = FeatureMeter(*given.bounds)
    one = batch(5)
    _, fused = given(one, meter)
    assert fused is not None
    sums = torch.stack([one.inputs[name].sum(dim=1) for name in SIZES], dim=1)  # [B, M]
    assert torch.equal(fused, torch.stack((sums, -sums), dim=2).clamp(-1, 1))
    upstream = torch.zeros(5, 2, 2)
    upstream[:, 0, 0] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])  # into a alone
    (fused * upstream).sum().backward()
    meter.end_step()
    seen = dict(zip(meter.columns, meter.take(torch.zeros(1, 1))[0].tolist(), strict=True))
    assert seen["feature/clamped"] == pytest.approx((sums.abs() > 1).float().mean().item())
    assert seen["feature/largest"] == sums.abs().max()
    assert seen["feature/gradient_clipped/a"] == pytest.approx(2 / 5)  # 0.4 and 0.5, times sqrt 2
    assert seen["feature/gradient_clipped/b"] == 0
    clipped = torch.tensor([0.1, 0.2, 0.3, 0.5 / 2**0.5, 0.5 / 2**0.5])
    want = (clipped.unsqueeze(1) * one.inputs["a"]).sum()
    weight = given.encoders["a"].weight
    assert isinstance(weight, Tensor)
    torch.testing.assert_close(weight.grad, want)


def test_a_modality_without_a_gradient_has_a_share_of_nothing():
    meter = FeatureMeter(Bound(math.inf), {"a": Bound(1.0)})
    for _ in range(2):
        meter.end_step()
    assert meter.take(torch.zeros(2, 3)).tolist() == [[0, 0], [0, 0]]


def test_off_there_is_nothing():
    given = model(Side(SIZES))
    meter = FeatureMeter(*given.bounds)
    assert look(given, meter, batch(3), upstream=torch.ones(3)) == {}
    without = MultimodalModel({}, Missing(), None, feature_clip=1.0, gradient_clip=1.0)
    assert FeatureMeter(*without.bounds).columns == ()


def test_half_a_step_goes_on_as_if_it_had_not_been_left():
    given = model(Side(SIZES), feature_clip=0.5, gradient_clip=0.2)
    ones = torch.ones(4)
    whole = look(given, FeatureMeter(*given.bounds), batch(4), batch(3), upstream=ones)
    ranks = []
    for part in (batch(4), batch(3)):  # two ranks' halves, or one's
        meter = FeatureMeter(*given.bounds)
        _, fused = given(part, meter)
        fused.sum().backward()
        ranks.append(meter.pending())
    meter = FeatureMeter(*given.bounds)
    meter.resume(ranks, torch.device("cpu"))
    meter.end_step()
    (row,) = meter.take(torch.zeros(1, 1)).tolist()
    assert dict(zip(meter.columns, row, strict=True)) == whole
    assert meter.pending() == {}


def test_nothing_waits_for_the_device():
    with FakeTensorMode():
        given = model(Side(SIZES), feature_clip=0.5, gradient_clip=0.2)
        meter = FeatureMeter(*given.bounds)
        for _ in range(2):
            _, fused = given(batch(4), meter)
            fused.sum().backward()
        meter.end_step()
        assert meter.take(torch.zeros(1, 1)).shape == (1, 6)


def test_without_a_watch_the_model_can_be_transformed():
    given = model(Side(SIZES), feature_clip=0.5, gradient_clip=0.2)
    weights = dict(given.named_parameters())
    one = batch(4)

    def loss(weights: Mapping[str, Tensor], scale: Tensor) -> Tensor:
        return (torch.func.functional_call(given, dict(weights), (one,))[1] * scale).sum()

    scales = torch.tensor([0.1, 5.0])
    got = torch.func.vmap(torch.func.grad(loss), (None, 0))(weights, scales)
    for k, scale in enumerate(scales):
        want = torch.autograd.grad(loss(weights, scale), list(weights.values()))
        for name, each in zip(weights, want, strict=True):
            torch.testing.assert_close(got[name][k], each)
