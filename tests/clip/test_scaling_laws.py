"""What is particular to each law that scales; what all laws keep to is in test_laws.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mmrun.clip import Clipper
from mmrun.clip.adagc import AdaGC
from mmrun.clip.adagn import AdaGN
from mmrun.clip.agc import AGC
from mmrun.clip.anatomy import anatomy
from mmrun.clip.autoclip import AutoClip
from mmrun.clip.block_rms import BlockRMS
from mmrun.clip.ema import EMA
from mmrun.clip.law import Law
from mmrun.clip.normalize import Normalize
from mmrun.clip.quantile import Quantile
from mmrun.clip.skip import Skip
from mmrun.clip.smooth import Smooth
from mmrun.clip.stats import Stats
from mmrun.clip.zclip import ZClip
from mmrun.errors import UserError

INF = math.inf


def bind(law: Law, scopes: dict[str, dict[str, list[float]]]) -> dict[str, nn.Parameter]:
    """Bind to parameters of these weights; {scope/name: parameter}."""
    made = {
        s: {n: nn.Parameter(torch.tensor(w, dtype=torch.float64)) for n, w in named.items()}
        for s, named in scopes.items()
    }
    law.bind(made)
    return {f"{s}/{n}": p for s, named in made.items() for n, p in named.items()}


def step(law: Law, bound: dict[str, nn.Parameter], **gradients: float | list[float]) -> Stats:
    """One step with these gradients by parameter name (the part after the slash)."""
    for key, p in bound.items():
        given = gradients.get(key.split("/")[1])
        p.grad = None if given is None else torch.tensor(given, dtype=p.dtype).reshape(p.shape)
    return law.apply()


def outcomes(law: Law, norms: list[float]) -> list[float]:
    """The clipped norms of a training with one element."""
    bound = bind(law, {"a": {"x": [0.0]}})
    out: list[float] = []
    for n in norms:
        step(law, bound, x=n)
        gradient = bound["a/x"].grad
        assert gradient is not None
        out.append(gradient.item())
    return out


def field(law: Law, name: str, unit: str = "") -> float:
    return law.state_dict()[name][unit].item()


@pytest.mark.parametrize(
    ("make", "knob"),
    [
        (lambda: Normalize(1.0, eps=-1.0), "eps"),
        (lambda: Normalize(1.0, eps=INF), "eps"),
        (lambda: Normalize("p0"), "threshold"),
        (lambda: Smooth(1.0, budget="most"), "budget"),  # pyright: ignore[reportArgumentType]
        (lambda: Smooth(1.0, split="odd"), "split"),  # pyright: ignore[reportArgumentType]
        (lambda: AGC(0.01, eps=0.0), "eps"),
        (lambda: AGC(0.01, eps=INF), "eps"),
        (lambda: AGC(0.01, exclude="objective"), "exclude"),
        (lambda: AGC(0.01, exclude=[3]), "exclude"),  # pyright: ignore[reportArgumentType]
        (lambda: AutoClip(100.5), "threshold"),
        (lambda: AutoClip(10.0, window=0), "window"),
        (lambda: AutoClip(10.0, window=2.5), "window"),  # pyright: ignore[reportArgumentType]
        (lambda: AutoClip(10.0, per="unit"), "per"),
        (lambda: ZClip(2.5, beta=1.0), "beta"),
        (lambda: ZClip(2.5, beta=False), "beta"),
        (lambda: ZClip(2.5, response="median"), "response"),  # pyright: ignore[reportArgumentType]
        (lambda: ZClip(2.5, warmup_steps=0), "warmup_steps"),
        (lambda: ZClip(2.5, eps=-1e-6), "eps"),
        (lambda: ZClip(2.5, sd_floor=-0.1), "sd_floor"),
        (lambda: ZClip(2.5, per="unit"), "per"),
        (lambda: Quantile(1.5), "threshold"),
        (lambda: Quantile(0.5, rate=0.0), "rate"),
        (lambda: Quantile(0.5, initial=INF), "initial"),
        (lambda: Quantile(0.5, lowest=0.0), "lowest"),
        (lambda: EMA(1.5, beta=1.5), "beta"),
        (lambda: EMA(1.5, initial=0.0), "initial"),
        (lambda: AdaGC(1.05, beta=-0.1), "beta"),
        (lambda: AdaGC(1.05, warmup_steps=-1), "warmup_steps"),
        (lambda: AdaGC(1.05, absolute=0.0), "absolute"),
        (lambda: AdaGC(1.05, per="unit"), "per"),
        (lambda: Skip(6.0, window=1), "window"),
        (lambda: Skip(6.0, per="tensor"), "per"),
        (lambda: AdaGN(1.0, beta1=1.0), "beta1"),
        (lambda: AdaGN(1.0, beta2=-1.0), "beta2"),
        (lambda: AdaGN(1.0, eps=math.nan), "eps"),
    ],
)
def test_refused(make: Callable[[], Law], knob: str):
    with pytest.raises(UserError, match=rf"clip\.{knob}\b"):
        make()


# A whole training, scaled by a power of two


@pytest.mark.parametrize("per", ["global", "modality", "tensor"])
@pytest.mark.parametrize(
    "make",
    [
        lambda per, _: AutoClip(30.0, per=per, window=7),
        lambda per, _: ZClip(1.0, per=per, warmup_steps=4, eps=0.0),
        lambda per, _: ZClip(1.0, per=per, warmup_steps=4, eps=0.0, response="mean", sd_floor=0.1),
        lambda per, a: Quantile(0.4, per=per, initial=a),
        lambda per, _: EMA(1.1, per=per, beta=0.8),
        lambda per, a: AdaGC(1.05, per=per, warmup_steps=6, absolute=a),
        lambda per, _: Skip(1.0, per=per if per != "tensor" else "global", window=6),
    ],
)
def test_scaled_losses_give_the_same_training_scaled(make: Callable[..., Law], per: str):
    """60 steps of all gradients times 64: bit for bit the outcomes times 64."""
    trainings = []
    for a in (1.0, 64.0):
        generator = torch.Generator().manual_seed(3)
        law = make(per, a)
        named = {"image": {"x": [0.0] * 6, "y": [0.0] * 3}, "text": {"z": [0.0] * 4}}
        bound = bind(law, named)
        outs: list[Tensor] = []
        for t in range(60):
            for key, p in bound.items():
                size = torch.randn((), generator=generator, dtype=torch.float64).exp()
                gradient = torch.randn(p.shape, generator=generator, dtype=torch.float64) * size
                p.grad = None if (t + len(key)) % 7 == 0 else gradient * a
            law.apply()
            outs += [p.grad.clone() / a for p in bound.values() if p.grad is not None]
        trainings.append(torch.cat(outs))
    assert torch.equal(*trainings)


# What is learnt, and when


def test_units_learn_only_from_what_they_get():
    """A modality that is missing keeps its state; one that is zero as well; the others go on."""
    for law in (AutoClip(50.0, per="modality"), EMA(2.0, per="modality"), AdaGN(1.0)):
        bound = bind(law, {"image": {"x": [0.0]}, "text": {"y": [0.0]}})
        step(law, bound, x=1.0, y=2.0)
        before = law.state_dict()
        step(law, bound, x=3.0)
        step(law, bound, x=3.0, y=0.0)
        after = law.state_dict()
        for name, units in after.items():
            moved = {unit for unit in units if not torch.equal(units[unit], before[name][unit])}
            assert moved == {unit for unit in units if unit.startswith("image")}, name


@pytest.mark.parametrize(
    "make",
    [
        lambda: AutoClip(50.0, per="modality"),
        lambda: ZClip(1.0, per="modality", warmup_steps=2),
        lambda: Quantile(0.5, per="unit"),
        lambda: EMA(1.1, per="tensor"),
        lambda: AdaGC(1.05, warmup_steps=3),
        lambda: Skip(1.0, per="modality", window=4),
        lambda: AdaGN(1.0),
        lambda: Normalize(1.0, per="modality", split="norm"),
    ],
)
def test_one_units_nan_teaches_no_unit(make: Callable[[], Law]):
    """As under the engine's default policy, which makes such a step 0."""
    law = make()
    bound = bind(law, {"image": {"x": [0.0, 0.0]}, "text": {"y": [0.0]}})
    for n in (1.0, 5.0):
        step(law, bound, x=[n, 1.0], y=n)
    before = law.state_dict()
    step(law, bound, x=[math.nan, 1.0], y=9.0)
    after = law.state_dict()
    for name, units in before.items():
        for unit, value in units.items():
            assert torch.equal(value, after[name][unit]), (name, unit)


