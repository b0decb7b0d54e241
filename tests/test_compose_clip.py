"""The clip group before a point exists: thresholds in words, laws of scopes and of chains, thresholds from a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mmrun import cli, compose, runs
from mmrun.compose.points import Template
from mmrun.errors import UserError
from mmrun.options import common, groups, options
from mmrun.spec import Point
from tests.running import CONF

COMMON = set(yaml.safe_load((CONF / "clipping.yaml").read_text()))
EXPERIMENT = """\
# @package _global_
# Laws of scopes in a file
defaults:
  - override /clip: p90
clip:
  on: update
  scopes:
    audio: value_0.3
    image: {law: norm, threshold: 0.2, per: tensor}
    text: {threshold: 0.7}
"""
OWN = {
    "clip/soft.yaml": (
        "# By hand\n_target_: my_clip.Soft\nthreshold: 2.0\np: 2.0\nper: global\nbudget: total\n"
        "seed: ${seed}\n"
    ),
    "clip/gentle.yaml": "# On another option\ndefaults: [soft, _self_]\nthreshold: 0.5\nfloor: 0.25\n",
    "experiment/scoped.yaml": EXPERIMENT,
    "experiment/chained.yaml": (
        "# @package _global_\n# A chain in a file\ndefaults:\n  - override /clip: chain_0.5\n"
        "clip:\n  laws:\n    - centralize\n    - {law: value, threshold: 3}\n    - norm\n"
    ),
}


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A --config-dir with two laws, one upon the other, and experiments."""
    for name, text in OWN.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path / "mine")


def point(given: str = "", *dirs: str) -> Point:
    return compose.point(shlex.split(given), dirs)


def clip(given: str = "", *dirs: str) -> dict[str, Any]:
    return point(given, *dirs).config["clip"]


def law(option: str, **knobs: Any) -> dict[str, Any]:
    """The node of a law as its file states it, with other knobs."""
    return yaml.safe_load((CONF / "clip" / f"{option}.yaml").read_text()) | knobs


def refused(capsys: pytest.CaptureFixture[str], given: str) -> str:
    """What ``mmrun train`` says to it, on one line, with exit code 2 and nothing made."""
    before = sorted(Path.cwd().rglob("*"))
    assert cli.main(["train", *shlex.split(given)]) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert sorted(Path.cwd().rglob("*")) == before
    return error


# What all laws have


@pytest.mark.parametrize("option", sorted(options("clip")))
def test_every_option_has_the_common_settings_and_its_own(option: str):
    assert set(clip(f"clip={option}")) == COMMON | set(law(option))


def test_so_have_a_number_a_user_s_own_and_an_experiment(own: str):
    plain = {key: clip()[key] for key in COMMON}
    assert clip("clip=value_0.1") == plain | law("value")
    knobs = {"threshold": 2.0, "p": 2.0, "per": "global", "budget": "total", "seed": 0}
    assert clip("clip=soft", own) == plain | {"_target_": "my_clip.Soft"} | knobs
    assert clip("clip=gentle", own)["floor"] == 0.25  # an option may have its own mind
    assert clip("clip=gentle_7", own)["threshold"] == 7.0
    assert clip("experiment=scoped", own)["floor"] == 0.0
    assert clip("experiment=scoped clip=value clip.warmup=5", own)["warmup"] == 5


def test_a_bare_on_in_a_file_is_the_setting(own: str):
    """YAML takes it for true."""
    made = clip("experiment=scoped", own)
    assert made["on"] == "update"
    assert True not in made
    assert clip("experiment=scoped clip.on=gradient", own)["on"] == "gradient"


def test_the_common_settings_are_no_option():
    path = common("clip")
    assert path is not None
    assert path.is_file()
    assert "clipping" not in groups()
    assert f"{path.stem}@clip" in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]


# Percentiles as thresholds


