"""arrays: what the files become, who is held out, and one clear error for every disagreement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mmrun.datasets.arrays import Arrays
from mmrun.errors import UserError

MODALITIES = {"image": {"kind": "image", "shape": [1, 4, 4]}, "sound": "spectrogram"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """40 training and 12 test samples of 3 classes: image [N, 16] uint8, sound [N, 5, 6] float."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 40), ("test", 12)):
        save(tmp_path, f"image/{split}_data", rng.integers(0, 256, (n, 16)).astype(np.uint8))
        save(tmp_path, f"sound/{split}_data", rng.standard_normal((n, 5, 6)) * 3 + 7)
        save(tmp_path, f"{split}_labels", np.arange(n, dtype=np.uint8) % 3)
    return tmp_path


def save(root: Path, name: str, values) -> None:
    path = root / f"{name}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, values)


def load(root: Path | str, **knobs) -> Arrays:
    return Arrays(seed=0, **{"root": str(root), "modalities": MODALITIES, **knobs})


def all_of(data: Arrays, name):
    split = data.split(name)
    return split.batch(torch.arange(len(split)))


def add_groups(root: Path, train=("ann", "bob", "cid", "dan"), test=("eve",)) -> None:
    save(root, "train_groups", np.resize(np.array(train), 40))
    save(root, "test_groups", np.resize(np.array(test), 12))


def test_spec_and_sizes(root):
    data = load(root, class_names=["x", "y", "z"])
    image, sound = data.spec.modalities.values()
    assert (image.kind, image.shape) == ("image", (1, 4, 4))
    assert (sound.kind, sound.shape) == ("spectrogram", (5, 6))
    assert (data.spec.target, data.spec.classes) == ("class", 3)
    assert data.spec.class_names == ("x", "y", "z")
    assert data.spec.sizes == {"train": 32, "val": 8, "test": 12}
    assert sum(data.spec.class_counts) == 32
    batch = data.split("test").batch(torch.tensor([0, 11]))
    assert batch.inputs["image"].shape == (2, 1, 4, 4)
    assert batch.inputs["image"].dtype == torch.float32
    assert batch.target.tolist() == [0, 2]


def test_val_is_split_off_train_and_follows_the_seed(root):
    stored = np.load(root / "sound/train_data.npy")
    data = load(root, normalise="none")
    rows = torch.cat([data.split("train").group, data.split("val").group])
    assert sorted(rows.tolist()) == list(range(40))
    sound = torch.cat([all_of(data, "train").inputs["sound"], all_of(data, "val").inputs["sound"]])
    np.testing.assert_allclose(sound.numpy(), stored[rows.numpy()], rtol=1e-6)
    again = load(root).split("val").group.tolist()
    other = Arrays(seed=1, root=str(root), modalities=MODALITIES).split("val").group.tolist()
    assert data.split("val").group.tolist() == again != other