def test_state_is_kept_by_name_when_a_scope_is_added():
    law = EMA(1.5, per="modality")
    bound = bind(law, {"image": {"x": [0.0]}, "text": {"y": [0.0]}})
    step(law, bound, x=2.0, y=5.0)
    state = law.state_dict()
    wider = EMA(1.5, per="modality")
    again = bind(wider, {"audio": {"z": [0.0]}, "text": {"y": [0.0]}, "image": {"x": [0.0]}})
    wider.load_state_dict(state)
    fields = step(wider, again, x=9.0, y=9.0, z=9.0)
    assert fields["threshold"]["image"] == 3.0
    assert fields["threshold"]["text"] == 7.5
    assert fields["threshold"]["audio"] == INF
    assert field(wider, "ema", "audio") == 9.0


def test_a_warm_up_of_the_engine_learns_and_clips_nothing():
    for law in (AutoClip(50.0), ZClip(1.0, warmup_steps=1), EMA(1.1, initial=0.5), AdaGC(1.05)):
        clip = Clipper(law, warmup=2)
        p = nn.Parameter(torch.zeros(1))
        for n in (1.0, 8.0):
            p.grad = torch.tensor([n])
            clip([p])
            assert p.grad.item() == n, law
        assert law.state_dict(), law
    # Learnt from norms as they passed, not as they would have been bounded.
    law = EMA(1.1, initial=0.5)
    law.schedule(INF)
    outcomes(law, [1.0, 8.0])
    assert field(law, "ema") == pytest.approx(0.99 + 0.08)
    quantile = Quantile(0.5, initial=1.0)
    quantile.schedule(INF)
    outcomes(quantile, [2.0])
    assert field(quantile, "limit") == pytest.approx(math.exp(0.1))