@pytest.mark.parametrize(
    ("given", "choice", "threshold"),
    [
        ("clip=p90", "p90", "p90"),
        ("clip=norm_p90", "p90", "p90"),
        ("clip=norm clip.threshold=p90", "p90", "p90"),
        ("clip=p90.0", "p90", "p90"),
        ("clip=norm clip.threshold=p90.0", "p90", "p90"),
        ("clip=value_p99.9", "value_p99.9", "p99.9"),
        ("clip=p100", "p100", "p100"),
        ("clip=0.5 clip.threshold=p5", "p5", "p5"),
        ("clip=p90 clip.threshold=2", "2", 2.0),
    ],
)
def test_a_percentile_is_a_threshold(given: str, choice: str, threshold: float | str):
    made = point(given)
    assert (made.choices["clip"], made.config["clip"]["threshold"]) == (choice, threshold)
    assert point(f"clip={choice}").id == made.id


@pytest.mark.parametrize("word", ["p", "p0", "p101", "q90", "p-1", "90p", "pp9"])
def test_a_word_that_is_no_percentile(word: str, capsys: pytest.CaptureFixture[str]):
    assert f"no clip called {word}" in refused(capsys, f"clip={word}")
    assert "percentile" in refused(capsys, f"clip=norm clip.threshold={word}")
    assert "percentile" in refused(
        capsys, f"clip=norm 'clip.scopes.audio={{law: norm, threshold: {word}}}'"
    )


def test_a_user_s_file_comes_before_a_percentile(own: str):
    (Path(own) / "clip" / "p90.yaml").write_text("# Own\n_target_: my_clip.P\nthreshold: 5.0\n")
    assert clip("clip=p90", own)["threshold"] == 5.0
    assert clip("clip.scopes.text=p90", own)["scopes"]["text"]["_target_"] == "my_clip.P"


def test_percentiles_are_values_of_one_axis():
    made = compose.sweep(["clip=none,0.5,p90,value_0.1"])
    assert [each.name for each in made.points] == [
        "clip=none",
        "clip=0.5",
        "clip=p90",
        "clip=value_0.1",
    ]
    assert [each.choices["clip"] for each in made.points] == ["none", "0.5", "p90", "value_0.1"]


# Laws of scopes

VALUE = law("value", threshold=0.1)


@pytest.mark.parametrize(
    "given",
    [
        "clip.scopes.audio=value_0.1",
        "clip.scopes.audio=value",
        "clip.scopes.audio.law=value",
        "'clip.scopes={audio: value_0.1}'",
        "'clip.scopes.audio={law: value, threshold: 0.1}'",
        "'clip.scopes.audio={law: value_7, threshold: 0.1}'",
        "clip.scopes.audio=value_7 clip.scopes.audio.threshold=0.1",
        "clip.scopes.audio=value_7 'clip.scopes={audio: {threshold: 0.1}}'",
        "'clip={scopes: {audio: value}}'",
        "'clip.scopes.audio={_target_: mmrun.clip.value.Value, threshold: 0.1}'",
        "'clip.scopes.audio={_target_: mmrun.clip.value.Value}'",
    ],
)
def test_ways_to_say_one_law_of_a_scope(given: str):
    made = point(given)
    assert made.config["clip"]["scopes"] == {"audio": VALUE}
    assert made.id == point("clip.scopes.audio=value_0.1").id
    assert made.choices["clip"] == "none"


