"""The verdict on clipping and the judgement of stability, on curves made by hand."""

import json

import numpy as np
import pytest

from mmrun.runs.stability import Stability, stability
from mmrun.runs.verdict import clip_block, is_adaptive, optimizer_label
from tests.running import cpu_seconds


def falling(n: int, first: float = 2.3, last: float = 0.1) -> np.ndarray:
    return np.geomspace(first, last, n)


def test_ok():
    noise = np.random.default_rng(0).uniform(0.7, 1.3, 500)
    assert stability(falling(500) * noise) == Stability("ok")
    assert stability([]) == Stability("ok")
    assert stability([2.3]) == Stability("ok")
    assert str(stability([1.0])) == "stable"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_diverged_at_the_first_non_finite_loss(bad):
    losses = falling(50)
    losses[[12, 30]] = bad
    assert stability(losses) == Stability("diverged", 12)
    assert stability(losses, np.arange(50) * 10) == Stability("diverged", 120)
    assert str(stability(losses)) == "diverged at step 12"


@pytest.mark.parametrize("at", [1, 7, 99, 100, 101, 350])
def test_spiked_wherever_it_happens(at):
    losses = np.full(400, 1.0)
    losses[0] = 1.5
    losses[390:] = 0.5
    losses[at] = 16.0
    assert stability(losses) == Stability("spiked", at)
    losses[at] = 9.9  # under ten times the median
    assert stability(losses).state == "ok"


def test_a_jump_below_the_first_loss_is_no_spike():
    losses = np.full(300, 0.01)
    losses[:3] = 2.3
    losses[200] = 2.2  # 220 times the median
    assert stability(losses) == Stability("ok")
    losses[200] = 2.4
    assert stability(losses) == Stability("spiked", 200)


def test_the_spike_is_judged_by_the_last_hundred_steps_only():
    losses = np.concatenate(
        [np.full(3, 20.0), np.full(300, 30.0), np.full(150, 1.0), [25.0], [1.0]]
    )
    assert stability(losses) == Stability("spiked", 453)


@pytest.mark.parametrize("n", [60, 200, 2000, 20_000])
def test_collapse_is_dated(n):
    losses = np.full(n, 2.3)
    losses[3:41] = np.linspace(2.2, 0.5, 38)
    assert stability(losses) == Stability("collapsed", 41)


def test_collapse_survives_lucky_batches():
    losses = np.concatenate([np.full(3, 2.3), falling(97, 2.0, 0.5), np.full(300, 2.3)])
    losses[[150, 222, 310]] = 0.5
    assert stability(losses) == Stability("collapsed", 100)


def test_collapse_without_ever_learning():
    found = stability(np.full(100, 2.3))
    assert found == Stability("collapsed", 0, never_learnt=True)
    assert str(found) == "collapsed: the loss never fell for good"


def test_collapse_borders():
    flat = np.full(20, 2.3)
    assert stability(flat[:19]).state == "ok"  # too short to tell
    assert stability(flat).state == "collapsed"
    flat[-5:] = 2.3 * 0.89
    assert stability(flat).state == "ok"
    flat[-5:] = 2.3 * 0.91
    assert stability(flat).state == "collapsed"


def test_at_chance_is_collapsed_though_the_loss_fell():
    found = stability(falling(100), at_chance=True)
    assert found == Stability("collapsed")
    assert str(found) == "collapsed: the metric is at chance"
    assert stability(falling(19), at_chance=True).state == "ok"


def test_the_worst_applies():
    losses = np.full(200, 2.3)
    losses[50] = 100.0
    assert stability(losses).state == "collapsed"
    losses[199] = np.nan
    assert stability(losses) == Stability("diverged", 199)


def test_losses_below_zero_are_judged_by_falling():
    assert stability(np.linspace(-1, -5, 100)) == Stability("ok")
    assert stability(np.linspace(-1, 1, 100)).state == "collapsed"
    assert stability(np.linspace(0.5, -5, 100)) == Stability("ok")


