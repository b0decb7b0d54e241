"""Command line -> point: what Hydra would compose, ids, canonical choices, users' own configs, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from mmrun import cli, compose
from mmrun.errors import UserError
from mmrun.spec import Point
from tests.running import CONF, record_of, the_run

FUSION = '''\
"""A user's fusion."""
import torch
from mmrun.fusion import Fusion

class Largest(Fusion):
    def __init__(self, dims, *, factor: float = 1.0):
        super().__init__(dims)
        self.dim, self.factor = max(dims.values()), factor

    def forward(self, tokens):
        return self.factor * torch.stack([tokens[m].pooled for m in self.modalities]).amax(0)
'''
EXPERIMENT = """\
# @package _global_
# Which text encoder? One threshold, two rates
defaults:
  - override /encoder/text: rnn
  - override /clip: "0.37"
  - override /fusion: sum
optimizer:
  lr: 0.02
fusion:
  dim: 16
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A --config-dir with a fusion, an experiment and a dataset; the fusion's module lies beside it."""
    folder = tmp_path / "mine" / "conf"
    texts = {
        "conf/fusion/largest.yaml": "# The largest\n_target_: my_fusion.Largest\nfactor: 2.0\n",
        "conf/experiment/mine.yaml": EXPERIMENT,
        "conf/dataset/two.yaml": (
            "# synthetic in two modalities\ndefaults: [synthetic, _self_]\n"
            "classes: 4\nencoders: {a: identity}\n"
        ),
        "my_fusion.py": FUSION,
    }
    for name, text in texts.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def point(*overrides: str, dirs: tuple[str, ...] = ()) -> Point:
    return compose.point(overrides, dirs)


# Numbers as choices


@pytest.mark.parametrize(
    ("given", "choice", "law", "threshold"),
    [
        ("clip=0.5", "0.5", "Norm", 0.5),
        ("clip=1", "1", "Norm", 1.0),
        ("clip=1.0", "1", "Norm", 1.0),
        ("clip=1e-3", "0.001", "Norm", 1e-3),
        ("clip=.5", "0.5", "Norm", 0.5),
        ("clip=12345678", "12345678", "Norm", 12345678.0),
        ("clip=norm", "1", "Norm", 1.0),
        ("clip=norm_2.5", "2.5", "Norm", 2.5),
        ("clip=norm_1e-3", "0.001", "Norm", 1e-3),
        ("clip=value", "value_0.1", "Value", 0.1),
        ("clip=value_0.1", "value_0.1", "Value", 0.1),
        ("clip=value_3", "value_3", "Value", 3.0),
        ("clip=value clip.threshold=0.3", "value_0.3", "Value", 0.3),
        ("clip=value_7 clip.threshold=0.3", "value_0.3", "Value", 0.3),
        ("clip=none", "none", "Unclipped", None),
        ("", "none", "Unclipped", None),
    ],
)
def test_a_law_and_its_number(given: str, choice: str, law: str, threshold: float | None):
    made = point(*given.split())
    assert made.choices["clip"] == choice
    assert made.config["clip"]["_target_"].rpartition(".")[2] == law
    assert made.config["clip"].get("threshold") == threshold
    assert type(made.config["clip"].get("threshold")) in (float, type(None))
    # The canonical choice is itself a choice of the same point.
    if choice != "12345678":
        assert point(f"clip={choice}").id == made.id


def test_a_number_keeps_the_law_s_other_knobs():
    clip = point("clip=0.5", "clip.p=1", "clip.per=modality").config["clip"]
    assert (clip["threshold"], clip["p"], clip["per"], clip["budget"]) == (
        0.5,
        1,
        "modality",
        "total",
    )


# Ids

EQUAL = [
    ["clip=0.5", "clip=norm_0.5", "clip=norm clip.threshold=0.5", "clip=.5", "clip=5e-1"],
    ["clip=1", "clip=1.0", "clip=norm", "clip=norm clip.threshold=1"],
    ["optimizer.lr=1", "optimizer.lr=1.0", "optimizer=adamw optimizer.lr=1e0"],
    ["", "fusion=concat", "encoder/image=cnn", "objective=classification", "data_seed=0", "seed=0"],
    ["", "outputs=elsewhere name=hello", "logger=none", "logger=offline logger.tags=[a]"],
    ["", "trainer.accelerator=cpu trainer.devices=2 trainer.num_nodes=3"],
    ["", "trainer.enable_progress_bar=false"],
    ["dataset.use=[image]", "dataset.use=[image] encoder/text=rnn", "dataset.use=image"],
    ["", "dataset.use=[text,audio,image]", "dataset.use=all"],
    [
        "fusion=sum clip=0.5 seed=3",
        "seed=3 clip=0.5 fusion=sum",
        "seed=3 data_seed=3 clip=0.5 fusion=sum",
    ],
]


@pytest.mark.parametrize("group", EQUAL, ids=lambda group: group[-1])
def test_equal_configs_have_equal_ids(group: list[str]):
    assert len({point(*given.split()).id for given in group}) == 1


def test_what_changes_numbers_changes_the_id():
    different = [
        "",
        "clip=0.5",
        "clip=0.25",
        "clip=value_0.5",
        "clip=0.5 clip.per=modality",
        "clip=0.5 clip.eps=1e-6",
        "fusion=sum",
        "encoder/text=rnn",
        "seed=1",
        "seed=1 data_seed=0",
        "data_seed=1",
        "threads=2",
        "dataset.use=[image]",
        "dataset.batch_size=32",
        "trainer.max_epochs=5",
        "trainer.precision=64-true",
        "trainer.limit_train_batches=1",
        "trainer.patience=3",
        "optimizer.scopes.text.lr=0.1",
        "model.feature_clip=1",
        "missing.test_rate=0.1",
    ]
    ids = {given: point(*given.split()).id for given in different}
    assert len(set(ids.values())) == len(different), ids


# The same as Hydra itself

LISTS = [
    "",
    "fusion=attention clip=0.5",
    "clip=value_0.1 clip.threshold=0.2 clip.record_every=5",
    "clip=norm_0.5 clip.p=inf clip.eps=1e-6",
    "dataset=synthetic fusion=sum fusion.dim=8 encoder/a=identity encoder/c=mlp encoder.c.hidden=[8,8]",
    "dataset=linear optimizer=sgd optimizer.lr=0.1 objective.reduction=half_sum schedule=constant",
    "dataset=digits3_hard dataset.audio_snr_db=-3 encoder/text=lstm encoder.text.layers=2",
    "dataset=avmnist dataset.root=/nowhere",
    "dataset=arrays dataset.root=x dataset.modalities={left:image,right:vector} encoder/right=identity",
    "optimizer.scopes.text.lr=0.1 optimizer.scopes.image.lr=0.2",
    "optimizer.scopes={text:{lr:0.5}} optimizer.betas=[0.5,0.9]",
    "trainer.target.accuracy=0.9 trainer.patience=3",
    "trainer.target={accuracy:0.9}",
    "trainer=smoke trainer.max_steps=5 logger=none seed=7",
    "trainer=ddp logger=offline logger.tags=[a,b] name=hello outputs=elsewhere",
    "+dataset.modalities.d={kind:vector,dim:4} dataset=synthetic",
    "dataset=synthetic ~dataset.modalities.c",
    "dataset=synthetic dataset.modalities.a.tail=2.5 dataset.modalities.b.dim=3",
    "schedule=step schedule.at=[0.1,0.2] schedule.factor=0.5",
    "seed=3 data_seed=${seed} threads=2 dataset.image_scale=${seed}",
    "missing.train_rate=0.25 model.feature_clip=2.5 objective.hidden=[64,32]",
    "dataset=digits3 dataset.use=[image,text]",
]


def by_hydra(overrides: list[str], dirs: tuple[str, ...] = ()) -> dict[str, Any]:
    """What Hydra composes from everything at once."""
    full = compose.full_overrides(overrides, dirs)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra_compose("config", overrides=full)
    resolved: Any = OmegaConf.to_container(composed, resolve=True)
    return resolved


def check_equal(made: Point, whole: dict[str, Any]) -> None:
    """A point is Hydra's config, less the dataset's preferences and what belongs to unused modalities."""
    dataset = whole["dataset"]
    modalities = list(dataset["modalities"])
    use = modalities if dataset["use"] == "all" else dataset["use"]
    expected = {k: v for k, v in dataset.items() if k not in ("encoders", "objective")}
    whole = {**whole, "dataset": {**expected, "use": [m for m in modalities if m in use]}}
    whole["encoder"] = {m: node for m, node in whole["encoder"].items() if m in use}
    assert made.config == whole


@pytest.mark.parametrize("given", LISTS)
def test_groups_first_then_values_is_a_full_compose(given: str):
    check_equal(point(*given.split()), by_hydra(given.split()))


@pytest.mark.parametrize(
    "given",
    [
        "fusion=largest fusion.factor=3",
        "experiment=mine",
        "experiment=mine clip=value_0.2 optimizer.lr=0.05 encoder/text=lstm",
        "dataset=two encoder/b=identity",
    ],
)
def test_the_same_with_a_user_s_folder(given: str, own: str):
    check_equal(point(*given.split(), dirs=(own,)), by_hydra(given.split(), (own,)))


def test_a_change_of_the_composed_config_leaves_the_next_point_alone():
    first = point("fusion=sum", "optimizer.lr=1")
    first.config["fusion"]["dim"] = 77
    assert point("fusion=sum").config["fusion"]["dim"] == 32
    assert point("fusion=sum").config["optimizer"]["lr"] == 3e-3


# Modalities


def test_an_encoder_per_modality_of_any_dataset():
    made = point("dataset=synthetic", "encoder/b=identity")
    assert {k: v for k, v in made.choices.items() if k.startswith("encoder/")} == {
        "encoder/a": "mlp",
        "encoder/b": "identity",
        "encoder/c": "mlp",
    }
    assert list(made.config["encoder"]) == ["a", "b", "c"]
    assert made.config["encoder"]["b"] == {"_target_": "mmrun.encoders.identity.Identity"}


def test_a_modality_without_a_preference_takes_its_kind_s_encoder():
    made = point("dataset=arrays", "dataset.modalities={left:image,right:vector,words:text}")
    chosen = {k[8:]: v for k, v in made.choices.items() if k.startswith("encoder/")}
    assert chosen == {"left": "cnn", "right": "mlp", "words": "conv"}


def test_encoders_of_unused_modalities_vanish():
    made = point("dataset.use=[text,image]")
    assert made.config["dataset"]["use"] == ["image", "text"]
    assert list(made.config["encoder"]) == ["image", "text"]
    assert "encoder/audio" not in made.choices


def test_a_scope_s_rate_needs_no_plus():
    made = point("optimizer.scopes.text.lr=0.1")
    assert made.config["optimizer"]["scopes"] == {"text": {"lr": 0.1}}


def test_names_say_what_was_chosen():
    assert point("fusion=sum", "clip=0.5", "outputs=x", "logger=none").name == "fusion=sum,clip=0.5"
    assert point().name == "digits3"
    assert point("name=hello", "clip=0.5").name == "hello"


# A user's own folder


def test_an_experiment_file_and_the_command_line_above_it(own: str):
    made = point("experiment=mine", dirs=(own,))
    assert made.choices["experiment"] == "mine"
    assert made.choices["encoder/text"] == "rnn"
    assert made.choices["encoder/image"] == "cnn"
    assert made.choices["clip"] == "0.37"
    assert made.config["clip"]["threshold"] == 0.37
    assert made.config["fusion"] == {"_target_": "mmrun.fusion.sum.Sum", "dim": 16}
    assert made.config["optimizer"]["lr"] == 0.02
    above = point(
        "experiment=mine", "clip=value_0.2", "encoder/text=lstm", "optimizer.lr=0.05", dirs=(own,)
    )
    assert above.choices["clip"] == "value_0.2"
    assert above.choices["encoder/text"] == "lstm"
    assert above.config["optimizer"]["lr"] == 0.05
    assert above.config["fusion"]["dim"] == 16


def test_an_experiment_equals_its_overrides(own: str):
    typed = "encoder/text=rnn clip=0.37 fusion=sum fusion.dim=16 optimizer.lr=0.02"
    assert point("experiment=mine", dirs=(own,)).id == point(*typed.split()).id


def test_a_file_that_hydra_cannot_read_is_a_mistake(own: str):
    path = Path(own) / "experiment" / "wrong.yaml"
    path.write_text("# A list that names no option\ndefaults:\n  - override /clip: [[1]]\n")
    with pytest.raises(UserError, match="cannot be composed"):
        point("experiment=wrong", dirs=(own,))


@pytest.mark.parametrize(
    "content",
    ["trainer: {max_epochs: 1}", "clip: {on: update}", "sweep: {clip: [none, 0.5]}"],
)
@pytest.mark.parametrize("before", ["# A note\n# @package _global_\n", "# A note\n", ""])
def test_an_experiment_s_package_is_its_first_line(content: str, before: str, own: str):
    """Else Hydra puts the file's content where nothing reads it."""
    folder = Path(own) / "experiment"
    (folder / "late.yaml").write_text(f"{before}{content}\n")
    with pytest.raises(UserError) as caught:
        point("experiment=late", dirs=(own,))
    assert "The first line of late.yaml must be # @package _global_." in str(caught.value)
    (folder / "late.yaml").write_text(f"\n#  @package _global_\n# A note\n{content}\n")
    point("experiment=late", dirs=(own,))


def test_a_user_s_folder_adds_and_replaces_nothing(own: str):
    made = point("fusion=largest", dirs=(own,))
    assert made.config["fusion"] == {"_target_": "my_fusion.Largest", "factor": 2.0}
    assert made.config_dirs == (own,)
    with pytest.raises(UserError, match="no fusion called largest"):
        point("fusion=largest")
    taken = Path(own) / "fusion" / "concat.yaml"
    taken.write_text("# Must not replace mmrun's own\n_target_: my_fusion.Largest\n")
    with pytest.raises(UserError, match="two options called fusion=concat") as told:
        point("fusion=largest", dirs=(own,))
    assert str(taken) in told.value.given


def test_a_folder_given_twice_is_one_folder(own: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(own).parent)
    assert point("fusion=largest", dirs=(own, "conf", "./conf/")).config_dirs == (own,)


def test_two_folders_of_a_user_s_do_not_hide_each_other(own: str, tmp_path: Path):
    other = tmp_path / "other" / "fusion"
    other.mkdir(parents=True)
    (other / "second.yaml").write_text("# Another\n_target_: my_fusion.Largest\n")
    dirs = (own, str(other.parent))
    assert point("fusion=second", dirs=dirs).config_dirs == dirs
    (other / "largest.yaml").write_text("# Another\n_target_: my_fusion.Largest\n")
    with pytest.raises(UserError, match="two options called fusion=largest"):
        point("fusion=second", dirs=dirs)


def test_a_group_that_nothing_reads_is_no_group(own: str):
    path = Path(own) / "augment" / "flip.yaml"
    path.parent.mkdir()
    path.write_text("# Flips\nshare: 0.5\n")
    with pytest.raises(UserError, match="no group augment, so nothing would read it"):
        point("augment=flip", dirs=(own,))


@pytest.mark.parametrize("option", ["norm_2", "7"])
def test_a_user_s_file_comes_before_a_law_and_its_number(own: str, option: str):
    path = Path(own) / "clip" / f"{option}.yaml"
    path.parent.mkdir()
    path.write_text("# Own\n_target_: my_clip.Mine\nthreshold: 5.0\n")
    made = point(f"clip={option}", dirs=(own,))
    common = point().config["clip"]
    assert made.config["clip"] == common | {"_target_": "my_clip.Mine", "threshold": 5.0}
    assert point(f"clip={option}").config["clip"]["_target_"] == "mmrun.clip.norm.Norm"
    again = point("clip=norm_2_4", dirs=(own,)) if option == "norm_2" else made
    assert again.config["clip"]["_target_"] == "my_clip.Mine"


def test_the_choice_of_a_user_s_numbered_law_is_a_choice_of_the_same_point(own: str):
    path = Path(own) / "clip" / "norm_2.yaml"
    path.parent.mkdir()
    path.write_text("# Own\n_target_: my_clip.Mine\nthreshold: 5.0\n")
    made = point("clip=norm_2", dirs=(own,))
    assert made.choices["clip"] == "norm_2_5"
    assert point("clip=norm_2_5", dirs=(own,)).id == made.id


@pytest.mark.parametrize("name", ["it's, conf", "[a]{b}=c", "back\\", 'say "a"'])
def test_any_folder_holds_configs(own: str, name: str, capsys: pytest.CaptureFixture[str]):
    folder = str(Path(own).rename(Path(own).with_name(name)))
    made = point("fusion=largest", dirs=(folder,))
    assert made.config["fusion"]["_target_"] == "my_fusion.Largest"
    assert made.config_dirs == (folder,)
    assert cli.main(["train", "--config-dir", folder, "--cfg", "job", "fusion=largest"]) == 0
    assert "my_fusion.Largest" in capsys.readouterr().out


@pytest.mark.trains
def test_a_user_s_fusion_trains_and_is_trusted_only_with_its_folder(
    own: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    words = ["fusion=largest", "dataset=synthetic", "trainer.max_epochs=1", "logger=none"]
    words += ["dataset.samples=100", "trainer.checkpoint=both"]
    assert cli.main(["train", *words, "--config-dir", own]) == 0
    run = the_run()
    assert record_of(run)["config_dirs"] == [own]
    assert record_of(run)["choices"]["fusion"] == "largest"
    capsys.readouterr()
    assert cli.main(["resume", str(run), "trainer.max_epochs=2"]) == 2
    assert "--trust my_fusion" in capsys.readouterr().err
    assert cli.main(["resume", str(run), "trainer.max_epochs=2", "--config-dir", own]) == 0
    assert record_of(run)["epochs"] == 2


# Mistakes: what was given, and the nearest names

MISTAKES = [
    ("fusion=atention", "attention"),
    ("clip=nrom", "norm"),
    ("clip=vlaue_0.1", "value_0.1"),
    ("optimizer=adm", "adam or adamw"),
    ("encoder/image=cn", "cnn"),
    ("encoder/imge=cnn", "image"),
    ("encoder=cnn", "encoder/MODALITY=OPTION"),
    ("fusion/image=concat", "fusion=OPTION"),
    ("datset=linear", "dataset"),
    ("optimizer.lrr=0.1", "lr"),
    ("optimiser.lr=0.1", "optimizer"),
    ("optimizer.lr.x=0.1", "optimizer.lr"),
    ("trainer.max_epoch=3", "max_epochs"),
    ("dataset.use=[image,txt]", "text"),
    ("dataset.use=[]", "all"),
    ("dataset.use=[image,image]", "twice"),
    ("seeds=3", "seed=N"),
    ("clip=0.1,0.2", "mmrun train -m"),
    ("clip=choice(0.1,0.2)", "mmrun train -m"),
    ("clip=range(1,3)", "mmrun train -m"),
    ("hydra.run.dir=x", "outputs=DIR"),
    ("fusion", "KEY=VALUE"),
    ("=3", "KEY=VALUE"),
    ("optimizer.lr=[1", "KEY=VALUE"),
    ("~fusion", "fusion=OPTION"),
    ("+fusion=sum", "fusion=OPTION"),
    ("optimizer.lr=???", "optimizer.lr"),
    ("optimizer.lr=${nothing}", "nothing"),
    ("dataset.modalities.image=imge", "image"),
    ("+dataset.modalities.fusion=vector", "Reserved"),
    ("+dataset.modalities.Big=vector", "lower-case"),
    ("+dataset.modalities.film=frames", "encoder/film=OPTION"),
]


@pytest.mark.parametrize(("given", "hint"), MISTAKES)
def test_a_mistake_is_told_with_what_was_given_and_the_nearest_names(given: str, hint: str):
    with pytest.raises(UserError) as caught:
        point(given)
    error = caught.value
    assert hint in f"{error.problem} {error.remedy}"
    assert "\n" not in str(error)
    assert "Traceback" not in str(error)
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(("given", "hint"), MISTAKES[:4])
def test_the_command_line_exits_2_with_one_line_and_makes_nothing(
    given: str, hint: str, capsys: pytest.CaptureFixture[str]
):
    assert cli.main(["train", given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert hint in err
    assert given in err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fusion/broken", ["fusion=broken"]),
        ("dataset/broken", ["dataset=broken"]),
        ("dataset/two", ["dataset=two"]),
        ("experiment/mine", ["experiment=mine"]),
    ],
)
@pytest.mark.parametrize("text", ["# Broken\na: 1\nb: [1, 2\nc: 3\n", "# Broken\na: 1\na: 2\n"])
def test_a_broken_file_is_named_with_its_line(name: str, words: list[str], text: str, own: str):
    path = Path(own) / f"{name}.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="this YAML file cannot be read") as caught:
        point(*words, dirs=(own,))
    file, _, line = caught.value.given.partition(", line ")
    assert Path(file) == path
    assert line in ("3", "4")
    assert "\n" not in str(caught.value)


def test_a_config_dir_that_is_none():
    with pytest.raises(UserError, match="--config-dir"):
        point(dirs=("/nowhere/at/all",))


@pytest.mark.parametrize("key", ["trainer.max_epochs=9", "trainer.max_steps=9", "logger.tags=[a]"])
def test_resuming_takes_what_leaves_a_run_itself(key: str):
    name, _, _ = key.partition("=")
    assert list(compose.resumable([key])) == [name]


@pytest.mark.parametrize(
    "key", ["optimizer.lr=1", "fusion=sum", "seed=3", "trainer.precision=64-true"]
)
def test_resuming_refuses_what_would_make_it_another_run(key: str):
    with pytest.raises(UserError, match="another run"):
        compose.resumable([key])