@pytest.mark.parametrize(
    ("given", "node"),
    [
        ("clip.scopes.text=0.5", law("norm", threshold=0.5)),
        ("clip.scopes.text=2", law("norm", threshold=2.0)),
        ("clip.scopes.text=norm_p90", law("norm", threshold="p90")),
        ("clip.scopes.text=none", law("none")),
        ("'clip.scopes.text={law: norm, threshold: .inf}'", law("norm", threshold=float("inf"))),
        ("clip=0.5 clip.scopes.text.threshold=1", law("norm", threshold=1.0)),
        ("clip=0.5 clip.p=1 clip.scopes.text.per=tensor", law("norm", threshold=0.5, p=1, per="tensor")),
        ("clip=0.5 clip.scopes.text.law=value", law("value")),
        ("clip=p90 clip.floor=0.1 'clip.scopes.text={}'", law("norm", threshold="p90")),
    ],
)  # fmt: skip
def test_the_law_of_a_scope(given: str, node: Mapping[str, Any]):
    """Knobs of the law only; numbers of the type that its file gives them."""
    (made,) = clip(given)["scopes"].values()
    assert made == node
    assert int not in {type(value) for value in made.values()}


def test_what_it_is_resolved_to_resolves_to_itself(own: str):
    made = point("clip=chain_2 clip.laws=[value_3,norm] clip.scopes.audio.threshold=3")
    whole = yaml.safe_dump({"clip": made.config["clip"]})
    head = "# @package _global_\n# Resolved\ndefaults:\n  - override /clip: chain\n"
    (Path(own) / "experiment" / "resolved.yaml").write_text(head + whole)
    assert point("experiment=resolved", own).id == made.id


def test_a_user_s_law_for_a_scope(own: str):
    """Also one that builds on another; what it refers to is the point's; engine settings stay out."""
    soft = {"_target_": "my_clip.Soft", "p": 2.0, "per": "global", "budget": "total", "seed": 3}
    made = clip("clip.scopes.audio=soft clip.scopes.text=gentle_p50 seed=3", own)["scopes"]
    assert made == {"audio": soft | {"threshold": 2.0}, "text": soft | {"threshold": "p50"}}


def test_scopes_in_an_experiment(own: str):
    plain = {
        "audio": law("value", threshold=0.3),
        "image": law("norm", threshold=0.2, per="tensor"),
        "text": law("norm", threshold=0.7),
    }
    assert clip("experiment=scoped", own)["scopes"] == plain
    more = "clip.scopes.audio.threshold=7 clip.scopes.image=value clip.scopes.fusion=1"
    assert clip(f"experiment=scoped {more}", own)["scopes"] == {
        "audio": law("value", threshold=7.0),
        "image": law("value"),
        "text": law("norm", threshold=0.7),
        "fusion": law("norm"),
    }
    assert set(clip("experiment=scoped ~clip.scopes.audio", own)["scopes"]) == {"image", "text"}
    spelled = (
        "'clip.scopes={audio: value_0.3, image: {law: norm_0.2, per: tensor}, text: norm_0.7}'"
    )
    assert point("experiment=scoped", own).id == point(f"clip=p90 clip.on=update {spelled}").id


def test_every_scope_can_have_a_law():
    scopes = ("image", "audio", "text", "fusion", "objective", "missing", "shared")
    given = " ".join(f"clip.scopes.{scope}=value" for scope in scopes)
    assert tuple(clip(given)["scopes"]) == scopes