def test_statistics_are_those_of_the_training_rows(root):
    stored = np.load(root / "sound/train_data.npy")
    data = load(root)
    train = all_of(data, "train").inputs
    # A spectrogram per band, an image per channel.
    torch.testing.assert_close(train["sound"].mean((0, 2)), torch.zeros(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        train["sound"].std((0, 2), correction=0), torch.ones(5), atol=1e-5, rtol=0
    )
    assert train["image"].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    kept = stored[data.split("train").group.numpy()]
    mean, sd = kept.mean((0, 2), keepdims=True)[0], kept.std((0, 2), keepdims=True)[0]
    expected = (np.load(root / "sound/test_data.npy") - mean) / sd
    np.testing.assert_allclose(all_of(data, "test").inputs["sound"].numpy(), expected, atol=1e-5)


def test_statistics_of_many_rows_and_of_a_constant_feature(tmp_path):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3000, 3)) * [1, 100, 0] + [1e4, 0, 8]
    for split in ("train", "val", "test"):
        save(tmp_path, f"v/{split}", values)
        save(tmp_path, f"{split}_labels", rng.standard_normal(3000))
    data = load(tmp_path, modalities={"v": "vector"})
    train = all_of(data, "train").inputs["v"]
    # float32 at 1e4 has steps of 1e-3.
    torch.testing.assert_close(train.mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(train[:, :2].std(0), torch.ones(2), atol=2e-3, rtol=0)
    assert (train[:, 2] == 0).all()


def add_val(root: Path) -> None:
    save(root, "image/val_x", np.zeros((5, 16), np.uint8))
    save(root, "sound/val_x", np.zeros((5, 5, 6)))
    save(root, "val_labels", np.zeros(5, np.int64))


def test_val_files_are_used_where_they_are(root):
    add_val(root)
    data = load(root)
    assert data.spec.sizes == {"train": 40, "val": 5, "test": 12}
    add_groups(root, test=("ann", "eve"))
    save(root, "val_groups", np.full(5, "fay"))
    assert load(root).spec.sizes == data.spec.sizes


def test_groups_are_held_out_whole(root):
    add_groups(root)
    data = load(root)  # auto
    train, val, test = (set(data.split(s).group.tolist()) for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (3, 1, 1)
    assert not train & val
    assert not (train | val) & test
    assert data.spec.sizes == {"train": 30, "val": 10, "test": 12}
    half = load(root, val_share=0.5, val_by="group")
    assert half.spec.sizes["val"] == 20
    assert len(set(load(root, val_by="random").split("val").group.tolist())) > 1


def test_groups_shared_with_the_test_mean_a_random_val(root):
    add_groups(root, test=("ann", "eve"))
    assert load(root).spec.sizes["val"] == 8


def test_values_are_inferred_from_floating_point_labels(root):
    for split, n in (("train", 40), ("test", 12)):
        save(root, f"{split}_labels", np.linspace(0, 1, n))
    data = load(root)
    assert (data.spec.target, data.spec.target_shape, data.spec.classes) == ("value", (1,), 0)
    target = all_of(data, "test").target
    assert target.shape == (12, 1)
    assert target.dtype == torch.float32
    save(root, "train_labels", np.arange(40) % 3)
    save(root, "test_labels", np.arange(12) % 3)
    assert load(root, target="value").spec.target == "value"


def test_text_ids(root):
    for split, n in (("train", 40), ("test", 12)):
        ids = np.tile(np.array([3, 1, 7, 0, 0], np.uint16), (n, 1))
        save(root, f"words/{split}", ids)
    data = load(root, modalities={"words": "text"})
    spec = data.spec.modalities["words"]
    assert (spec.vocabulary, spec.padded, spec.shape) == (8, True, (5,))
    batch = all_of(data, "test")
    assert batch.inputs["words"].dtype == torch.int64
    assert batch.mask["words"][0].tolist() == [True, True, True, False, False]


def test_files_are_never_written(root):
    before = (root / "sound/train_data.npy").read_bytes()
    data = load(root)
    data.split("train").inputs["sound"].zero_()
    assert (root / "sound/train_data.npy").read_bytes() == before


def test_to_moves_what_is_stored(root):
    moved = load(root).split("train").to("meta")
    assert moved.inputs["image"].device.type == "meta"
    assert moved.inputs["image"].dtype == torch.uint8


def test_avmnist_is_a_yaml_over_arrays(tmp_path):
    conf = Path(__file__).parents[2] / "conf" / "dataset"
    knobs = OmegaConf.merge(
        OmegaConf.load(conf / "arrays.yaml"), OmegaConf.load(conf / "avmnist.yaml")
    )
    rng = np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 20)):
        save(tmp_path, f"image/{split}_data", rng.integers(0, 256, (n, 784)).astype(np.uint8))
        save(tmp_path, f"audio/{split}_data", rng.integers(0, 256, (n, 112, 112)).astype(np.uint8))
        save(tmp_path, f"{split}_labels", (np.arange(n) % 10).astype(np.uint8))
    plain: Any = OmegaConf.to_container(knobs)
    for key in ("_target_", "defaults", "batch_size", "encoders", "objective"):
        plain.pop(key)
    data = Arrays(seed=0, **{**plain, "root": str(tmp_path)})
    shapes = [spec.shape for spec in data.spec.modalities.values()]
    assert shapes == [(1, 28, 28), (112, 112)]


