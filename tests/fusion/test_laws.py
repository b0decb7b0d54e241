"""What single fusions promise beyond the contract."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from mmrun.batch import Tokens
from mmrun.errors import UserError
from mmrun.fusion.attention import Attention, Block
from mmrun.fusion.concat import Concat
from mmrun.fusion.sum import Sum

DIMS = {"b": 3, "a": 2}


def vectors(n: int, dims: dict[str, int]) -> dict[str, Tokens]:
    draw = torch.Generator().manual_seed(0)
    pooled = {name: torch.randn(n, width, generator=draw) for name, width in dims.items()}
    mask = torch.ones(n, 1, dtype=torch.bool)
    return {name: Tokens(x.unsqueeze(1), mask, x) for name, x in pooled.items()}


def test_concat_is_in_the_order_of_names_and_has_no_parameters():
    tokens = vectors(2, DIMS)
    fusion = Concat(DIMS)
    assert fusion.dim == 5
    assert torch.equal(fusion(tokens), torch.cat([tokens["a"].pooled, tokens["b"].pooled], dim=1))
    assert list(fusion.parameters()) == []


def test_sum_leaves_the_bias_of_an_absent_modality_out():
    fusion, tokens = Sum(DIMS, dim=4), vectors(2, DIMS)
    parts = {name: fusion.projections[name](tokens[name].pooled) for name in DIMS}
    torch.testing.assert_close(fusion(tokens), parts["a"] + parts["b"])
    without = tokens | {"b": tokens["b"].keep(torch.tensor([True, False]))}
    torch.testing.assert_close(fusion(without)[1], parts["a"][1])


def test_attention_block_is_torchs_attention():
    """Parity with scaled_dot_product_attention, one modality absent in one sample."""
    torch.manual_seed(0)
    block = Block(8, heads=2, hidden=16)
    x = torch.randn(4, 3, 8)
    there = torch.tensor([[True, True, True]] * 3 + [[True, False, True]])
    q, k, v = block.qkv(block.norm(x)).view(4, 3, 3, 2, 4).permute(2, 0, 3, 1, 4)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=there[:, None, None])
    expected = x + block.out(attended.transpose(1, 2).reshape(4, 3, 8))
    expected = expected + block.mlp(expected)
    torch.testing.assert_close(block(x, there), expected)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sum(DIMS, dim=0),
        lambda: Attention(DIMS, dim=6, heads=4),
        lambda: Attention(DIMS, layers=0),
    ],
)
def test_knobs_out_of_range_are_the_users_error(build):
    with pytest.raises(UserError) as caught:
        build()
    assert caught.value.given
    assert caught.value.remedy