REFUSED = {
    "clip.scopes.audoi=value": ("no scope audoi", "Did you mean audio?", "fusion"),
    "dataset.use=[image] clip.scopes.audio=value": ("no scope audio", "image"),
    "clip.scopes.audio=valeu": ("no clip called valeu", "Did you mean value"),
    "clip.scopes.audio=none_0.5": ("none has no threshold",),
    "'clip.scopes.audio={law: value, tresh: 1}'": ("no key tresh", "Did you mean threshold?"),
    "clip.scopes.audio=value clip.scopes.audio.eps=1": ("no key eps", "law, threshold"),
    "clip=1 clip.scopes.audio.floor=1": ("floor is one for all scopes", "clip.floor=VALUE"),
    "clip.scopes.audio.threshold=1": ("has no key threshold", "clip.scopes.audio.law=OPTION"),
    "clip.scopes.audio=null": ("names a law", "clip.scopes.audio=null"),
    "clip.scopes.audio=true": ("names a law",),
    "clip.scopes.audio=[value]": ("names a law", "[value]"),
    "'clip.scopes.audio={law: {a: 1}}'": ("clip.scopes.audio.law names a law",),
    "'clip.scopes.audio={law: value, _target_: a.B}'": ("names its law twice",),
    "clip.scopes=value": ("clip.scopes is a mapping",),
    "clip.scope.audio=value": ("no key scope", "scopes"),
    "-m clip.scopes.audio=value,valeu": ("no clip called valeu",),
    "-m clip=none,1 clip.scopes.audio.threshold=1": ("has no key threshold",),
    "clip=chain clip.laws=[centralize,norm_0.5]": ("the last law", "threshold", "clip=chain_0.5"),
    "clip=chain clip.laws=[centralize,0.5]": ("the last law", "clip=chain_0.5"),
    "clip=chain 'clip.laws=[centralize,{law: norm, threshold: 1}]'": ("the last law",),
    "clip=chain 'clip.laws=[centralize,{law: norm_1}]'": ("the last law",),
    "clip=chain clip.laws=[norm,centralize]": ("has a threshold", "[centralize,norm]"),
    "clip=chain clip.laws=[none,norm]": ("none in a chain", "Leave it out"),
    "clip=chain clip.laws=[norm,none]": ("none in a chain",),
    "clip=chain clip.laws=[chain_0.5,norm]": ("a chain in a chain",),
    "clip=chain clip.laws=[centralise,norm]": ("no clip called centralise", "clip.laws[0]"),
    "clip=chain 'clip.laws=[{threshold: 1},norm]'": ("clip.laws[0] names no law",),
    "clip=chain clip.laws=[]": ("clip.laws is a list of laws",),
    "clip=chain clip.laws=norm": ("clip.laws is a list of laws",),
    "clip=norm clip.laws=[norm]": ("no key laws", "clip=chain"),
    "clip.scopes.audio=chain 'clip.scopes.audio.laws=[norm,none]'": ("none in a chain",),
}


@pytest.mark.parametrize("given", REFUSED)
def test_what_is_refused_in_words(given: str, capsys: pytest.CaptureFixture[str]):
    said = refused(capsys, given)
    for part in REFUSED[given]:
        assert part in said


# Axes

AXES = [
    "clip.scopes.audio=value_0.1,norm,none",
    "clip=0.5,value clip.scopes.audio.threshold=0.1,1",
    "clip.scopes.audio=value,norm clip.scopes.audio.threshold=0.1,1",
    "clip.scopes.audio=value,1 clip.scopes.text=norm,p90 clip.record_every=1,2",
    "clip=chain_2 'clip.laws=[centralize,norm],[value_0.1,norm],[norm_3,value]'",
    "clip=norm clip.threshold=0.1,1,p50,p99.9 clip.scopes.audio.per=tensor",
    "'clip.scopes.audio={law: value},{law: norm, threshold: 3},none'",
    "experiment=scoped clip.scopes.audio=soft,0.5 seed=1,2",
    "experiment=scoped clip.scopes.audio.threshold=1,2 clip.scopes.text.threshold=p50,3",
]


@pytest.mark.parametrize("axes", AXES)
def test_points_of_a_sweep_are_what_they_are_alone(axes: str, own: str):
    made = compose.sweep(shlex.split(axes), (own,)).points
    assert len({each.id for each in made}) == len(made) > 1
    for each in made:
        alone = compose.point(each.overrides, (own,))
        assert (each.config, each.choices) == (alone.config, alone.choices)


@pytest.mark.parametrize(
    "axes",
    ["clip.scopes.audio=value_0.1,norm,none", "clip=1 clip.scopes.audio.threshold=0.1,1,p50"],
)
def test_an_axis_of_a_scope_is_composed_once(axes: str, monkeypatch: pytest.MonkeyPatch):
    composed: list[Any] = []
    full = Template._full
    monkeypatch.setattr(
        Template, "_full", lambda self, values: composed.append(values) or full(self, values)
    )
    made = compose.sweep(axes.split())
    assert (len(made.points), len(composed)) == (3, 1)


