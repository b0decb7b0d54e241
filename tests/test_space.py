"""What a command line spans for a sweeper that chooses: dimensions, their points as a grid makes them, mistakes before anything exists."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrun import compose
from mmrun.compose.interval import Interval
from mmrun.compose.space import Choice, Space
from mmrun.errors import UserError
from tests.running import run_python

SMALL = ("dataset=synthetic", "sweeper=optuna")


def space(*words: str, dirs: tuple[str, ...] = ()) -> Space:
    found = compose.sweep((*SMALL, *words), dirs)
    assert isinstance(found, Space)
    return found


@pytest.mark.parametrize(
    ("text", "dimension"),
    [
        ("interval(0.01,10)", Interval(low=0.01, high=10)),
        ("tag(log,interval(0.01,10))", Interval(low=0.01, high=10, log=True)),
        ("interval(1,8)", Interval(low=1, high=8)),
        ("int(interval(1,8))", Interval(low=1, high=8, whole=True)),
        ("tag(log,int(interval(1,8)))", Interval(low=1, high=8, whole=True, log=True)),
        ("range(1,10,3)", Interval(low=1, high=7, whole=True, step=3)),
        ("shuffle(range(10,1,-3))", Interval(low=4, high=10, whole=True, step=3)),
        ("range(0.1,0.75,0.3)", Interval(low=0.1, high=0.7, step=0.3)),
        ("0.1,0.3", Choice(values=("0.1", "0.3"))),
        ("choice(0.1,0.3)", Choice(values=("0.1", "0.3"))),
        ("0.1,0.1", Choice(values=("0.1",))),
    ],
)
def test_what_is_spanned(text: str, dimension: Any):
    assert space(f"clip.threshold={text}", "clip=norm").dimensions == {"clip.threshold": dimension}


def test_groups_numbers_among_their_options_and_the_block_of_an_experiment(tmp_path: Path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\n# Mine\ndefaults: [{override /sweeper: random}]\n"
        "sweep: {fusion: [sum, concat], optimizer.lr: 'tag(log,interval(1e-4,1))', seeds: 2}\n"
    )
    found = compose.sweep(
        ("dataset=synthetic", "experiment=mine", "clip=none,0.5,value_0.1"),
        (str(folder.parent),),
    )
    assert isinstance(found, Space)
    assert found.sweeper["sampler"] == "random"
    assert found.seeds == (0, 1)
    assert found.dimensions == {
        "fusion": Choice(values=("sum", "concat")),
        "optimizer.lr": Interval(low=1e-4, high=1, log=True),
        "clip": Choice(values=("none", "0.5", "value_0.1")),
    }


def test_points_are_those_of_a_grid():
    found = space(
        "clip=tag(log,interval(0.01,10))",
        "fusion=concat,attention",
        "optimizer.lr=0.1,1",
        "seeds=2",
        "seed=3",
    )
    made = found.points_of({"clip": 0.1234, "fusion": "attention", "optimizer.lr": "1"})
    grid = compose.sweep(
        (
            "dataset=synthetic",
            "clip=0.1234",
            "fusion=attention",
            "optimizer.lr=1",
            "seeds=2",
            "seed=3",
        )
    )
    assert [point.id for point in made] == [point.id for point in grid.points]
    assert [point.choices | {"sweeper": "grid"} for point in made] == [
        point.choices for point in grid.points
    ]
    assert [point.name for point in made] == [
        f"clip=0.1234,fusion=attention,optimizer.lr=1,seed={seed}" for seed in (3, 4)
    ]
    assert made[1].overrides == (
        *SMALL,
        *("clip=0.1234", "fusion=attention", "optimizer.lr=1", "seed=4"),
    )
    for fusion, lr, clip in [("concat", "1", 0.5), ("attention", "0.1", 0.5), ("concat", "0.1", 3)]:
        made = found.points_of({"clip": clip, "fusion": fusion, "optimizer.lr": lr})
        words = (f"clip={clip}", f"fusion={fusion}", f"optimizer.lr={lr}", "seeds=2", "seed=3")
        grid = compose.sweep(("dataset=synthetic", *words))
        assert [point.id for point in made] == [point.id for point in grid.points]
    again = found.points_of({"clip": 0.1234, "fusion": "attention", "optimizer.lr": "1"}, (9,))
    assert [point.config["seed"] for point in again] == [9]


def test_points_after_the_first_of_a_combination_are_those_of_a_grid_too():
    words = ("clip=norm,value", "clip.threshold=tag(log,interval(0.01,10))", "seeds=2")
    found = space(*words, "schedule.final=0.1")
    for law in ("norm", "value", "norm"):
        for threshold in (0.01, 0.5, 10.0):
            made = found.points_of({"clip": law, "clip.threshold": threshold})
            typed = (f"clip={law}", f"clip.threshold={threshold}", "seeds=2", "schedule.final=0.1")
            grid = compose.sweep(("dataset=synthetic", *typed))
            assert [p.config | {"sweeper": {}} for p in made] == [p.config for p in grid.points]


def test_seeds_given_one_by_one_are_seeds_and_no_dimension():
    found = space("fusion=sum,concat", "seed=1,5")
    assert list(found.dimensions) == ["fusion"]
    assert found.seeds == (1, 5)
    alone = space("fusion=sum,concat", "seed=7").points_of({"fusion": "sum"})
    assert [(point.config["seed"], point.name) for point in alone] == [(7, "fusion=sum,seed=7")]


def test_the_name_is_none_of_a_grid_and_the_base_forgets_what_is_spanned():
    words = ("clip=norm", "fusion=sum,concat")
    one = space("clip.threshold=interval(0,1)", *words)
    other = space("clip.threshold=0.5,0.7", *words, "seeds=3", "sweeper.trials=7")
    assert one.base == other.base
    assert one.name == other.name
    grid = compose.sweep(("dataset=synthetic", "clip.threshold=0.5,0.7", *words))
    assert grid.name != other.name
    assert space("clip.threshold=interval(0,1)", *words, "trainer.max_epochs=3").base != one.base
    random = compose.sweep(
        ("dataset=synthetic", "sweeper=random", "clip.threshold=0.5,0.7", *words)
    )
    assert random.name not in (grid.name, other.name)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clip.threshold=interval(1,0)", "clip=norm"], "less to more"),
        (["clip.threshold=interval(0,inf)", "clip=norm"], "finite bounds"),
        (["clip.threshold=tag(log,interval(0,1))", "clip=norm"], "above 0"),
        (["clip.threshold=tag(lin,interval(0,1))", "clip=norm"], "no tag lin"),
        (["clip.threshold=tag(log,range(1,9))", "clip=norm"], "a range has no tag log"),
        (["fusion=interval(0,1)"], "the options of fusion are no numbers"),
        (["encoder/a=interval(0,1)"], "the options of encoder are no numbers"),
        (["clip.threshold=interval(0,1)"], "clip has no key threshold"),
        (["fusion=concat,attention", "clip=none,nope"], "no clip called nope"),
        (["optimizer.lr=0.1,1", "clip=none,norm", "clip.threshold=1"], "clip has no key threshold"),
        (["clip=0.5", "seeds=2"], "nothing to choose from"),
        (["clip=0.5,1", "rerun=true"], "keeps its trials"),
        (["clip=0.5,1", "sweeper.trials=1,2"], "sweeper.trials is no axis"),
        (["clip=interval(0,1),0.5"], "stand alone"),
    ],
)
def test_mistakes_are_found_before_anything_exists(words: list[str], expected: str):
    with pytest.raises(UserError, match=expected):
        space(*words)


def test_every_choice_is_composed_where_combinations_are_many(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mmrun.compose.space.MOST_EXAMPLES", 3)
    few = space("fusion=concat,attention", "clip=none,0.5", "clip.floor=0.1,0.2")
    assert [point.name.split(",")[:3] for point in few.points] == [
        ["fusion=concat", "clip=none", "clip.floor=0.1"],
        ["fusion=attention", "clip=none", "clip.floor=0.1"],
        ["fusion=concat", "clip=0.5", "clip.floor=0.1"],
        ["fusion=concat", "clip=none", "clip.floor=0.2"],
    ]
    monkeypatch.setattr("mmrun.compose.space.MOST_EXAMPLES", 4)
    all_pairs = space("fusion=concat,attention", "clip=none,0.5", "clip.floor=0.1,0.2")
    assert len(all_pairs.points) == 5


def test_a_grid_says_who_searches_intervals():
    for words in (["clip=interval(0,1)"], ["sweeper=grid", "clip=interval(0,1)"]):
        with pytest.raises(UserError, match=r"no intervals.*sweeper=optuna"):
            compose.sweep(words)


@pytest.mark.parametrize(
    ("word", "several"),
    [("sweeper=optuna", True), ("sweeper='random'", True), ("sweeper=grid", False)],
)
def test_a_sweeper_that_chooses_makes_a_sweep(word: str, several: bool):
    assert compose.is_sweep([word]) is several


bounds = st.floats(1e-6, 1e6)


@given(bounds, bounds, st.booleans(), st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_a_rounded_value_is_short_and_near_and_what_its_text_says(
    a: float, b: float, log: bool, share: float
):
    low, high = sorted((a, b))
    if not high > low * 1.000001:
        return
    spanned = Interval(low=low, high=high, log=log)
    value = low * (high / low) ** share if log else low + (high - low) * share
    value = min(max(value, low), high)
    short = spanned.rounded(value)
    assert low <= short <= high
    assert float(spanned.text(short)) == pytest.approx(short, rel=1e-14)
    if log:
        assert abs(math.log(short / value)) <= 1.1e-3 * math.log(high / low) + 1e-9
    else:
        assert abs(short - value) <= 1e-3 * (high - low)


def test_short_texts():
    spanned = Interval(low=0.01, high=10, log=True)
    for value, text in [(0.0123456, "0.01235"), (9.99999, "10"), (1.0, "1"), (0.5, "0.5")]:
        assert spanned.text(spanned.rounded(value)) == text
    tight = Interval(low=0.999, high=0.9999)
    assert tight.text(tight.rounded(0.99951234)) == "0.999512"
    assert Interval(low=1, high=8, whole=True).text(3.0) == "3"
    assert Interval(low=0.1, high=0.7, step=0.3).rounded(0.41) == 0.4


def test_a_space_is_made_without_optuna_and_torch():
    ran = run_python(
        "-c",
        "import sys; from mmrun import compose;"
        "compose.sweep(['sweeper=optuna', 'clip=interval(0,1)', 'seeds=2']);"
        "assert not {'torch', 'optuna', 'numpy'} & set(sys.modules)",
    )
    assert ran.returncode == 0, ran.stderr
