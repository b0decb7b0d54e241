"""The oracles themselves: what the formulas have in common, for every law, whether or not conf/clip has it yet."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest

from tests.oracles import OPTIONS, ORACLES, SETTINGS, STOCHASTIC, VARIANTS, Arrays, knobs
from tests.oracles.options import CONF
from tests.oracles.units import copy, joined, length, units

LAWS = "none value norm normalize smooth agc block_rms autoclip zclip quantile ema adagc skip spike"
LAWS = [*LAWS.split(), "adaclip", "adagn", "coordinate", "clip21", "centralize", "noise", "chain"]
ALL = [(option, variant) for option, variants in VARIANTS.items() for variant in variants]
each = pytest.mark.parametrize(("option", "variant"), ALL, ids=str)
SHAPES = {
    "image": {"conv": (4, 3, 2, 2), "bias": (4,)},
    "text": {"table": (7, 5), "scale": (), "empty": (0, 3)},
    "objective": {"mix": (6, 9), "gate": (1,)},
}
# What an oracle is told of the parameters, and a law sees by itself.
FREE = {"axes", "embeddings"}


def draw(seed: int, scale: float = 1.0) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        s: {n: scale * 10.0**-k * generator.standard_normal(shape) for n, shape in named.items()}
        for k, (s, named) in enumerate(SHAPES.items())
    }


def steps(count: int = 5) -> list[Arrays]:
    """Growing gradients, of which one is absent and one zero at some of the steps."""
    out = [draw(t, 3.0**t) for t in range(1, count + 1)]
    for t, step in enumerate(out):
        if t % 2:
            del step["image"]["bias"]
        else:
            step["text"]["table"][...] = 0
    return out


def same(a: list[Arrays], b: list[Arrays]) -> bool:
    def bits(steps: list[Arrays]) -> list[Any]:
        return [
            (s, n, x.shape, x.tobytes()) for step in steps for s in step for n, x in step[s].items()
        ]

    return bits(a) == bits(b)


def defaults(option: str) -> dict[str, Any]:
    parameters = inspect.signature(ORACLES[option]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def test_every_law_of_the_table_has_an_oracle_and_variants():
    assert list(ORACLES) == list(VARIANTS) == LAWS
    assert set(STOCHASTIC) <= set(LAWS)


@each
def test_the_variants_try_knobs_that_there_are(option: str, variant: dict[str, Any]):
    assert set(variant) <= set(defaults(option)) - FREE


@pytest.mark.parametrize("option", LAWS)
def test_the_variants_try_every_knob(option: str):
    # p of clip21 and per of adagn are fixed in the law; a seed does not change what is expected.
    fixed = {"clip21": {"p"}, "adagn": {"per"}, "noise": {"seed"}}.get(option, set())
    tried = {knob for variant in VARIANTS[option] for knob in variant}
    assert tried == set(defaults(option)) - FREE - fixed


@each
def test_inputs_stay_and_outputs_are_of_their_shape(option: str, variant: dict[str, Any]):
    raw, weights = steps(), draw(0)
    kept, kept_weights = [copy(step) for step in raw], copy(weights)
    out = ORACLES[option](raw, weights, **variant)
    assert same(raw, kept)
    assert same([weights], [kept_weights])
    for before, after in zip(raw, out, strict=True):
        assert {s: list(d) for s, d in before.items()} == {s: list(d) for s, d in after.items()}
        for scope, named in before.items():
            for name, g in named.items():
                assert after[scope][name].shape == g.shape
                assert np.isfinite(after[scope][name]).all()


@each
def test_zeros_stay_zeros_and_leave_no_trace(option: str, variant: dict[str, Any]):
    raw, weights = steps(), draw(0)
    zeros = {s: {n: np.zeros_like(g) for n, g in named.items()} for s, named in raw[0].items()}
    plain = ORACLES[option](raw, weights, **variant)
    put_in = ORACLES[option]([zeros, *raw[:3], zeros, *raw[3:]], weights, **variant)
    assert not any(x.any() for t in (0, 4) for named in put_in[t].values() for x in named.values())
    assert same(plain, put_in[1:4] + put_in[5:])


@pytest.mark.parametrize(
    ("option", "variant"),
    # value looks at elements, and makes an infinite one finite.
    [(o, v) for o, v in ALL if o != "value" and not any("value" in m for m in v.get("laws", []))],
    ids=str,
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_anywhere_leaves_no_trace(
    option: str, variant: dict[str, Any], bad: float
):
    raw, weights = steps(), draw(0)
    all_bad = {
        s: {n: np.full_like(g, bad) for n, g in named.items()} for s, named in raw[0].items()
    }
    plain = ORACLES[option](raw, weights, **variant)
    put_in = ORACLES[option]([*raw[:3], all_bad, *raw[3:]], weights, **variant)
    assert same([put_in[3]], [all_bad])
    assert same(plain, put_in[:3] + put_in[4:])


@pytest.mark.parametrize("option", [o for o in LAWS if "threshold" in defaults(o)])
def test_infinity_is_off(option: str):
    own = [v for v in VARIANTS[option] if v.get("threshold") == math.inf]
    assert own
    if option != "chain":  # its members have thresholds of their own
        for variant in own:
            assert same(ORACLES[option](steps(), draw(0), **variant), steps())


@each
def test_the_variant_acts_or_is_meant_not_to(option: str, variant: dict[str, Any]):
    """Five steps are enough to see what a setting does: but for the published warm-ups, which are longer."""
    idle = option in {"none", *STOCHASTIC} or (not variant and option in {"zclip", "skip", "spike"})
    if variant.get("threshold") == math.inf and option != "chain":
        idle = True
    out = ORACLES[option](steps(), draw(0), **variant)
    assert same(out, steps()) is idle


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("per", ["global", "modality", "tensor", "unit"])
@pytest.mark.parametrize("split", ["equal", "size", "norm"])
def test_a_total_budget_bounds_the_whole(per: str, split: str, p: float):
    """However it is cut up; and with everything above its share, it is used up."""
    raw = [draw(t, 1e6) for t in range(5)]
    law = {"per": per, "split": split, "p": p, "threshold": 2.0}
    for option in ("norm", "normalize"):
        for step in ORACLES[option](raw, draw(0), **law):
            assert length(joined(step, "global")[""], p) == pytest.approx(2.0)


def test_units():
    arrays = draw(0)
    counts = {per: len(units(arrays, per)) for per in ("global", "modality", "tensor", "unit")}
    assert counts == {"global": 1, "modality": 3, "tensor": 6, "unit": 4 + 1 + 7 + 1 + 6 + 1}
    assert units(arrays, "unit")["image/conv/1"][0].shape == (3, 2, 2)
    across = units(arrays, "unit", {"image/conv": 1})
    assert [across[f"image/conv/{i}"][0].shape for i in range(3)] == [(4, 2, 2)] * 3


def test_the_table_is_complete():
    """conf/clip has every law, each with exactly its oracle's knobs and defaults; every variant is tried on it."""
    assert sorted(OPTIONS) == sorted(LAWS)
    assert (CONF / "clipping.yaml").exists()
    for option in OPTIONS:
        stated = knobs(option)
        expected = {k: v for k, v in defaults(option).items() if k not in FREE}
        # Both are fixed, so a file need not state them.
        expected = {k: v for k, v in expected.items() if k in stated or k not in {"p", "per"}}
        as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()}
        assert stated == as_lists, option
    assert len(SETTINGS) == len(ALL)