def test_names_and_the_name_of_a_sweep():
    """Another value continues it, also where laws of scopes start from the axis's value."""
    words = "clip.scopes.audio=value_0.1,norm,none"
    assert [each.name for each in compose.sweep([words]).points] == [
        "clip.scopes.audio=value_0.1",
        "clip.scopes.audio=norm",
        "clip.scopes.audio=none",
    ]
    assert compose.sweep([words]).name == compose.sweep(["clip.scopes.audio=p90,0.5"]).name
    rest = ["clip=1", "clip.scopes.audio.p=1"]
    names = {compose.sweep([f"clip.threshold={v}", *rest]).name for v in ("1,2", "3,4", "p9,1")}
    assert len(names) == 1
    for other in ("clip.scopes.audio.p=3", "clip.scopes.text.p=1"):
        assert compose.sweep(["clip.threshold=1,2", "clip=1", other]).name not in names


# Chains


def test_the_words_of_a_chain_become_laws(own: str):
    links = [law("centralize"), law("value", threshold=3.0), law("norm")]
    del links[-1]["threshold"]
    made = point("clip=chain_0.5 clip.laws=[centralize,value_3,norm]")
    assert made.config["clip"]["laws"] == links
    assert (made.choices["clip"], made.config["clip"]["threshold"]) == ("chain_0.5", 0.5)
    assert point("experiment=chained", own).id == made.id
    assert point("clip=chain clip.threshold=0.5 'clip.laws=[centralize,{law: value, threshold: 3},{law: norm}]'").id == made.id  # fmt: skip
    assert clip("clip.scopes.text=chain_p90")["scopes"]["text"] == law("chain", threshold="p90") | {
        "laws": [links[0], links[2]]
    }


def test_a_scope_may_change_the_chain_of_the_others():
    made = clip("clip=chain_2 clip.scopes.audio.threshold=3 clip.scopes.text.laws=[value_1,norm]")
    assert made["scopes"]["audio"]["laws"] == made["laws"]
    assert made["scopes"]["audio"]["threshold"] == 3.0
    assert made["scopes"]["text"]["laws"][0] == law("value", threshold=1.0)
    assert made["scopes"]["text"]["threshold"] == 2.0


# --cfg job