def test_the_time_to_judge_grows_with_the_run():
    noisy = np.random.default_rng(0).uniform(1, 3, 100_000)
    assert stability(noisy).state in ("ok", "collapsed")
    ratio = cpu_seconds(lambda: stability(noisy)) / cpu_seconds(lambda: stability(noisy[:10_000]))
    assert ratio < 40  # 10; 100 where the time grows with the square


def columns(n: int = 100, clipped: int = 83) -> dict[str, np.ndarray]:
    image, audio = np.full(n, 3.0), np.full(n, 4.0)
    elements = np.zeros(n)
    elements[:clipped] = 1.0
    coefficient = np.ones(n)
    coefficient[:clipped] = np.linspace(0.21, 0.41, clipped)
    return {
        "step": np.arange(n, dtype=float),
        "grad/norm": np.full(n, 5.0),
        "grad/nonfinite": np.zeros(n),
        "clip/threshold": np.full(n, 0.5),
        "clip/coefficient": coefficient,
        "clip/elements": elements,
        "grad/norm/image": image,
        "grad/norm/audio": audio,
        "clip/elements/image": elements * 0.5,
        "clip/elements/audio": np.zeros(n),
        "clip/payer/image": np.full(n, 0.9),
    }


def test_the_block_says_how_often_how_much_and_who():
    block = clip_block(columns(), algorithm="norm", threshold=0.5, optimizer="torch.optim.AdamW")
    assert block["fraction"] == pytest.approx(0.83)
    assert block["coefficient"] == pytest.approx(0.31)
    assert block["elements"] == pytest.approx(0.83)
    assert block["verdict"] == (
        "norm 0.5 clipped 83 % of steps, median coefficient 0.31; with AdamW expect little effect"
    )
    image, audio = block["scopes"]["image"], block["scopes"]["audio"]
    assert list(block["scopes"]) == ["image", "audio"]
    assert image["norm"] == {"p50": 3, "p90": 3, "p99": 3}
    assert (image["share"], audio["share"]) == (pytest.approx(9 / 25), pytest.approx(16 / 25))
    assert (image["fraction"], audio["fraction"]) == (pytest.approx(0.83), 0)
    assert (image["payer"], audio["payer"]) == (pytest.approx(0.9), None)
    assert set(block) == {
        *("algorithm", "threshold", "per", "fraction", "coefficient", "verdict", "elements"),
        "scopes",
    }
    json.dumps(block, allow_nan=False)  # None, never NaN, for what is not known


def test_sgd_gets_no_warning_and_momentum_neither():
    for optimizer in ("sgd", "torch.optim.SGD", "momentum", ""):
        assert (
            "expect" not in clip_block(columns(), algorithm="norm", optimizer=optimizer)["verdict"]
        )
    assert is_adaptive("adam")
    assert optimizer_label("rmsprop") == "RMSprop"


def test_never_engaged():
    block = clip_block(columns(clipped=0), algorithm="norm", threshold=9.0, optimizer="adam")
    assert block["verdict"] == "norm 9 never engaged: the same as clip=none"
    assert (block["fraction"], block["coefficient"], block["elements"]) == (0, 1, 0)


def test_no_clipping():
    given = columns(clipped=0)
    given["grad/norm"] = np.linspace(0, 2, 100)
    del given["clip/threshold"]
    block = clip_block(given, algorithm="none", threshold=None)
    assert block["verdict"] == "no clipping: gradient norm p50 1, p99 2"
    assert block["threshold"] is None
    assert clip_block({}, algorithm="none")["verdict"] == "no clipping"