# One law after another


def test_normalize_lengthens_too_and_leaves_zero():
    law = Normalize(2.0, per="tensor", budget="each", eps=0.0)
    bound = bind(law, {"a": {"x": [0.0, 0.0], "y": [0.0], "tiny": [0.0]}})
    step(law, bound, x=[3.0, 4.0], y=0.0, tiny=1e-200)
    assert [p.grad.tolist() for p in bound.values() if p.grad is not None] == [
        pytest.approx([1.2, 1.6]),
        [0.0],
        pytest.approx([3.4028234663852886e38 * 1e-200]),  # as much as float32 multiplies by
    ]
    assert outcomes(Normalize(INF), [1e-3, 5.0]) == [1e-3, 5.0]
    # Each alone would have got a longer gradient; the one that has none pays nothing.
    law = Normalize(1.0, eps=0.0)
    stats = step(
        law, bind(law, {"a": {"x": [0.0]}, "b": {"y": [0.0]}, "c": {"z": [0.0]}}), x=3.0, y=4.0
    )
    assert stats.payer.tolist() == pytest.approx([0.6, 0.8, 1.0])


def test_smooth_is_half_at_the_threshold_and_never_reaches_it():
    assert outcomes(Smooth(4.0), [4.0, 4e9, 0.0]) == pytest.approx([2.0, 4.0, 0.0])
    assert outcomes(Smooth(INF), [4e9]) == [4e9]
    law = Smooth(5.0, per="modality")  # a budget of 3 and 4 in equal shares
    bound = bind(law, {"a": {"x": [0.0]}, "b": {"y": [0.0]}})
    stats = step(law, bound, x=1e9, y=1e9)
    assert stats["norm_clipped"][""] == pytest.approx(5.0)


def test_a_percentile_is_for_thresholds_that_are_norms():
    for kind in (Normalize, Smooth):
        law = kind("p50")
        bound = bind(law, {"a": {"x": [0.0]}})
        law.calibrate(torch.tensor([[1.0], [2.0], [3.0]]))
        assert step(law, bound, x=8.0)["threshold"][""] == 2.0
    with pytest.raises(UserError, match=r"clip\.threshold"):
        EMA("p50")  # pyright: ignore[reportArgumentType]