@pytest.mark.parametrize(
    "given",
    [
        "clip=norm_p90 clip.scopes.audio=value_0.1",
        "clip.scopes.audio=value clip.scopes.audio.threshold=0.1 clip.floor=1",
        "clip=chain_2 'clip.laws=[centralize,{law: norm, per: tensor}]'",
        "experiment=scoped clip.scopes.audio.threshold=7 clip.scopes.image=value",
        "experiment=scoped ~clip.scopes.audio clip.scopes.fusion=0.1",
        "experiment=scoped 'clip.scopes={text: {per: tensor}}'",
    ],
)
def test_what_cfg_shows_makes_the_same_point(
    given: str, own: str, capsys: pytest.CaptureFixture[str]
):
    words = shlex.split(given)
    assert cli.main(["train", "--config-dir", own, "--cfg", "job", "-p", "clip", *words]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    (Path(own) / "experiment" / "shown.yaml").write_text(
        f"# @package _global_\n# Shown\n{yaml.safe_dump({'clip': shown})}"
    )
    assert point("experiment=shown", own).id == point(given, own).id


# Thresholds from a run

STEPS = 200


def recorded_run(columns: Mapping[str, Any] | None = None, name: str = "earlier") -> Path:
    """A run directory: norms of the whole 1..200, of scopes shares of that, none of text, or what is given."""
    ramp = np.arange(1.0, STEPS + 1)
    shares = {"": 1, "/image": 1 / 2, "/audio": 1 / 4, "/text": 0, "/objective": 1}
    table: dict[str, Any] = {f"grad/norm{scope}": share * ramp for scope, share in shares.items()}
    table = {key: values for key, values in (table | dict(columns or {})).items() if len(values)}
    run = runs.create(compose.point([f"name={name}"]), Path("outputs"))
    run.update(status="finished", started=f"2026-01-02T{name}")  # the last is that of the last name
    with runs.CsvTable(runs.Paths(run.directory).gradients, ["step", *table]) as csv:
        csv.extend({"step": np.arange(STEPS), **table})
    return run.directory


P90 = 180.1  # numpy's linear percentile of 1..200


def test_a_percentile_of_a_run_becomes_its_number():
    directory = recorded_run()
    ident = json.loads((directory / "run.json").read_text())["id"]
    for run in ("last", directory, directory.name, "earlier", ident[:6]):
        made = point(f"clip=p90 'clip.calibrate_from={run}'")
        assert made.id == point(f"clip=p90 'clip.calibrate_from=\"{run}\"'").id
        assert made.id == point(f"clip={P90}").id
        assert made.choices["clip"] == str(P90)
        assert made.config["clip"]["calibrate_from"] is None
        assert made.overrides[0] == "clip=p90"  # as typed
    third = point("clip=p33.3333333 clip.calibrate_from=last").config["clip"]["threshold"]
    assert third == float(f"{np.percentile(np.arange(1, 201), 33.3333333):.6g}")


def test_only_finite_norms_count():
    recorded_run({"grad/norm": [*range(1, 201 - 3), float("nan"), float("inf"), float("nan")]})
    assert clip("clip=p100 clip.calibrate_from=last")["threshold"] == 197.0


def test_each_scope_its_own():
    """Where the law clips by modality; a scope that never had a gradient is left out."""
    recorded_run()
    given = "clip=p90 clip.per=modality clip.eps=1e-6 clip.calibrate_from=last"
    made = point(given)
    per = {"per": "modality", "eps": 1e-6}
    numbers = {"image": 90.05, "audio": 45.025, "objective": P90}
    assert made.config["clip"]["threshold"] == P90
    assert made.config["clip"]["scopes"] == {
        scope: law("norm", threshold=number, **per) for scope, number in numbers.items()
    }
    typed = " ".join(f"clip.scopes.{scope}.threshold={n}" for scope, n in numbers.items())
    assert point(f"clip={P90} clip.per=modality clip.eps=1e-6 {typed}").id == made.id
    kept = clip(f"{given} clip.scopes.audio.threshold=3 clip.scopes.image=norm_p50")["scopes"]
    assert (kept["audio"]["threshold"], kept["image"]["threshold"]) == (3.0, 50.25)


def test_a_scope_that_the_run_did_not_record_takes_the_largest_of_the_others():
    """Not the norm of everything, which is no bound for a part; nor that of another class's part."""
    ramp = np.arange(1.0, STEPS + 1)
    directory = recorded_run({"grad/norm/objective": [], "grad/norm/fusion": ramp / 8})
    given = "clip=p90 clip.per=modality clip.calibrate_from=last"
    made = clip(given)
    assert {scope: node["threshold"] for scope, node in made["scopes"].items()} == {
        "image": 90.05,
        "audio": 45.025,
        "fusion": 22.5125,
    }
    assert made["threshold"] == 90.05
    assert set(clip(f"{given} fusion=attention")["scopes"]) == {"image", "audio"}
    assert clip(f"{given} clip.scopes.image=norm")["threshold"] == 45.025
    laws = "'clip.laws=[{law: norm_p50, per: modality},norm]'"
    chained = clip(f"clip=chain_p90 {laws} clip.calibrate_from=last")
    assert chained["laws"][0]["threshold"] == 50.25
    (directory / "run.json").write_text("{")
    assert set(clip(given.replace("last", str(directory)))["scopes"]) == {"image", "audio"}


def test_laws_of_scopes_and_chains_alone():
    recorded_run()
    made = clip("clip.scopes.audio=norm_p90 clip.calibrate_from=last")
    assert made["scopes"] == {"audio": law("norm", threshold=45.025)}
    made = clip("clip=chain_p90 clip.laws=[norm_p50,norm] clip.calibrate_from=last")
    assert (made["threshold"], made["laws"][0]["threshold"]) == (P90, 100.5)
    assert "threshold" not in made["laws"][1]


def test_of_the_update():
    ramp = np.arange(1.0, STEPS + 1)
    recorded_run({"update/norm": ramp / 100, "update/norm/audio": ramp / 200})
    assert clip("clip=p90 clip.on=update clip.calibrate_from=last")["threshold"] == 1.801
    scoped = clip("clip=p90 clip.on=update clip.per=modality clip.calibrate_from=last")["scopes"]
    assert {scope: node["threshold"] for scope, node in scoped.items()} == {"audio": 0.9005}


def test_each_point_of_a_sweep_its_own():
    """Also beside a law that has no percentile; the run is one for all of them, and read once."""
    recorded_run()
    made = compose.sweep(["clip=none,p50,p90", "clip.calibrate_from=last"])
    assert [each.choices["clip"] for each in made.points] == ["none", "100.5", str(P90)]
    assert [each.name for each in made.points] == ["clip=none", "clip=p50", "clip=p90"]
    assert made.points[0].id == point().id
    made = compose.sweep(["clip=norm", "clip.threshold=p50,1,p90", "clip.calibrate_from=last"])
    assert [each.choices["clip"] for each in made.points] == ["100.5", "1", str(P90)]
    recorded_run({"grad/norm": np.arange(2.0, 202)}, "other")
    made = compose.sweep(["clip=p90", "clip.calibrate_from=choice(earlier,other)"])
    assert [each.choices["clip"] for each in made.points] == ["180.1", "181.1"]


def test_a_run_is_found_and_read_once(monkeypatch: pytest.MonkeyPatch):
    recorded_run()
    found: list[str] = []
    find = runs.find
    monkeypatch.setattr(runs, "find", lambda text, root: found.append(text) or find(text, root))
    compose.sweep(["clip=p50,p75,p90", "clip.calibrate_from=last", "seeds=2"])
    assert found == ["last"]


def test_the_name_of_a_sweep_does_not_hang_on_its_first_percentile():
    recorded_run()
    rest = ["clip=norm", "clip.per=modality", "clip.calibrate_from=last"]
    first, second = (compose.sweep([f"clip.threshold={v}", *rest]) for v in ("p50,p90", "p75,p10"))
    assert first.name == second.name


def spiky(base: float) -> list[float]:
    return [base] * (STEPS - 10) + [1e4] * 10


@pytest.mark.parametrize(
    ("given", "columns", "parts"),
    [
        ("clip=0.5", {}, ("no percentile to find", "clip=p90")),
        ("-m clip=none,0.5", {}, ("no percentile to find", "clip=p90")),
        ("clip=value_p90", {}, ("no gradient norm", "clip.threshold=p90")),
        ("clip=p90 clip.p=1", {}, ("order 2", "p=1")),
        ("clip=p90 clip.p=inf", {}, ("order 2", "p=inf")),
        ("clip=p90 dataset=synthetic", {}, ("other modalities: audio, image, text, here a, b, c",)),
        ("clip=p90 dataset.use=[image,text]", {}, ("other modalities",)),
        ("clip=p90", {"grad/norm": spiky(1.0)}, ("spread too wide", "p99 is 1e+04, p50 1")),
        ("clip=p90", {"grad/norm": spiky(0.0)}, ("spread too wide",)),
        ("clip=p90", {"grad/norm": [0.0] * STEPS}, ("no grad/norm above 0",)),
        ("clip=p1", {"grad/norm": [0.0] * 50 + [1.0] * 150}, ("p1 of grad/norm", "is 0")),
        ("clip=p90", {"grad/norm": [float("nan")] * STEPS}, ("no grad/norm above 0",)),
        ("clip=p90", {"grad/norm": []}, ("recorded no gradients",)),
        ("clip=p90 clip.on=update", {}, ("has not recorded update/norm", "trained with clip.on=update")),
        ("clip.scopes.text=norm_p90", {}, ("no grad/norm/text above 0",)),
        ("clip.scopes.fusion=norm_p90", {}, ("has not recorded grad/norm/fusion",)),
        ("clip=p90 clip.per=modality", {"grad/norm/audio": spiky(1.0)}, ("grad/norm/audio", "spread")),
    ],
)  # fmt: skip
def test_a_run_that_no_threshold_can_be_found_from(
    given: str,
    columns: Mapping[str, Sequence[float]],
    parts: Sequence[str],
    capsys: pytest.CaptureFixture[str],
):
    recorded_run(columns)
    said = refused(capsys, f"{given} clip.calibrate_from=last")
    for part in parts:
        assert part in said


def test_no_such_run(capsys: pytest.CaptureFixture[str]):
    recorded_run()
    said = refused(capsys, "clip=p90 clip.calibrate_from=earlyer")
    assert "no such run (given: earlyer)" in said
    assert "no such run (given: true)" in refused(capsys, "clip=p90 clip.calibrate_from=true")
    assert "names a run" in refused(capsys, "clip=p90 'clip={calibrate_from: true}'")


def test_the_name_of_a_run_is_one_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With its = and commas, and a name like a number; in a sweep it is no axis; also where Hydra composes it."""
    names = ["clip=none,seed=1", "1e5", "0012", "-a [b]", "it's", "true", "größe"]
    for name in names:
        directory = recorded_run({}, json.dumps(name, ensure_ascii=False))
        for run in (name, str(directory)):
            word = f"clip.calibrate_from={run}"
            assert compose.point(["clip=p90", word]).choices["clip"] == str(P90)
            (made,) = compose.sweep(["clip=p90", word]).points
            assert made.choices["clip"] == str(P90)
            assert compose.point(made.overrides).id == made.id
            assert cli.main(["train", "--cfg", "job", "clip=p90", word]) == 0
            assert yaml.safe_load(capsys.readouterr().out)["clip"]["calibrate_from"] == run
    chosen = compose.sweep(["clip=p90", "clip.calibrate_from=choice('clip=none,seed=1','1e5')"])
    assert list(chosen.axes["clip.calibrate_from"]) == ["clip=none,seed=1", "1e5"]
    assert "several values" in refused(capsys, "clip=p90 'clip.calibrate_from=choice(a,b)'")
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    for given, runs_of_it in (
        ('"clip=none,seed=1"', ["clip=none,seed=1"]),
        ("['clip=none,seed=1', last]", ["clip=none,seed=1", "last"]),
    ):
        (folder / "x.yaml").write_text(
            f"# @package _global_\nsweep: {{clip: [p90], clip.calibrate_from: {given}}}\n"
        )
        made = compose.sweep(["experiment=x"], [str(folder.parent)])
        assert list(made.axes["clip.calibrate_from"]) == runs_of_it


def test_a_spread_of_a_hundred_is_not_too_wide():
    recorded_run({"grad/norm": [1.0] * (STEPS - 10) + [100.0] * 10})
    assert clip("clip=p50 clip.calibrate_from=last")["threshold"] == 1.0


def test_an_unreadable_law_names_its_file(own: str):
    (Path(own) / "clip" / "broken.yaml").write_text("# Broken\na: [\n")
    with pytest.raises(UserError, match=r"broken\.yaml, line"):
        point("clip.scopes.text=broken", own)
