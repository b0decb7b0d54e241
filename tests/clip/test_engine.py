"""The engine: laws by scope, schedules, floor, non-finite gradients, state, and how one calls it."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmrun import clip
from mmrun.clip import Clipper, Norm, Value
from mmrun.clip.centralize import Centralize
from mmrun.clip.chain import Chain
from mmrun.clip.memory import Field
from mmrun.clip.noise import Noise
from mmrun.clip.none import Unclipped
from mmrun.clip.scaling import Scaling
from mmrun.clip.spike import Spike
from mmrun.clip.step import Gradients
from mmrun.clip.zclip import ZClip
from mmrun.errors import UserError

INF = math.inf


def scoped(*gradients: list[float]) -> dict[str, dict[str, nn.Parameter]]:
    """One parameter per scope a, b, c, ... with this gradient."""
    found: dict[str, dict[str, nn.Parameter]] = {}
    for scope, gradient in zip("abcd", gradients, strict=False):
        found[scope] = {"w": nn.Parameter(torch.zeros(len(gradient)))}
        found[scope]["w"].grad = torch.tensor(gradient)
    return found


def grads(bound: dict[str, dict[str, nn.Parameter]]) -> list[list[float]]:
    return [p.grad.tolist() for n in bound.values() for p in n.values() if p.grad is not None]


def applied(clipper: Clipper, *gradients: list[float]) -> tuple[list[list[float]], Any]:
    bound = scoped(*gradients)
    clipper.bind(bound)
    stats = clipper.apply()
    return grads(bound), stats.by_scope()


# Scopes


def test_a_scope_with_a_law_of_its_own_is_no_part_of_the_others_norm():
    out, fields = applied(
        Clipper(Norm(1.0), scopes={"b": Value(0.5)}), [3.0, 4.0], [9.0, -0.1], [0.0]
    )
    assert out == [pytest.approx([0.6, 0.8]), [0.5, pytest.approx(-0.1)], [0.0]]
    assert fields["norm"].tolist() == pytest.approx([math.sqrt(25 + 81.01), 5, math.sqrt(81.01), 0])
    assert fields["norm_clipped"].tolist() == pytest.approx(
        [math.sqrt(1.26), 1, math.sqrt(0.26), 0]
    )
    assert fields["threshold"].tolist() == [1, 1, 0.5, 1]
    assert fields["elements"].tolist() == pytest.approx([3 / 5, 1, 1 / 2, 0])


def test_laws_for_all_scopes_are_the_laws_alone():
    together, fields = applied(
        Clipper(Unclipped(), scopes={"a": Norm(1.0), "b": Norm(2.0)}), [3.0, 4.0], [0.0, 8.0]
    )
    for scope, threshold, gradient in (("a", 1.0, [3.0, 4.0]), ("b", 2.0, [0.0, 8.0])):
        alone, its = applied(Clipper(Norm(threshold)), gradient)
        k = "ab".index(scope)
        assert together[k] == alone[0]
        for name in ("norm", "norm_clipped", "coefficient", "threshold"):
            assert fields[name][1 + k] == its[name][0]


def test_one_law_bound_by_scope_is_the_law():
    raw = [3.0, 4.0], [0.3]
    plain, fields = applied(Clipper(Norm(1.0, per="modality", budget="each")), *raw)
    by_hand, others = applied(Clipper(Norm(1.0), scopes={"a": Norm(1.0), "b": Norm(1.0)}), *raw)
    assert plain == by_hand
    for name in ("norm", "norm_clipped", "coefficient", "cosine", "elements"):
        assert torch.equal(fields[name], others[name])


def test_a_law_for_a_scope_that_there_is_not():
    with pytest.raises(UserError, match=r"clip\.scopes.*audo.*audio"):
        Clipper(Norm(1.0), scopes={"audo": Value(1.0)}).bind({"audio": {}, "text": {}})


# Schedules


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.775, 0.55, 0.325, 0.1]),
        (
            "cosine",
            [1, 0.1 + 0.45 * (1 + math.sqrt(0.5)), 0.55, 0.1 + 0.45 * (1 - math.sqrt(0.5)), 0.1],
        ),
        ("exponential", [1, 0.1**0.25, 0.1**0.5, 0.1**0.75, 0.1]),
    ],
)
def test_schedules(schedule: Any, want: list[float]):
    """From the full threshold after the warm-up to its last share at the last step; it stays there."""
    clipper = Clipper(Norm(2.0), schedule=schedule, warmup=2, total_steps=7)
    bound = scoped([30.0, 40.0])
    clipper.bind(bound)
    seen: list[float] = []
    for _ in range(8):
        bound["a"]["w"].grad = torch.tensor([30.0, 40.0])
        fields = clipper.apply().by_scope()
        seen.append(fields["threshold"][0].item())
        assert fields["norm_clipped"][0] == pytest.approx(min(50, seen[-1]))
    assert seen == pytest.approx([INF, INF, *(2 * each for each in want), 2 * want[-1]])


def test_a_schedule_needs_a_length():
    with pytest.raises(UserError, match=r"schedule.*cosine.*total_steps"):
        Clipper(Norm(1.0), schedule="cosine")


# Floor


@pytest.mark.parametrize(
    ("law", "raw", "want"),
    [
        (Norm(10.0), [0.3, 0.4], [1.2, 1.6]),
        (Norm(10.0), [3.0, 4.0], [3.0, 4.0]),
        (Norm(10.0), [30.0, 40.0], [6.0, 8.0]),
        (Unclipped(), [0.0, 0.5], [0.0, 2.0]),
        (Unclipped(), [0.0, 0.0], [0.0, 0.0]),
        (Unclipped(), [30.0, 40.0], [30.0, 40.0]),
        (Value(0.1), [1.0, 0.0], [2.0, 0.0]),
    ],
)
def test_a_smaller_norm_is_raised_to_the_floor(law: Any, raw: list[float], want: list[float]):
    out, fields = applied(Clipper(law, floor=2.0), raw)
    assert out == [pytest.approx(want)]
    n, m = math.hypot(*raw), math.hypot(*want)
    assert fields["coefficient"][0] == pytest.approx(m / n if n else 1)
    assert fields["elements"][0] == pytest.approx(
        sum(a != pytest.approx(b) for a, b in zip(raw, want, strict=True)) / 2
        if isinstance(law, Value) else float(n != pytest.approx(m))
    )  # fmt: skip


def test_the_floor_has_the_granularity_of_the_law():
    law = Norm(10.0, per="modality", budget="each")
    out, _ = applied(Clipper(law, floor=1.0), [0.3, 0.4], [3.0, 4.0])
    assert out == [pytest.approx([0.6, 0.8]), [3.0, 4.0]]


# Gradients that are not finite


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("bad", [math.nan, INF, -INF])
@pytest.mark.parametrize(
    ("policy", "want"),
    [
        ("skip", [[0.0, 0.0], [0.0]]),
        ("raise", [[0.0, 0.0], [0.0]]),
        ("zero", [[0.0, 0.6], [0.8]]),
    ],
)
def test_policies(
    policy: Any, want: list[list[float]], bad: float, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
):
    if on_gpu:
        monkeypatch.setattr("mmrun.clip.engine.may_look", lambda device: False)  # noqa: ARG005
    clipper = Clipper(Norm(1.0), nonfinite=policy)
    out, fields = applied(clipper, [bad, 3.0], [4.0])
    assert out == [pytest.approx(each) for each in want]
    assert not math.isfinite(fields["norm"][0])
    assert fields["norm"][2] == 4
    assert fields["norm_clipped"][0] == pytest.approx(math.hypot(*want[0], *want[1]))
    assert fields["elements"].tolist() == [0, 0, 0], "the policy is not the law"
    assert fields["coefficient"][0] == 1
    out, fields = applied(clipper, [0.0, 3.0], [4.0])
    assert out == [pytest.approx([0.0, 0.6]), pytest.approx([0.8])]
    assert fields["norm"][0] == 5


def test_what_passes_passes():
    out, _ = applied(Clipper(Norm(1.0), nonfinite="pass"), [INF, 3.0], [4.0])
    assert out == [[INF, 3.0], [4.0]]


# Calibration


def calibrated(law: Norm, *norms: tuple[float, float]) -> tuple[Clipper, dict[str, Any]]:
    """A clipper that has seen gradients of these lengths in scopes a and b."""
    clipper, seen = Clipper(law), []
    bound = scoped([0.0], [0.0])
    clipper.bind(bound)
    assert clipper.calibrates
    for lengths in norms:
        for named, length in zip(bound.values(), lengths, strict=True):
            named["w"].grad = torch.tensor([length])
        seen.append(clipper.observe())
    return clipper, clipper.calibrate(seen)


def test_a_percentile_is_of_the_finite_norms_that_were_seen():
    norms = [(3.0, 4.0), (6.0, 8.0), (math.nan, 1.0), (30.0, 40.0), (0.0, 0.0)]
    clipper, found = calibrated(Norm("p50"), *norms)
    assert found == {"": {"": 10.0}}
    assert clipper.threshold == "p50"
    bound = scoped([30.0], [40.0])
    clipper.bind(bound)
    with pytest.raises(RuntimeError, match="calibrate"):
        clipper.apply()
    clipper, found = calibrated(Norm("p75", per="modality"), *norms)
    assert found == {"": {"a": 18.0, "b": 16.0}}, "numpy's percentile of 3 6 30 and of 1 4 8 40"
    stats = clipper.apply().by_scope()
    assert stats["threshold"].tolist() == pytest.approx([math.hypot(18, 16), 18, 16])
    again = Clipper(Norm("p75", per="modality"))
    again.bind(scoped([30.0], [4.0]))
    again.load_state_dict(clipper.state_dict())
    assert again.apply().by_scope()["norm_clipped"].tolist() == pytest.approx(
        [math.hypot(18, 4), 18, 4]
    )


def test_what_says_nothing_is_refused():
    with pytest.raises(UserError, match=r"p99 of what it bounds is .* times the p50.*p90"):
        calibrated(Norm("p90"), *[(1.0, 0.0)] * 10, (1e6, 0.0))
    with pytest.raises(UserError, match="no gradient was finite"):
        calibrated(Norm("p90"), (0.0, 0.0), (INF, 1.0))
    for word in ("p0", "p101", "q90", "p", "p-1"):
        with pytest.raises(UserError, match=r"clip\.threshold.*percentile"):
            Norm(word)
    with pytest.raises(UserError, match=r"update.*calibrate_from"):
        Clipper(Norm("p90"), on="update")


# State


def test_state_is_kept_by_scope_and_another_law_is_told():
    def made(law: Any, **scopes: Any) -> Clipper:
        clipper = Clipper(law, scopes=scopes)
        clipper.bind(scoped([1.0], [1.0]))
        return clipper

    first = made(Norm(1.0, per="modality", split="norm"), b=Value(0.1))
    for _ in range(3):
        first.apply()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again = made(Norm(1.0, per="modality", split="norm"), b=Value(0.1))
    again.load_state_dict(state)
    assert again.steps == 3
    mean = again.laws[""].state_dict()["mean"]["a"]
    assert torch.equal(mean, first.laws[""].state_dict()["mean"]["a"])
    assert mean > 0
    for other in (made(Value(1.0), b=Value(0.1)), made(Norm(1.0), b=Value(0.1))):
        with pytest.raises(
            UserError, match=r"another clip law.*norm per modality, and this is.*fresh"
        ):
            other.load_state_dict(state)
        other.load_state_dict(state, fresh=True)
        assert other.steps == 3
    one_more = made(Norm(1.0, per="modality", split="norm"), a=Value(0.1), b=Value(0.1))
    one_more.load_state_dict(state)  # a law that nothing is known of has nothing to lose
    assert one_more.steps == 3


class Counts(Norm):
    """Remembers how often each parameter had a gradient."""

    algorithm = "counts"

    def fields(self) -> dict[str, Field]:
        return {"n": Field()}

    def limits(self, norms: Tensor, gradients: Gradients) -> Tensor:
        n = self.memory.on(gradients.plan.device, gradients.plan.wide)["n"]
        self.memory.keep(gradients.teaches(norms), {"n": n + 1})
        return 1.0 / (1.0 + n)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


RESUMED: dict[str, Any] = {
    "law": lambda: Counts(1.0),
    "elements": lambda: Spike(2.0, warmup_steps=1),
    "chain": lambda: Chain(Spike(2.0, warmup_steps=1), Counts(1.0)),
    "clipper": lambda: Clipper(Spike(2.0), scopes={"b": Chain(Counts(1.0))}, warmup=2),
    "schedule": lambda: Clipper(Counts(1.0), schedule="linear", total_steps=9),
}


@pytest.mark.parametrize("how", ["call", "bind"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_state_waits_for_the_first_call(name: str, how: str):
    """The natural resume of a plain loop: bit for bit as if it had not stopped."""

    def step(each: Any, k: int) -> list[list[float]]:
        torch.manual_seed(k)
        for named in bound.values():
            named["w"].grad = torch.randn(3) * 10 ** (k % 3)
        each.apply() if how == "bind" else each(bound)
        return grads(bound)

    bound = scoped([0.0] * 3, [0.0] * 3)
    whole = RESUMED[name]()
    whole.bind(bound)
    for k in range(4):
        step(whole, k)
    state = through_a_file(whole.state_dict())
    resumed = RESUMED[name]()
    resumed.load_state_dict(state)
    assert str(resumed.state_dict()) == str(state), "saved again before the first step"
    if how == "bind":
        resumed.bind(bound)
    for k in range(4, 9):
        assert step(resumed, k) == step(whole, k)
    assert str(resumed.state_dict()) == str(whole.state_dict())


def test_a_state_that_waits_is_of_these_laws():
    clip_ = Clipper(Norm(1.0))
    clip_.bind(scoped([1.0]))
    with pytest.raises(UserError, match=r"another clip law.*norm per global, and this is value"):
        Clipper(Value(1.0)).load_state_dict(clip_.state_dict())
    other = {"": {"algorithm": "spike", "per": "tensor", "state": {"mean": {}}}}
    law, clip_, bound = Spike(1.0), Clipper(Spike(1.0)), scoped([1.0])
    law.load_state_dict({"mean": {}})
    clip_.load_state_dict({"steps": 1, "laws": other})
    for each in (law, clip_):
        for _ in range(2):  # nor does it start afresh at the next call
            with pytest.raises(UserError, match=r"another clip law.*mean"):
                each(bound)


def test_a_law_without_a_gradient_so_far_can_be_saved():
    def made() -> Clipper:
        return Clipper(Norm(1.0), scopes={"b": Spike(2.0)})

    bound, clip_ = scoped([1.0], [1.0]), made()
    bound["b"]["w"].grad = None
    clip_(bound)
    again = made()
    again.bind(bound)
    again.load_state_dict(through_a_file(clip_.state_dict()))
    assert str(again.state_dict()) == str(clip_.state_dict())


def test_the_law_of_all_others_may_have_no_scope_at_first():
    for law in (Norm(1.0), Counts(1.0)):
        clip_ = Clipper(law, scopes={"a": Counts(1.0)}, warmup=1)
        clip_({"a": scoped([3.0])["a"]})
        bound = scoped([3.0], [3.0])
        with pytest.raises(UserError, match="other parameters"):
            clip_(bound)
        clip_ = Clipper(law, scopes={"a": Counts(1.0)})
        clip_({"a": bound["a"]})
        before = clip_.own["a"].state_dict()["n"][""].clone()
        clip_(bound)
        assert clip_.own["a"].state_dict()["n"][""] == before + 1


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({}, r"no state of a Clipper \(given: \{\}\).*state_dict"),
        ({"mean": {"": torch.zeros(1)}}, "no state of a Clipper.*mean"),
        ({"steps": 1, "laws": {"": 3}}, "no state of a Clipper"),
        (None, "no state of a Clipper.*NoneType"),
        ([1], "no state of a Clipper.*list"),
    ],
)
def test_what_is_no_state(state: Any, says: str):
    bound = Clipper(Norm(1.0))
    bound.bind(scoped([1.0]))
    for each in (Clipper(Norm(1.0)), bound):
        with pytest.raises(UserError, match=says):
            each.load_state_dict(state)
    with pytest.raises(UserError, match=r"no state of a clip law.*NoneType"):
        Norm(1.0).load_state_dict(None)  # pyright: ignore[reportArgumentType]


# Calling it


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    model(torch.randn(8, 3)).square().sum().backward()
    return model


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.ravel() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("what", ["module", "parameters", "named", "optimizer", "scopes", "list"])
@pytest.mark.parametrize("engine", [False, True])
def test_it_takes_what_one_has(what: str, engine: bool):
    model, theirs = linear(), linear()
    given: Any = {
        "module": model,
        "parameters": model.parameters(),
        "named": dict(model.named_parameters()),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "scopes": {"w": [model.weight], "b": {"bias": model.bias}},
        "list": list(model.parameters()),
    }[what]
    clip_ = Clipper(Norm(0.5)) if engine else Norm(0.5)
    stats = clip_(given)
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    assert stats["norm"][""] == pytest.approx(norm.item())
    torch.testing.assert_close(flat(model), flat(theirs))
    assert set(stats["coefficient"]) == {"", *(("w", "b") if what == "scopes" else ("parameters",))}


def test_it_is_bound_once_and_keeps_its_state_when_a_part_is_added():
    model, other = linear(), linear(1)
    law = Norm(0.5, per="modality", split="norm")
    law({"a": model})
    layout = law.layout
    law({"a": model})
    assert law.layout is layout
    before = law.state_dict()["mean"]["a"].clone()
    for p in model.parameters():
        p.grad = None
    law({"a": model, "b": other})
    assert law.layout is not layout
    assert torch.equal(law.state_dict()["mean"]["a"], before)
    assert law.state_dict()["mean"]["b"] > 0


def test_what_it_does_not_take():
    with pytest.raises(UserError, match=r"parameters.*int.*model\.parameters"):
        Norm(1.0)([1, 2])  # pyright: ignore[reportArgumentType]


def nothing() -> Any:
    model = linear()
    used_up = model.parameters()
    assert list(used_up)
    return used_up


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (None, "parameters, modules or an optimizer.*NoneType"),
        (3.0, "parameters, modules or an optimizer.*float"),
        ({"image": linear(), "text": None}, "parameters, modules or an optimizer.*NoneType"),
        ([], r"no parameters.*list.*model\.parameters"),
        (nothing(), "no parameters.*generator.*once"),
        ({"a": [], "b": []}, "no parameters"),
        (nn.Tanh(), "no parameters.*Tanh"),
    ],
)
def test_what_has_nothing_to_clip(given: Any, says: str):
    for each in (Norm(1.0), Clipper(Norm(1.0))):
        with pytest.raises(UserError, match=says):
            each(given)


def test_some_scopes_may_be_empty_and_some_a_tensor():
    model = linear()
    stats = Clipper(Norm(0.5))({"w": model.weight, "rest": [model.bias], "none": []})
    assert stats["norm"]["w"] > 0
    assert stats["norm"]["none"] == 0
    Clipper(Norm(1.0)).bind({"a": {}})


def test_a_clipper_that_knows_nothing_to_clip():
    with pytest.raises(UserError, match=r"what it clips.*clip\(model\.parameters\(\)\)"):
        Clipper(Norm(1.0)).apply()


def test_who_pays():
    stats = Clipper(Norm(1.0))(scoped([3.0], [0.4]))
    paid = stats["payer"]
    assert list(paid) == ["a", "b"]
    assert paid["b"] < paid["a"]


ANY: Any = Clipper


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: ANY(Norm), r"made of clip laws.*the class Norm.*Clipper\(Norm\(1\.0\)"),
        (lambda: ANY(1.0), r"made of clip laws.*1\.0"),
        (lambda: ANY("norm"), "made of clip laws.*'norm'"),
        (lambda: ANY(Norm(1.0), scopes={"a": 0.1}), r"made of clip laws.*0\.1"),
        (lambda: Chain(Norm), "made of clip laws.*the class Norm"),
        (lambda: Clipper(LAW, scopes={"a": LAW}), r"there twice.*Norm\(1\.0\)"),
        (lambda: Clipper(Norm(1.0), scopes={"a": LAW, "b": LAW}), "there twice"),
        (lambda: Clipper(Chain(LAW), scopes={"a": LAW}), "there twice"),
        (lambda: Chain(LAW, Value(1.0), LAW), "in a chain twice"),
        (lambda: Clipper(Norm(1.0), floor=1.5), r"floor is above.*floor=1\.5, Norm\(1\.0\)"),
        (lambda: Clipper(Value(1.0), scopes={"a": Norm(1.0)}, floor=1.5), "floor is above"),
        (lambda: Clipper(Chain(Value(9.0), Norm(1.0)), floor=1.5), "floor is above"),
    ],
)
def test_what_a_clipper_is_not_made_of(made: Any, says: str):
    with pytest.raises(UserError, match=says):
        made()


LAW = Norm(1.0)


def test_a_floor_goes_with_thresholds_that_are_not_fixed():
    for law in (Norm("p90"), Norm(1.5), Norm(INF), Value(0.1)):
        assert Clipper(law, floor=1.5).floor == 1.5


def test_numbers_of_numpy_are_numbers():
    law = ZClip(
        np.float32(2.5),  # pyright: ignore[reportArgumentType]
        beta=np.float32(0.5),  # pyright: ignore[reportArgumentType]
        warmup_steps=np.int64(3),  # pyright: ignore[reportArgumentType]
        eps=np.float32(0.25),  # pyright: ignore[reportArgumentType]
    )
    assert (law.threshold, law.beta, law.warmup_steps, law.eps) == (2.5, 0.5, 3, 0.25)
    kinds = {type(each) for each in (law.threshold, law.beta, law.eps)}
    assert (kinds, type(law.warmup_steps)) == ({float}, int)
    assert Noise(1.0, seed=np.int64(7)).seed == 7  # pyright: ignore[reportArgumentType]
    assert Clipper(law, warmup=np.int64(2)).warmup == 2  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="whole number"):
        Clipper(Norm(1.0), warmup=np.bool_(True))  # pyright: ignore[reportArgumentType]


def test_what_it_looks_like():
    assert repr(Norm(1.0)) == "Norm(1.0)"
    assert repr(Norm("p90", per="modality", eps=1e-6)) == "Norm('p90', per='modality', eps=1e-06)"
    assert repr(Chain(Centralize(), Spike(2))) == "Chain(Centralize(), Spike(2.0))"
    made = Clipper(Norm(1.0), scopes={"a": Value(0.1)}, warmup=3)
    assert repr(made) == "Clipper(Norm(1.0), scopes={'a': Value(0.1)}, warmup=3)"
    assert repr(Clipper(Unclipped())) == "Clipper(Unclipped())"


def test_laws_are_found_by_name():
    assert clip.Norm is clip.norm.Norm
    assert clip.Unclipped is Unclipped
    with pytest.raises(AttributeError, match="Nrom"):
        _ = clip.Nrom


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"on": "weights"}, r"clip\.on.*weights.*gradient"),
        ({"schedule": "cosin"}, r"clip\.schedule.*cosine"),
        ({"nonfinite": "skipp"}, r"clip\.nonfinite.*skip"),
        ({"floor": -1.0}, r"clip\.floor"),
        ({"floor": INF}, r"clip\.floor"),
        ({"total_steps": 0}, r"clip\.total_steps"),
        ({"total_steps": 1.5}, r"clip\.total_steps"),
        ({"total_steps": "9"}, r"clip\.total_steps"),
        ({"warmup": -1}, r"clip\.warmup"),
        ({"warmup": 1.5}, r"clip\.warmup"),
        ({"schedule_end": 0.0}, r"clip\.schedule_end"),
        ({"max_nonfinite": 0}, r"clip\.max_nonfinite"),
        ({"record_every": 0}, r"clip\.record_every"),
        ({"record_every": True}, r"clip\.record_every"),
        ({"calibration_batches": 0}, r"clip\.calibration_batches"),
    ],
)
def test_refused(knobs: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        Clipper(Norm(1.0), **knobs)


def test_a_window_has_a_bound():
    with pytest.raises(UserError, match=r"clip\.window.*1000000000.*100000"):
        clip.AutoClip(10.0, window=10**9)


def test_a_law_of_ones_own_needs_no_name():
    class Halve(Scaling):
        def respond(self, norms: Tensor, limits: Tensor | float) -> Tensor:  # noqa: ARG002
            return torch.full_like(norms, 0.5)

    assert Halve(1.0).algorithm == "halve"
    assert applied(Clipper(Halve(1.0)), [3.0, 4.0])[0] == [[1.5, 2.0]]