def test_block_rms_is_the_same_for_every_size():
    law = BlockRMS(0.5)
    bound = bind(law, {"a": {"x": [0.0], "y": [0.0] * 100, "z": [0.0] * 3}})
    step(law, bound, x=2.0, y=[2.0] * 100, z=[0.1] * 3)
    assert [p.grad.unique().tolist() for p in bound.values() if p.grad is not None] == [
        [0.5],
        [pytest.approx(0.5)],
        [0.1],
    ]


def test_autoclip_forgets_what_leaves_the_window():
    law = AutoClip(100.0, window=3)  # the largest of the last three
    assert outcomes(law, [9.0, 1.0, 2.0, 3.0, 0.0, 1.0]) == [9.0, 1.0, 2.0, 3.0, 0.0, 1.0]
    assert sorted(law.state_dict()["ring"][""][0].tolist()) == [1.0, 2.0, 3.0]
    bound = bind(law := AutoClip(50.0), {"a": {"x": [0.0]}})
    assert [step(law, bound, x=n)["threshold"][""].item() for n in (0.0, 1.0, 3.0, 0.0)] == [
        INF,
        1.0,
        2.0,
        2.0,
    ]
    median = AutoClip(50.0, window=3)
    assert outcomes(median, [9.0, 1.0, 2.0, 3.0, 9.0]) == [9.0, 1.0, 2.0, 2.0, 3.0]


def test_zclip_starts_with_population_statistics_and_bounds_outliers():
    law = ZClip(2.5, warmup_steps=5)
    assert outcomes(law, [1.0, 2.0, 3.0, 4.0, 5.0]) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (field(law, "mean"), field(law, "var")) == pytest.approx((3.0, 2.0))
    # No spread: any rise is an outlier, unless the spread has a floor.
    assert outcomes(ZClip(2.5, warmup_steps=2), [1.0, 1.0, 1.2])[2] == pytest.approx(1.0)
    assert outcomes(ZClip(2.5, warmup_steps=2, sd_floor=0.1), [1.0, 1.0, 1.2])[2] == 1.2


def test_quantile_has_a_least_threshold():
    # Each norm meets the threshold from before it.
    moved = math.exp(0.1)
    assert outcomes(Quantile(0.5, initial=1.0), [9.0, 9.0, 0.5, 9.0]) == pytest.approx(
        [1.0, moved, 0.5, moved]
    )
    law = Quantile(0.5, initial=1.0, lowest=0.9)
    outcomes(law, [0.1] * 5)
    assert field(law, "limit") == 0.9
    law = Quantile(0.9, rate=0.05, initial=1e-3)
    generator = torch.Generator().manual_seed(0)
    norms = torch.rand(4000, generator=generator).tolist()
    outcomes(law, norms)
    assert field(law, "limit") == pytest.approx(0.9, abs=0.05)


def test_ema_follows_what_it_let_through():
    assert outcomes(EMA(2.0, beta=0.5), [1.0, 10.0, 10.0]) == [1.0, 2.0, 3.0]
    assert outcomes(EMA(2.0, beta=0.5, initial=0.5), [1.0, 10.0]) == [0.5, 1.0]


def test_adagc_bounds_the_whole_while_it_warms_up():
    law = AdaGC(1.05, warmup_steps=2, absolute=2.0)
    bound = bind(law, {"a": {"x": [0.0], "late": [0.0]}, "b": {"y": [0.0]}})
    stats = step(law, bound, x=3.0, y=4.0)
    assert stats["norm_clipped"][""] == pytest.approx(2.0)
    assert stats["threshold"][""] == pytest.approx(2.0)
    step(law, bound, x=0.0, y=0.0)  # no step of the warm-up
    step(law, bound, x=0.3, y=0.4)
    assert field(law, "mean", "a/x") == 0.3
    stats = step(law, bound, x=3.0, late=7.0)
    # Bounded by its own mean; what the warm-up has not seen passes, and its mean starts.
    assert bound["a/x"].grad == pytest.approx(1.05 * 0.3)
    assert bound["a/late"].grad == 7.0
    assert field(law, "mean", "a/late") == 7.0
    step(law, bound, late=70.0)
    assert bound["a/late"].grad == pytest.approx(1.05 * 7.0)