def test_what_went_wrong_comes_first():
    given = columns()
    given["grad/nonfinite"][40:] = 3
    given["grad/norm"][41:] = np.nan
    given["grad/norm/image"][41:] = np.inf
    block = clip_block(given, algorithm="norm", threshold=0.5, stable=Stability("diverged", 12))
    assert block["verdict"].startswith("diverged at step 12; norm 0.5 clipped 83 % of steps")
    assert block["verdict"].endswith("; 3 steps with non-finite gradients")
    assert block["scopes"]["image"]["norm"]["p99"] == 3
    json.dumps(block, allow_nan=False)
    collapsed = clip_block(given, algorithm="none", stable=Stability("collapsed", 41))["verdict"]
    assert collapsed.startswith("collapsed at step 41; no clipping: gradient norm p50 5, p99 5")


def test_a_calibrated_threshold_is_the_one_in_force():
    block = clip_block(columns(), algorithm="norm", threshold="p90")
    assert block["threshold"] == 0.5


def test_a_law_that_lengthens_rescales():
    given = columns(clipped=100)
    given["clip/coefficient"] = np.full(100, 2.5)
    verdict = clip_block(given, algorithm="normalize", threshold=1.0)["verdict"]
    assert verdict == "normalize 1 rescaled 100 % of steps, median coefficient 2.5"


@pytest.mark.parametrize(("clipped", "said"), [(1, "under 1 %"), (999, "99 %"), (1000, "100 %")])
def test_a_share_is_not_rounded_away(clipped, said):
    given = columns(1000, clipped)
    if clipped == 1:
        given = columns(1001, clipped)
    assert f"clipped {said} of steps" in clip_block(given, algorithm="norm")["verdict"]


def test_nothing_recorded():
    block = clip_block({}, algorithm="norm", threshold=1.0)
    assert block["verdict"] == "norm 1: no gradients were recorded"
    assert block["fraction"] is None
    empty = {name: values[:0] for name, values in columns().items()}
    assert clip_block(empty, algorithm="norm")["fraction"] is None
    missing = {name: np.full(4, np.nan) for name in columns()}
    json.dumps(clip_block(missing, algorithm="norm"), allow_nan=False)
    zero = {name: np.zeros(4) for name in columns()}
    assert clip_block(zero, algorithm="norm")["scopes"]["image"]["share"] is None


def test_without_elements_the_coefficient_tells():
    given = columns()
    del given["clip/elements"]
    assert clip_block(given, algorithm="norm")["fraction"] == pytest.approx(0.83)


def test_what_acts_beside_the_law_is_said():
    own = {"audio": {"_target_": "mmrun.clip.value.Value", "threshold": 0.1}}
    settings = {"scopes": own, "floor": 0.2, "on": "update"}
    said = clip_block(columns(), algorithm="none", settings=settings, optimizer="adam")["verdict"]
    assert said.startswith("none of the update (audio: value 0.1, floor 0.2) clipped ")
    assert "expect" not in said, "under Adam it is the update whose clipping acts"
    plain = clip_block(
        columns(), algorithm="none", settings={"scopes": {}, "floor": 0.0, "on": "gradient"}
    )
    assert plain["verdict"].startswith("no clipping")


def test_norms_of_the_update_stand_beside_those_of_the_gradient():
    given = columns()
    n = given["step"].size
    plain = clip_block(given, algorithm="norm")["scopes"]["image"]
    given |= {"update/norm/image": np.full(n, 1.0), "update/norm/audio": np.full(n, 2.0)}
    image = clip_block(given, algorithm="norm")["scopes"]["image"]
    assert image["update"] == {"norm": {"p50": 1, "p90": 1, "p99": 1}, "share": pytest.approx(0.2)}
    assert {key: value for key, value in image.items() if key != "update"} == plain


@pytest.mark.parametrize("threshold", [1.05, 5000, 0.0125, 85.8])
def test_a_threshold_is_told_as_it_was_given(threshold: float):
    own = {"audio": {"_target_": "mmrun.clip.value.Value", "threshold": threshold}}
    given = clip_block(
        columns(), algorithm="norm", threshold=threshold, settings={"scopes": own, "floor": 0.1234}
    )
    assert given["verdict"].startswith(
        f"norm {threshold} (audio: value {threshold}, floor 0.1234) clipped "
    )