def test_empty_modalities_says_what_to_type(root):
    with pytest.raises(UserError) as error:
        load(root, modalities={})
    assert "image, sound" in str(error.value)
    assert "'dataset.modalities={image: KIND, sound: KIND}'" in str(error.value)


def break_nothing(root: Path) -> None:
    pass


def remove(name: str):
    return lambda root: (root / name).unlink()


def write(name: str, values):
    return lambda root: save(root, name, values)


def raw(name: str, content: bytes):
    return lambda root: (root / name).write_bytes(content)


def save_archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


WRONG: dict[str, Any] = {
    "no root": (break_nothing, {"root": ""}, "dataset.root=FOLDER"),
    "no such root": (break_nothing, {"root": "nowhere"}, "dataset.root does not exist"),
    "no folder": (
        break_nothing,
        {"modalities": {"video": "frames"}},
        "modality video has no folder .* Found: image, sound",
    ),
    "unknown kind": (
        break_nothing,
        {"modalities": {"image": "imagee"}},
        "needs a kind .*Did you mean image",
    ),
    "no kind": (break_nothing, {"modalities": {"image": {"shape": [1, 4, 4]}}}, "needs a kind"),
    "bad name": (break_nothing, {"modalities": {"fusion": "image"}}, "modality's name"),
    "unknown setting": (
        break_nothing,
        {"modalities": {"image": {"kind": "image", "size": 4}}},
        "settings that arrays does not know",
    ),
    "flat image": (
        break_nothing,
        {"modalities": {"image": "image"}},
        r"image is image, whose samples are \[C, H, W\] \(given: file \[40, 16\]\).*shape: \[C, H, W\]",
    ),
    "shape does not fit": (
        break_nothing,
        {"modalities": {"image": {"kind": "image", "shape": [1, 5, 5]}}},
        r"image\.shape does not fit the file",
    ),
    "shape is no list": (
        break_nothing,
        {"modalities": {"image": {"kind": "image", "shape": "1x4x4"}}},
        "is a list of whole numbers",
    ),
    "no train file": (
        remove("image/train_data.npy"),
        {},
        r"image has no file train\*\.npy .*Found: test_data\.npy",
    ),
    "two train files": (write("image/train_more", np.zeros(3)), {}, "more than one file train"),
    "no labels": (remove("test_labels.npy"), {}, "test has no labels file .*train_labels.npy"),
    "val labels only": (write("val_labels", np.zeros(3, int)), {}, r"no file val\*\.npy"),
    "val inputs only": (
        write("image/val", np.zeros((3, 16), np.uint8)),
        {"use": "image"},
        "val has no labels file",
    ),
    "length": (
        write("sound/train_data", np.zeros((39, 5, 6))),
        {},
        "train has 40 labels but 39 samples of sound",
    ),
    "shapes between splits": (
        write("sound/test_data", np.zeros((12, 5, 7))),
        {},
        r"differ in shape between splits \(given: train \[5, 6\], test \[5, 7\]\)",
    ),
    "label too high": (
        write("test_labels", np.arange(12)),
        {},
        r"test_labels\.npy is out of range \(given: 11\)\. Labels are 0 to 2",
    ),
    "negative label": (write("train_labels", np.full(40, -1)), {}, "train_labels"),
    "names too few": (break_nothing, {"class_names": ["x", "y"]}, "dataset.class_names says so"),
    "a label far beyond": (
        write("train_labels", np.arange(40) + 10**9 * (np.arange(40) == 7)),
        {},
        r"far beyond the number of samples \(given: 1000000007, 40 samples\)",
    ),
    "a single class": (write("train_labels", np.zeros(40, int)), {}, "a single class"),
    "a single class, not the first": (write("train_labels", np.full(40, 2)), {}, "a single class"),
    "width 0": (
        lambda root: [
            save(root, f"sound/{split}_data", np.zeros((n, 5, 0)))
            for split, n in (("train", 40), ("test", 12))
        ],
        {},
        "samples of modality sound are empty",
    ),
    "used twice": (break_nothing, {"use": ["sound", "sound"]}, "names a modality twice"),
    "labels of two axes": (
        write("train_labels", np.zeros((40, 3), int)),
        {},
        "not one class per sample",
    ),
    "fractions": (
        write("train_labels", np.full(40, 0.5)),
        {"target": "class"},
        "holds fractions",
    ),
    "labels are strings": (
        write("train_labels", np.array(["cat"] * 40)),
        {},
        "does not hold numbers",
    ),
    "nan labels": (
        write("train_labels", np.full(40, np.nan)),
        {"target": "value"},
        "values that are not finite",
    ),
    "nan inputs": (
        write("sound/train_data", np.full((40, 5, 6), np.nan)),
        {},
        r"not finite \(given: .*sound/train_data\.npy, 1200 of 1200\)",
    ),
    "infinity in the test": (
        write(
            "sound/test_data",
            np.where(np.arange(30).reshape(5, 6) == 7, -np.inf, np.ones((12, 5, 6))),
        ),
        {"normalise": "none"},
        r"not finite \(given: .*sound/test_data\.npy, 12 of 360\)",
    ),
    "too large for float32": (
        write("sound/train_data", np.full((40, 5, 6), 1e300)),
        {},
        r"sound/train_data\.npy, 1200 of 1200",
    ),
    "nan in val": (
        lambda root: (
            add_val(root),
            save(root, "sound/val_x", np.full((5, 5, 6), np.nan, np.float16)),
        ),
        {},
        r"sound/val_x\.npy, 150 of 150",
    ),
    "a label of the test": (
        write("test_labels", np.r_[np.zeros(11), np.nan]),
        {"target": "value"},
        r"test_labels\.npy, 1 of 12",
    ),
    "val shares groups with train": (
        lambda root: (
            add_val(root),
            add_groups(root),
            save(root, "val_groups", np.array(["ann", "fay", "fay", "fay", "ann"])),
        ),
        {},
        r"in train_groups\.npy too \(given: 1 of 2\)",
    ),
    "no npy": (raw("image/train_data.npy", b"hello"), {}, r"not a complete \.npy array"),
    "empty npy": (raw("image/train_data.npy", b""), {}, r"not a complete \.npy array"),
    "cut npy": (
        raw("image/train_data.npy", b"\x93NUMPY\x01\x00\x20\x00{'descr':"),
        {},
        r"not a complete \.npy array",
    ),
    "half a download": (
        lambda root: (root / "image/train_data.npy").write_bytes(
            (root / "image/train_data.npy").read_bytes()[:300]
        ),
        {},
        r"not a complete \.npy array",
    ),
    "archive": (
        lambda root: save_archive(root / "image/train_data.npy"),
        {},
        r"not a complete \.npy array",
    ),
    "no sample": (
        lambda root: (
            save(root, "image/test_data", np.zeros((0, 16), np.uint8)),
            save(root, "test_labels", np.zeros(0, int)),
        ),
        {},
        "test_labels.npy",
    ),
    "objects": (
        write("image/train_data", np.array([{"a": 1}] * 40, dtype=object)),
        {},
        "holds Python objects, which are never loaded",
    ),
    "a number": (write("image/train_data", np.float64(3)), {}, "a single number"),
    "text of fractions": (
        break_nothing,
        {"modalities": {"sound": {"kind": "text", "shape": [30]}}},
        "whole numbers",
    ),
    "groups length": (
        lambda root: (add_groups(root), save(root, "test_groups", np.zeros(3))),
        {},
        "does not fit the 12 labels of test",
    ),
    "groups of one split": (
        lambda root: save(root, "train_groups", np.zeros(40)),
        {},
        "test has no groups file",
    ),
    "by group without groups": (break_nothing, {"val_by": "group"}, "needs to know the groups"),
    "one group": (
        lambda root: add_groups(root, train=("ann",)),
        {"val_by": "group"},
        "one group only",
    ),
    "val_share": (break_nothing, {"val_share": 1.0}, "val_share is out of range"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_clear_error(root, case):
    damage, knobs, text = WRONG[case]
    damage(root)
    with pytest.raises(UserError, match=text):
        Arrays(seed=0, **{"root": str(root), "modalities": MODALITIES, **knobs})