def test_adagc_passes_what_is_not_finite_and_its_neighbours():
    law = AdaGC(1.05, warmup_steps=2)
    bound = bind(law, {"a": {"x": [0.0], "y": [0.0]}})
    step(law, bound, x=INF, y=4.0)
    assert (bound["a/x"].grad, bound["a/y"].grad) == (INF, 4.0)
    assert field(law, "steps", "a/y") == 0


def test_skip_says_so():
    law = Skip(6.0, window=8)
    bound = bind(law, {"a": {"x": [0.0]}, "b": {"y": [0.0]}})
    skipped: list[bool] = []
    for n in (1.0, 1.1, 50.0, 0.9, 1.0, 1000.0, math.nan, 1.0):
        step(law, bound, x=n, y=0.1)
        # The same step again, with the law's own view of it.
        gradient = bound["a/x"].grad
        assert gradient is not None
        skipped.append(gradient.item() == 0.0)
    # 50 came before four norms were there, and is in the history that 1000 is judged by.
    assert skipped == [False, False, False, False, False, True, False, False]


def test_skip_leaves_out_a_fused_step_and_payers_are_numbers():
    p, q = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([p, q], lr=0.1, fused=True)
    clip = Clipper(Skip(3.0, window=4))
    clip.bind({"a": {"x": p}, "b": {"y": q}})
    for n in (1.0, 1.1, 0.9, 100.0):
        p.grad, q.grad = torch.tensor([n]), torch.tensor([0.01])
        before = (p.item(), q.item())
        stats = clip.apply(optimizer)
        optimizer.step()
        assert (before == (p.item(), q.item())) == (n == 100.0)
    assert stats.payer.tolist() == [1.0, 0.0]  # a alone would have been left out as well
    assert stats["coefficient"][""] == 0.0
    law = Skip(3.0, per="modality", window=4)
    bound = bind(law, {"a": {"x": [0.0]}, "b": {"y": [0.0]}})
    for n in (1.0, 1.1, 0.9, 100.0):
        step(law, bound, x=n, y=1.0)
    assert (bound["a/x"].grad, bound["b/y"].grad) == (0.0, 1.0)


def test_adagn_counts_each_units_own_steps():
    """A parameter that comes late is bias-corrected from its first gradient on: length 1."""
    law = AdaGN(2.0, eps=0.0)
    bound = bind(law, {"a": {"x": [0.0], "y": [0.0]}})
    for _ in range(5):
        step(law, bound, x=3.0)
    step(law, bound, x=3.0, y=1e-3)
    assert bound["a/x"].grad == pytest.approx(2.0)
    assert bound["a/y"].grad == pytest.approx(2.0)
    assert outcomes(AdaGN(INF), [3.0]) == [3.0]


# AGC: rows, the floor, what is excluded


def test_agc_rows_are_output_units():
    """Each output unit's gradient is at most lambda times its weights, along the dimension that its module has it."""
    modules = {
        "linear": nn.Linear(4, 3),
        "conv": nn.Conv2d(2, 3, 2),
        "transposed": nn.ConvTranspose1d(2, 3, 2),
        "table": nn.Embedding(5, 3),
        "lstm": nn.LSTM(2, 3),
        "attention": nn.MultiheadAttention(4, 2),
    }
    whole = nn.ModuleDict(modules).double()
    law = AGC(0.01)
    law.bind({"all": dict(whole.named_parameters())}, anatomy(whole))
    torch.manual_seed(0)
    raw = {name: torch.randn_like(p) for name, p in whole.named_parameters()}
    for name, p in whole.named_parameters():
        p.grad = raw[name].clone()
    law.apply()
    for name, p in whole.named_parameters():
        assert p.grad is not None
        axis = 1 if name == "transposed.weight" else 0
        over = tuple(d for d in range(p.ndim) if p.ndim == 1 or d != axis)
        weights = torch.linalg.vector_norm(p.detach(), dim=over, keepdim=True).clamp(min=1e-3)
        lengths = torch.linalg.vector_norm(raw[name], dim=over, keepdim=True)
        want = raw[name] * (0.01 * weights / lengths).clamp(max=1.0)
        torch.testing.assert_close(p.grad, want, rtol=1e-12, atol=0.0, msg=name)


