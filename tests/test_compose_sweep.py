"""Command line -> points of a sweep: Hydra's own expansion, each point as if composed alone, names of sweeps, errors."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from mmrun import compose
from mmrun.errors import UserError
from mmrun.options import options
from mmrun.spec import Point, Sweep
from tests.running import cpu_seconds

EXPERIMENT = """\
# @package _global_
# Which threshold for which text encoder?
defaults:
  - override /encoder/text: rnn
seed: 4
sweep:
  clip: [none, 0.5, value_0.1, 1e-3]
  objective.hidden: [[], [8, 4]]
  logger.project: ["a b", "c,d"]
  seeds: 2
"""

BASED = """\
# @package _global_
# The same with other seeds
defaults: [mine, _self_]
sweep: {seeds: 1, clip: 0.5}
"""


def sweep(*words: str, dirs: tuple[str, ...] = ()) -> Sweep:
    return compose.sweep(words, dirs)


def names(found: Sweep) -> list[str]:
    return [point.name for point in found.points]


@pytest.fixture
def own(tmp_path: Path) -> tuple[str]:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(EXPERIMENT)
    (folder / "based.yaml").write_text(BASED)
    (folder / "lone.yaml").write_text("# @package _global_\n# One point of its own\nseed: 7\n")
    return (str(folder.parent),)


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.lr=0.1,0.2", "threads=1"],
        ["optimizer.lr=0.1,0.2", "seed=1,2,3", "dataset.batch_size=8"],
        ["seed=range(1,4)", "optimizer.lr=choice(0.1,0.01)"],
        ["seed=range(0,10,3)", "optimizer.lr=sort(0.3,0.1,0.2)"],
        ["optimizer.lr=range(0.1,0.5,0.1)"],
        ["objective.hidden=[8],[8,4]", "dataset.batch_size=8,all"],
        ["fusion=concat,sum", "optimizer.lr=1e-3,1E-2"],
    ],
    ids=" ".join,
)
def test_expansion_is_hydra_s(words: list[str]):
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    expected = [sorted(job) for job in itertools.chain(*batches)]
    assert len(expected) > 1
    assert [sorted(point.overrides) for point in sweep(*words).points] == expected


def test_glob_takes_the_options_of_a_group(own: tuple[str]):
    chosen = [point.choices["fusion"] for point in sweep("fusion=glob(*)").points]
    assert chosen == sorted(options("fusion"))
    chosen = [point.choices["fusion"] for point in sweep("fusion=glob(*,exclude=c*)").points]
    assert chosen == sorted(option for option in options("fusion") if not option.startswith("c"))
    found = sweep("experiment=glob(lo*)", dirs=own)
    assert [point.choices["experiment"] for point in found.points] == ["lone"]


EQUAL_TO_LONE = [
    ["clip=none,0.5,value_0.1,norm_2", "fusion=concat,attention", "seeds=2"],
    ["optimizer=sgd,momentum,adamw", "optimizer.lr=0.1,1,1e-3,10", "seeds=2"],
    ["trainer.limit_train_batches=0.5,1,1.0", "trainer.patience=3,.inf"],
    ["data_seed=1,2", "seeds=3"],
    ["seeds=3", "data_seed=5"],
    ["dataset.use=[image],[image,text],all", "clip=none,1"],
    ["dataset=digits3,synthetic,linear", "seed=range(2)"],
    ["encoder/text=lstm,gru", "encoder.text.dim=8,16"],
    ["optimizer.scopes.text.lr=0.1,0.2", "optimizer.scopes.image.lr=0.1"],
    ["optimizer.scopes={text:{lr:0.1}},{image:{lr:0.2}}"],
    ["optimizer.lr=${seed},0.5", "seed=1,2"],
    ["threads=1,2", "optimizer.weight_decay=${optimizer.lr}", "optimizer.lr=0.1,0.2"],
    ["trainer.target={accuracy:0.5},{accuracy:0.6}", "seeds=2"],
    ["dataset=synthetic", "+dataset.modalities.d=vector,sequence", "seeds=2"],
    ["optimizer=sgd", "optimizer={lr: 0.5}", "seeds=2"],
    ["optimizer=sgd,momentum", "optimizer={lr: 0.5}"],
    ["dataset=synthetic", "dataset={samples: 60}", "seeds=2"],
    ["optimizer.lr=0.1,0.2", "optimizer={lr:0.5},{lr:0.6}"],
    ["optimizer={lr:0.5},{weight_decay:0.6}", "optimizer.lr=0.1,0.2"],
    ["trainer.max_epochs=${data_seed}", "seed=1,2,3"],
    ["dataset.batch_size=${threads}", "threads=1,2", "trainer.max_epochs=${dataset.batch_size}"],
    ["optimizer.weight_decay=${optimizer.lr}", "optimizer.lr=${seed},0.1", "seed=1,2"],
    ["dataset={encoders:{text:lstm}},{encoders:{text:gru}}", "seeds=2"],
    ["trainer.max_time=null,'00:00:01:00'", "seeds=2"],
]


@pytest.mark.parametrize("words", EQUAL_TO_LONE, ids=" ".join)
def test_a_point_is_what_it_is_alone(words: list[str]):
    found = sweep(*words)
    assert len(found.points) > 1
    for point in found.points:
        lone = compose.point(point.overrides)
        assert types(point.config) == types(lone.config)
        assert point.choices == lone.choices
        assert point.id == lone.id
        assert point.overrides == lone.overrides


def test_what_follows_from_another_key_follows_it():
    for point in sweep("optimizer.lr=${seed},0.5", "seed=1,2", "threads=${data_seed}").points:
        assert point.config["threads"] == point.config["seed"]
        chained = "optimizer.lr=${seed}" in point.overrides
        assert point.config["optimizer"]["lr"] == (point.config["seed"] if chained else 0.5)


def test_a_choice_and_a_mapping_of_one_group_are_two_things():
    found = sweep("optimizer=sgd,momentum", "optimizer={lr: 0.5}")
    assert [point.choices["optimizer"] for point in found.points] == ["sgd", "momentum"]
    assert {point.config["optimizer"]["lr"] for point in found.points} == {0.5}


def test_overrides_are_applied_in_the_order_in_which_they_were_typed():
    found = sweep("optimizer.lr=0.1,0.2", "optimizer={lr:0.5},{lr:0.6}", "seed=3")
    assert {point.config["optimizer"]["lr"] for point in found.points} == {0.5, 0.6}
    assert found.points[0].overrides == ("optimizer.lr=0.1", "optimizer={lr:0.5}", "seed=3")


def test_names_have_no_escapes():
    found = sweep("trainer.max_time=null,00:00:01:00", "optimizer.lr=${seed},0.1")
    assert found.points[-2].name == "trainer.max_time=00:00:01:00,optimizer.lr=${seed}"


def test_a_dataset_s_mapping_says_what_it_prefers():
    (point,) = sweep("dataset=synthetic", "dataset={encoders: {a: identity}}").points
    assert point.choices["encoder/a"] == "identity"


def types(config: Any) -> Any:
    """A config with the type of every value: 1 and 1.0 are told apart."""
    if isinstance(config, dict):
        return {key: types(value) for key, value in config.items()}
    if isinstance(config, list):
        return [types(value) for value in config]
    return type(config).__name__, config


def test_points_share_nothing():
    a, b = sweep("optimizer.lr=0.1,0.2", "objective.hidden=[8]").points
    a.config["objective"]["hidden"].append(9)
    a.config["dataset"]["use"].append("nothing")
    assert b.config["objective"]["hidden"] == [8]
    assert "nothing" not in b.config["dataset"]["use"]


def test_seeds_vary_fastest_and_take_the_data_along():
    found = sweep("clip=none,0.5", "seeds=3")
    assert names(found)[:4] == [
        "clip=none,seed=0",
        "clip=none,seed=1",
        "clip=none,seed=2",
        "clip=0.5,seed=0",
    ]
    assert [point.config["data_seed"] for point in found.points] == [0, 1, 2] * 2
    assert [p.config["seed"] for p in sweep("seeds=2", "seed=5").points] == [5, 6]
    found = sweep("seeds=2", "data_seed=9")
    assert [(p.config["seed"], p.config["data_seed"]) for p in found.points] == [(0, 9), (1, 9)]


def test_equal_points_are_taken_once_and_said():
    found = sweep("clip=0.5,norm_0.5,none", "logger=none,offline")
    assert names(found) == ["clip=0.5,logger=none", "clip=none,logger=none"]
    assert len(found.repeated) == 4
    assert len({point.id for point in found.points}) == 2


@pytest.mark.parametrize(
    ("words", "idle"),
    [
        (["trainer=default,ddp"], ("trainer",)),
        (["outputs=a,b", "clip=none,0.5"], ("outputs",)),
        (
            ["trainer.devices=1,2", "dataset.use=[image],[text]", "logger=none,auto"],
            ("logger", "trainer.devices"),
        ),
        (["clip=0.5,norm_0.5"], ()),
        (["outputs=a", "clip=0.5,norm_0.5"], ()),
        (["outputs=a,b", "clip=0.5,norm_0.5"], ("outputs",)),
        (["clip=none,0.5", "seeds=2"], ()),
    ],
)
def test_what_makes_no_difference_is_known(words: list[str], idle: tuple[str, ...]):
    assert sweep(*words).idle == idle


def test_an_experiment_brings_its_sweep(own: tuple[str]):
    found = sweep("experiment=mine", dirs=own)
    # The logger is no part of a point's id: its two values are one point.
    assert len(found.points) == 4 * 2 * 2
    assert len(found.repeated) == 16
    assert {p.choices["clip"] for p in found.points} == {"none", "0.5", "value_0.1", "0.001"}
    assert {tuple(p.config["objective"]["hidden"]) for p in found.points} == {(), (8, 4)}
    assert {p.config["logger"]["project"] for p in found.points} == {"a b"}
    assert {p.config["seed"] for p in found.points} == {4, 5}
    assert all(p.choices["encoder/text"] == "rnn" for p in found.points)
    assert not any("sweep" in p.config for p in found.points)
    for point in found.points:  # what mmrun show prints makes this point again, and it alone
        assert not compose.is_sweep(point.overrides, own)
        assert compose.point(point.overrides, own).id == point.id


def test_the_command_line_replaces_an_experiment_s_axes(own: tuple[str]):
    found = sweep("experiment=mine", "clip=0.5", "objective.hidden=[2],[3]", "seeds=1", dirs=own)
    assert names(found) == [
        f"clip=0.5,objective.hidden=[{k}],logger.project=a b,seed=4" for k in (2, 3)
    ]
    found = sweep("experiment=mine", "clip=0.5", "seed=1", dirs=own)
    assert {p.config["seed"] for p in found.points} == {1}


def test_an_experiment_builds_on_another_one_s_sweep(own: tuple[str]):
    found = sweep("experiment=based", dirs=own)
    assert names(found)[0] == "clip=0.5,objective.hidden=[],logger.project=a b,seed=4"
    assert len(found.points) == 2


def test_experiments_that_sweep_are_no_axis(own: tuple[str]):
    with pytest.raises(UserError, match="experiment mine sweeps by itself"):
        sweep("experiment=lone,mine", dirs=own)


@pytest.mark.parametrize(
    ("words", "several"),
    [
        (["clip=0.5"], False),
        (["clip=0.5,1"], False),  # Hydra's rule: a list without -m is a mistake
        (["-m", "clip=0.5"], True),
        (["--multirun"], True),
        (["seeds=2"], True),
        (["experiment=lone"], False),
        (["experiment=mine"], True),
        (["experiment=mine", "clip=0.5", "objective.hidden=[]", "seed=1"], True),
        (
            ["experiment=mine", "clip=0.5", "objective.hidden=[]", "seed=1", "logger.project=x"],
            False,
        ),
        (["experiment=nothing"], False),
        (["experiment='mine'"], True),
        (['experiment="mine"'], True),
        (["experiment= mine"], True),
    ],
)
def test_what_means_several_points(own: tuple[str], words: list[str], several: bool):
    assert compose.is_sweep(words, own) is several


# The sweep's folder


def name(*words: str) -> str:
    return sweep(*words).name


def test_more_values_and_seeds_continue_the_same_sweep():
    base = name("clip=none,0.5", "fusion=sum", "seeds=2")
    for words in (
        ["clip=0.5,1,none", "fusion=sum", "seeds=2"],
        ["clip=none,0.5", "fusion=sum", "seeds=5"],
        ["clip=none,0.5", "fusion=sum"],
        ["fusion=sum", "clip=none,0.5", "seed=1,2"],
        ["clip=none,0.5", "fusion=sum", "logger=none", "outputs=elsewhere"],
        ["clip=none,0.5", "fusion=sum", "optimizer.lr=3e-3"],  # the default, written out
    ):
        assert name(*words) == base
    others = {
        name("clip=none,0.5", "fusion=attention"),
        name("clip=none,0.5", "fusion=sum", "optimizer.lr=0.1"),
        name("clip=none,0.5", "fusion=sum", "data_seed=3"),
        name("clip=none,0.5", "fusion=sum,concat"),
        name("clip=none,0.5", "fusion=sum", "optimizer.lr=3e-3,1"),
        name("fusion=sum"),
    }
    assert base not in others
    assert len(others) == 6


def test_what_was_set_below_a_swept_group_counts():
    for words in (
        ["optimizer=adam,sgd", "optimizer.lr={}"],
        ["clip=norm,value", "clip.threshold={}"],
        ["dataset=digits3,digits3_easy", "encoder/text={}"],
    ):
        values = ("lstm", "gru") if "encoder" in words[1] else ("0.1", "0.2")
        one, other = (name(words[0], words[1].format(value)) for value in values)
        assert one != other
    assert name("clip=norm,value", "clip.threshold=0.1") == name(
        "clip=value,norm", "clip.threshold=1e-1"
    )


def test_a_dataset_axis_takes_its_followers_along():
    one = name("dataset=digits3,synthetic", "clip=0.5")
    assert one == name("dataset=synthetic,linear,digits3", "clip=0.5")
    assert one != name("dataset=digits3,synthetic", "clip=1")


def test_names_of_sweeps(own: tuple[str]):
    assert name("clip=none,0.5", "sweep=hello") == "hello"
    assert sweep("experiment=mine", dirs=own).name.startswith("mine_")
    assert (
        sweep("experiment=mine", "clip=0.5", dirs=own).name
        == sweep("experiment=mine", dirs=own).name
    )
    assert name("clip=none,0.5").startswith("clip_")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("clip.threshold=interval(0.1,10) clip=norm", "no intervals"),
        ("clip=none,nope", "no clip called nope"),
        ("fusion=glob(x*)", "no option answers"),
        ("optimizer.lr=glob(*)", "glob() is for groups"),
        ("seeds=0", "number of seeds"),
        ("seeds=a", "number of seeds"),
        ("seeds=1.5", "number of seeds"),
        ("seeds=2 seeds=3", "given twice"),
        ("seeds=", "wants a value"),
        ("seeds=2 seed=1,2", "counts from one seed"),
        ("rerun=perhaps", "rerun=stale"),
        ("name=x clip=1,2", "name themselves"),
        ("seed=range(1000) optimizer.lr=range(1000)", "more than 100000 points"),
        ("optimizer.nope=1,2", "no key nope"),
        ("clip=none,0.5 clip.threshold=1", "clip has no key threshold"),
        ("seed=abc seeds=2", "seed is a whole number"),
        ("seed=null seeds=2", "seed is a whole number"),
        ("seed=1.5 seeds=2", "seed is a whole number"),
        ("seed=1,2.5", "seed is a whole number"),
        ("data_seed=-1,2", "data_seed is a whole number"),
        ("encoder/image=cnn,glob(m*)", "stand alone"),
        ("clip=none,range(1,4)", "stand alone"),
    ],
)
def test_a_mistake_in_a_sweep(words: str, hint: str):
    with pytest.raises(UserError) as caught:
        sweep(*words.split())
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("block", "hint"),
    [
        ("sweep: [a]", "mapping of keys"),
        ("sweep: {clip: []}", "needs a value"),
        ("sweep: {clip: [nope]}", "no clip called nope"),
        ("sweep: {nope: [1, 2]}", "no key nope"),
        ("sweep: {rerun: true, clip: [none]}", "rerun is no axis"),
        ("sweep: {seeds: many}", "number of seeds"),
        ("sweep: {optimizer: {lr: [0.1, 0.2]}}", "Write optimizer.lr: [...]"),
        ("sweep: {name: [a, b]}", "name is no axis"),
        ("sweep: {experiment: [a, b]}", "experiment is no axis"),
    ],
)
def test_a_mistake_in_a_block(tmp_path: Path, block: str, hint: str):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text(f"# @package _global_\n# Bad on purpose\n{block}\n")
    with pytest.raises(UserError) as caught:
        sweep("experiment=bad", dirs=(str(folder.parent),))
    assert hint in str(caught.value)


def test_a_thousand_points_over_twenty_combinations_are_quick():
    words = [
        "fusion=concat,sum",
        "clip=none,0.5",
        "encoder/image=cnn,mlp,resnet,transformer,identity",
        "optimizer.lr=range(1,11)",
        "seeds=5",
    ]
    found: list[tuple[Point, ...]] = []
    seconds = cpu_seconds(lambda: found.append(sweep(*words).points), tries=2)
    assert [len(points) for points in found] == [1000, 1000]
    assert len({point.id for point in found[0]}) == 1000
    assert seconds < 5


MIXED = (
    "fusion=concat,sum",
    "clip=none,0.5,value_0.1",
    "optimizer=sgd,adamw",
    "optimizer.lr=0.1,1,${seed}",
    "optimizer.weight_decay=0.1,${optimizer.lr}",
    "optimizer={lr:0.5},{lr:0.6}",
    "optimizer.scopes.text.lr=0.1,${optimizer.lr}",
    "seed=1,2",
    "data_seed=3,${seed}",
    "threads=${data_seed},2",
    "trainer.max_epochs=${data_seed},4",
    "trainer.limit_train_batches=0.5,1,1.0",
    "dataset.batch_size=8,all,${threads}",
    "dataset.use=[image],[image,text]",
    "encoder/text=lstm,gru",
    "encoder.text.dim=8,${dataset.batch_size}",
    "objective.hidden=[8],[8,4],[${seed}]",
    "model.feature_clip=.inf,1,${optimizer.lr}",
    "seeds=2",
)


def test_any_mixture_of_axes_gives_the_points_that_they_are_alone():
    rng = random.Random(0)
    checked = 0
    for _ in range(40):
        words = rng.sample(MIXED, rng.randint(2, 4))
        try:
            found = sweep(*words)
        except UserError:  # seeds=2 beside seed=1,2, a dim of all
            continue
        for point in rng.sample(found.points, min(4, len(found.points))):
            lone = compose.point(point.overrides)
            assert types(point.config) == types(lone.config), point.overrides
            assert (point.id, point.choices) == (lone.id, lone.choices), point.overrides
            checked += 1
    assert checked > 80
