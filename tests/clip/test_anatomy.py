"""What parameters are within their modules, found without computing anything; and what a law makes of it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm

import mmrun.clip
from mmrun.clip.agc import AGC
from mmrun.clip.anatomy import anatomy
from mmrun.clip.centralize import Centralize
from mmrun.clip.norm import Norm
from mmrun.errors import UserError


def axes(module: nn.Module) -> dict[str, int]:
    found = anatomy(module).axes
    return {name: found[p] for name, p in module.named_parameters() if p in found}


def up(**kind: Any) -> nn.ConvTranspose1d:
    return nn.ConvTranspose1d(4, 6, 3, **kind)


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, spectral_norm])
def test_what_computes_a_weight_is_not_run(wrap: Any):
    module = nn.Sequential(wrap(up()), wrap(nn.Embedding(5, 3)))
    before = {name: each.clone() for name, each in module.state_dict().items()}
    found = anatomy(module)
    assert all(torch.equal(each, before[name]) for name, each in module.state_dict().items())
    parameters = dict(module.named_parameters())
    assert set(found.axes) == {p for name, p in parameters.items() if p.ndim == 3}
    assert found.tables == {p for name, p in parameters.items() if p.shape == (5, 3)}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # weight_norm's, which is still in use
def test_the_direction_of_a_normed_weight_has_the_axis():
    assert axes(parametrizations.weight_norm(up())) == {"parametrizations.weight.original1": 1}
    assert axes(weight_norm(up())) == {"weight_v": 1}


def test_a_parametrized_bias_leaves_the_weight_alone():
    module = up()
    parametrize.register_parametrization(module, "bias", nn.Identity())
    assert axes(module) == {"weight": 1}


@pytest.mark.parametrize("groups", [2, 4])
def test_a_transposed_convolution_in_groups_goes_by_inputs(groups: int):
    module = nn.ConvTranspose1d(4, 8, 3, groups=groups, bias=False)
    assert axes(module) == {}
    law = Norm(1.0, per="unit")
    module.weight.grad = torch.ones_like(module.weight)
    law(module)
    assert law.layout.rows == (4,)


def test_a_depthwise_one_is_as_many_units_as_channels():
    module = nn.ConvTranspose1d(4, 4, 3, groups=4, bias=False)
    module.weight.grad = torch.tensor([0.0, 1.0, 2.0, 4.0]).view(4, 1, 1).repeat(1, 1, 3)
    Centralize()(module)
    assert not module.weight.grad.any()  # each channel by its own mean


# AGC's exclude


@pytest.mark.parametrize("pattern", ["1.*", "1.weight", "parameters/1.*"])
def test_agc_excludes_by_the_name_that_a_module_gives(pattern: str):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for p in model.parameters():
        p.grad = torch.full_like(p, 1e3)
    AGC(0.01, exclude=[pattern])(model)
    first, last = (p.grad for name, p in model.named_parameters() if name.endswith("weight"))
    assert first is not None
    assert last is not None
    assert torch.equal(last, torch.full_like(last, 1e3))
    assert first.max() < 1


def test_agc_excluding_what_is_not_there_is_an_error_with_the_nearest_name():
    model = nn.ModuleDict({"head": nn.Linear(2, 2), "body": nn.Linear(2, 2)})
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    law = AGC(0.01, exclude=["objective", "head.wieght"])
    for _ in range(2):
        with pytest.raises(UserError, match=r"head\.wieght.*Did you mean head\.weight"):
            law(model)
    AGC(0.01)(model)  # the default may match nothing


def test_agc_keeps_working_where_what_is_excluded_is_missing_later():
    body, head = nn.Linear(2, 2), nn.Linear(2, 2)
    for p in (*body.parameters(), *head.parameters()):
        p.grad = torch.ones_like(p)
    law = AGC(0.01, exclude=["head"])
    law({"body": body, "head": head})
    law({"body": body})


# Names


def test_the_laws_are_listed_and_a_wrong_name_says_the_nearest():
    listed = dir(mmrun.clip)
    assert {"Norm", "AGC", "BlockRMS", "Chain", "Clipper", "Stats", "Unclipped"} <= set(listed)
    assert not {"Any", "Scaling", "Bounded", "Adaptive"} & set(listed)
    assert all(hasattr(mmrun.clip, name) for name in listed)
    assert not hasattr(mmrun.clip, "Nrom")
    with pytest.raises(AttributeError, match="Did you mean Norm"):
        _ = mmrun.clip.Nrom
    with pytest.raises(ImportError, match="Did you mean Norm"):
        exec("from mmrun.clip import Nrom")


def test_a_law_by_name_imports_no_other():
    code = "import sys; from mmrun.clip import Norm; assert 'mmrun.clip.zclip' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