def test_agc_lets_weights_of_zero_move():
    law = AGC(0.01, eps=0.5)
    bound = bind(law, {"a": {"x": [0.0, 0.0]}})
    step(law, bound, x=[3.0, 4.0])
    assert bound["a/x"].grad is not None
    assert bound["a/x"].grad.tolist() == pytest.approx([0.003, 0.004])


def test_agc_is_of_the_update_where_that_is_clipped():
    """Weights are the optimizer's, from before the update."""
    p = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = torch.optim.SGD([p], lr=1.0)
    clip = Clipper(AGC(0.1, exclude=[]), on="update")
    clip.bind({"a": {"x": p}})
    clip.attach(optimizer)
    p.grad = torch.tensor([30.0, 40.0])
    clip.apply(optimizer)
    optimizer.step()
    assert p.tolist() == pytest.approx([2.7, 3.6])


@pytest.mark.parametrize("exclude", [["objective"], ["obj*"], ["objective/*"], ["*/w"], ["w"]])
@pytest.mark.parametrize("per", ["unit", "tensor", "modality", "global"])
def test_agc_excludes_scopes_parameters_and_patterns(per: Any, exclude: list[str]):
    law = AGC(0.01, per=per, exclude=exclude)
    bound = bind(law, {"image": {"x": [3.0, 4.0]}, "objective": {"w": [1.0]}})
    stats = step(law, bound, x=[30.0, 40.0], w=1000.0)
    assert bound["objective/w"].grad == 1000.0
    assert bound["image/x"].grad is not None
    assert bound["image/x"].grad.tolist() == pytest.approx([0.03, 0.04])
    assert stats["threshold"]["objective"] == INF
    assert stats["threshold"]["image"] == pytest.approx(0.05)
    assert stats.payer.tolist() == pytest.approx([1.0, 1.0])
    assert stats["elements"]["image"] == 1.0
    assert stats["elements"]["objective"] == 0.0


def test_agc_excludes_a_part_of_a_scope():
    law = AGC(0.01, per="modality", exclude=["image/bias"])
    bound = bind(law, {"image": {"x": [3.0, 4.0], "bias": [7.0]}, "text": {"y": [1.0]}})
    step(law, bound, x=[30.0, 40.0], bias=1000.0, y=1.0)
    assert bound["image/bias"].grad == 1000.0
    assert bound["image/x"].grad is not None
    assert bound["image/x"].grad.tolist() == pytest.approx([0.03, 0.04])
    assert bound["text/y"].grad == pytest.approx(0.01)


def test_agc_of_everything_says_who_paid():
    law = AGC(0.01, per="global")
    bound = bind(law, {"a": {"x": [3.0]}, "b": {"y": [4.0]}, "objective": {"w": [1.0]}})
    stats = step(law, bound, x=0.3, y=0.4, w=9.0)
    assert stats.payer.tolist() == pytest.approx([0.1 / (0.05 / 0.3), 0.1 / (0.05 / 0.4), 1.0])
    assert stats["threshold"][""] == pytest.approx(0.05)


def test_agc_is_bounded_by_all_weights_of_a_scope():
    """Also by those without a gradient at this step; not by frozen ones."""
    law = AGC(0.01, per="modality")
    bound = bind(law, {"image": {"x": [3.0], "unused": [4.0], "frozen": [100.0]}})
    bound["image/frozen"].requires_grad_(False)
    assert step(law, bound, x=1.0)["threshold"]["image"] == pytest.approx(0.05)
    assert bound["image/x"].grad == pytest.approx(0.05)


def test_autoclips_percentile_is_exact():
    """To the last digits of NumPy's linear percentile, in float64."""
    norms = (
        torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    ).tolist()
    out = outcomes(AutoClip(33.0, window=12), norms)
    for t, n in enumerate(norms):
        seen = torch.tensor(norms[max(0, t - 11) : t + 1], dtype=torch.float64)
        want = min(n, torch.quantile(seen, 0.33).item())
        assert out[t] == pytest.approx(want, rel=1e-14)
