"""digits3: views, noise, and what can be read from each modality."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from mmrun.datasets import _digit_text, _dtmf
from mmrun.datasets.digits3 import Digits3
from mmrun.errors import UserError

EASY: dict[str, Any] = {
    "image_noise": 0.25,
    "image_occlusion": 0.0,
    "audio_snr_db": 6.0,
    "text_typo": 0.03,
    "text_ambiguous": 0.0,
    "text_wrong": 0.0,
}


@pytest.fixture(scope="module")
def default() -> Digits3:
    return Digits3(seed=0)


def all_of(data: Digits3, name):
    split = data.split(name)
    return split.batch(torch.arange(len(split)))


def test_every_digit_is_in_one_split_and_evaluated_in_eight_views(default):
    digits = {name: default.split(name).group.unique() for name in ("train", "val", "test")}
    assert sorted(torch.cat(list(digits.values())).tolist()) == list(range(1797))
    assert len(default.split("train")) == len(digits["train"])
    for name in ("val", "test"):
        views = torch.unique(default.split(name).group, return_counts=True)[1]
        assert (views == 8).all()
    shares = [len(d) / 1797 for d in digits.values()]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.005)


def test_views_of_a_digit_share_its_label_and_differ_in_noise(default):
    test = all_of(default, "test")
    groups = default.split("test").group
    rows = torch.nonzero(groups == groups[0]).squeeze(1)
    assert len(test.target[rows].unique()) == 1
    for values in test.inputs.values():
        assert len({tuple(row.flatten().tolist()) for row in values[rows]}) == 8


def test_inputs_are_normalised_by_train(default):
    train = all_of(default, "train")
    for name in ("image", "audio"):
        assert train.inputs[name].mean().item() == pytest.approx(0, abs=1e-3)
        assert train.inputs[name].std().item() == pytest.approx(1, abs=1e-3)
    scaled = all_of(Digits3(seed=0, use="audio", audio_scale=20.0), "train")
    torch.testing.assert_close(scaled.inputs["audio"], train.inputs["audio"] * 20)


def test_the_images_are_the_real_ones():
    data = Digits3(seed=0, use=["image"], image_noise=0.0, image_occlusion=0.0)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    train = all_of(data, "train")
    at = data.split("train").group.numpy()
    assert (labels[at] == train.target.numpy()).all()
    shown = train.inputs["image"].numpy().reshape(-1)
    assert np.corrcoef(shown, pixels[at].reshape(-1))[0, 1] > 1 - 1e-6


def test_occlusion_blanks_a_square():
    hidden = Digits3(seed=0, use="image", image_noise=0.0, image_occlusion=1.0)
    shown = Digits3(seed=0, use="image", image_noise=0.0, image_occlusion=0.0)
    a, b = (all_of(d, "test").inputs["image"] for d in (hidden, shown))
    blank = a.amin()
    assert (a == blank).unfold(2, 4, 1).unfold(3, 4, 1).all(-1).all(-1).any(-1).any(-1).all()
    assert (b == b.amin()).float().mean() < (a == blank).float().mean()


def test_tones_sound_at_their_frequencies(monkeypatch):
    for impairment in ("JITTER", "TWIST_DB", "INTERFERENCE"):
        monkeypatch.setattr(_dtmf, impairment, 0.0)
    # ITU-T Q.23: 1 is 697 + 1209 Hz, 5 is 770 + 1336, 9 is 852 + 1477, 0 is 941 + 1336.
    expected = {1: (697, 1209), 2: (697, 1336), 5: (770, 1336), 9: (852, 1477), 0: (941, 1336)}
    for digit, tones in expected.items():
        loud = _dtmf.spectrograms(np.full(5, digit), 200.0, np.random.default_rng(0)).sum((0, 2))
        rows = [round(hz / 31.25) - 16 for hz in tones]
        assert [loud[:20].argmax(), 20 + loud[20:].argmax()] == rows


def test_noise_of_the_audio_has_the_power_asked_for(monkeypatch):
    for impairment in ("JITTER", "TWIST_DB", "INTERFERENCE"):
        monkeypatch.setattr(_dtmf, impairment, 0.0)
    monkeypatch.setattr(_dtmf, "LENGTH", (1024, 1024))  # the tones fill the clip: power 1
    spectrum = _dtmf.spectrograms(np.full(400, 5), -20.0, np.random.default_rng(0))
    # White noise of variance s2 has power s2 * sum(window**2) in a bin: 100 * 48.
    quiet = np.expm1(spectrum[:, 0]).mean()
    assert quiet == pytest.approx(100 * 48, rel=0.05)


def decode(ids):
    return "".join((" " + _digit_text.ALPHABET)[i] if i else "" for i in ids)


def test_sentences_say_the_digit():
    digits = np.arange(10).repeat(30)
    rng = np.random.default_rng(0)
    clean = _digit_text.sentences(digits, typo=0, ambiguous=0, wrong=0, rng=rng)
    for digit, ids in zip(digits, clean, strict=True):
        said = [word for word in _digit_text.WORDS if f" {word} " in f" {decode(ids)} "]
        assert said == [_digit_text.WORDS[digit]]
    related = _digit_text.sentences(digits, typo=0, ambiguous=1, wrong=0, rng=rng)
    for digit, ids in zip(digits, related, strict=True):
        side, word = decode(ids).split("one ", 1)[1].split(" than ")
        number = _digit_text.WORDS.index(word.split()[0])
        assert digit == number + (1 if side == "more" else -1)
    wrong = _digit_text.sentences(digits, typo=0, ambiguous=0, wrong=1, rng=rng)
    for digit, ids in zip(digits, wrong, strict=True):
        assert f" {_digit_text.WORDS[digit]} " not in f" {decode(ids)} "


def test_typos_change_the_share_of_characters_asked_for():
    digits = np.full(2000, 3)
    clean, typed = (
        _digit_text.sentences(digits, typo=t, ambiguous=0, wrong=0, rng=np.random.default_rng(0))
        for t in (0.0, 0.1)
    )
    n = (clean > 0).sum()
    # A third of the typos drop, a third double: the length stays, but for what is cut at 40.
    assert (typed > 0).sum() == pytest.approx(n, rel=0.01)
    untouched = (clean == typed).all(1).mean()
    assert untouched == pytest.approx((0.9 ** (clean > 0).sum(1)).mean(), abs=0.03)
    # Padding comes last, never between characters.
    assert (np.diff((typed > 0).astype(int), axis=1) <= 0).all()


def probe(data: Digits3, modality: str) -> float:
    """Test accuracy of a logistic regression on simple features of one modality."""
    from sklearn.linear_model import LogisticRegression

    def features(name):
        values = all_of(data, name).inputs[modality]
        if modality == "audio":
            return values.exp().mean(2).log().numpy()
        if modality == "text":  # counts of pairs of neighbouring characters
            pair = values[:, :-1] * 28 + values[:, 1:]
            return torch.zeros(len(pair), 28 * 28).scatter_add_(1, pair, (pair > 0).float()).numpy()
        return values.flatten(1).numpy()

    model = LogisticRegression(C=0.3, max_iter=60, tol=1e-2)
    model.fit(features("train"), all_of(data, "train").target.numpy())
    return float(model.score(features("test"), all_of(data, "test").target.numpy()))


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")  # a probe need not converge
def test_each_modality_tells_the_class_and_the_default_is_harder(default):
    easy = Digits3(seed=0, **EASY)
    for modality, (least, most) in {
        "image": (0.60, 0.80),
        "audio": (0.68, 0.85),
        "text": (0.55, 0.88),
    }.items():
        assert least < probe(default, modality) < most
        assert probe(easy, modality) > 0.85


def test_long_tail_counts_and_leaves_the_rest_alone(default):
    tail = Digits3(seed=0, imbalance=100.0)
    counts = np.array(tail.spec.class_counts)
    largest = max(default.spec.class_counts)
    wanted = np.round(largest * 100.0 ** (-np.arange(10) / 9)).astype(int)
    assert (np.abs(counts - np.minimum(wanted, default.spec.class_counts)) <= 0).all()
    assert torch.equal(
        all_of(tail, "test").inputs["audio"], all_of(default, "test").inputs["audio"]
    )
    kept = torch.isin(default.split("train").group, tail.split("train").group)
    whole, part = all_of(default, "train"), all_of(tail, "train")
    assert torch.equal(whole.inputs["image"][kept], part.inputs["image"])
    assert torch.equal(whole.target[kept], part.target)


def test_train_share_and_label_noise(default):
    fifth = Digits3(seed=0, use="image", train_share=0.2)
    assert len(fifth.split("train")) == pytest.approx(0.2 * 1078, abs=10)
    assert min(fifth.spec.class_counts) >= 20
    noisy = Digits3(seed=0, use="image", label_noise=0.4)
    changed = all_of(noisy, "train").target != all_of(default, "train").target
    assert int(changed.sum()) == round(0.4 * 1078)
    assert torch.equal(all_of(noisy, "test").target, all_of(default, "test").target)


def test_more_noise_of_a_modality_leaves_the_others_as_they_were(default):
    other = Digits3(seed=0, image_noise=0.6, text_typo=0.3)
    for name in ("train", "test"):
        a, b = all_of(default, name), all_of(other, name)
        assert torch.equal(a.inputs["audio"], b.inputs["audio"])
        assert not torch.equal(a.inputs["image"], b.inputs["image"])


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("image_noise", -1.0),
        ("image_occlusion", 1.5),
        ("text_typo", float("nan")),
        ("views", 0),
        ("imbalance", 0.5),
        ("train_share", 0.0),
        ("audio_scale", 0.0),
    ],
)
def test_out_of_range_knobs_are_named(knob, value):
    with pytest.raises(UserError, match=rf"dataset\.{knob} is out of range"):
        Digits3(seed=0, **{knob: value})


def test_other_modalities_are_refused():
    with pytest.raises(UserError, match="It has image: image, audio: spectrogram, text: text"):
        Digits3(seed=0, modalities={"image": "image", "smell": "vector"})
    with pytest.raises(UserError, match="no such modality"):
        Digits3(seed=0, modalities={"text": "vector"})
    with pytest.raises(UserError, match="data_seed"):
        Digits3(seed=-1)


@pytest.mark.slow
def test_does_not_import_sklearn():
    code = (
        "import sys; from mmrun.datasets.digits3 import Digits3; Digits3(seed=0);"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
