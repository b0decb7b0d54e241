"""digits3: handwritten digits with the sound of their telephone key and a sentence about them.

The images are real (the 1,797 8x8 digits that scikit-learn ships); audio and text are generated, and the
pairing is by class, as in AV-MNIST: given the class, the modalities are independent. Noise is drawn per
sample from the seed, not per epoch, so every split is fixed. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmrun.datasets import Dataset, MemorySplit, SplitName, _digit_text, _dtmf
from mmrun.datasets._knobs import chosen, declared, stream, within
from mmrun.datasets._labels import long_tail, replaced, stratified
from mmrun.errors import UserError
from mmrun.spec import DatasetSpec, ModalitySpec

SHARES = (0.6, 0.1)  # of the digits, for train and validation; the rest is test
PATCH = 4  # pixels, side of the occluded square
SPECS = {
    "image": ModalitySpec(name="image", kind="image", shape=(1, 8, 8)),
    "audio": ModalitySpec(name="audio", kind="spectrogram", shape=(_dtmf.ROWS, _dtmf.FRAMES)),
    "text": ModalitySpec(
        name="text",
        kind="text",
        shape=(_digit_text.LENGTH,),
        vocabulary=_digit_text.VOCABULARY,
        padded=True,
    ),
}


class Digits3(Dataset):
    """Digits as image, telephone tone and sentence; each modality alone is imperfect.

    Args:
        seed: decides the splits and every draw of noise.
        use: "all", or the modalities to train on.
        modalities: {name: kind}; these three.
        image_noise: standard deviation of the noise on pixels in [0, 1].
        image_occlusion: probability that a 4x4 square of the 8x8 image is blank.
        audio_snr_db: power of the tones over that of the noise, decibels.
        text_typo: probability per character that it is dropped, doubled or replaced.
        text_ambiguous: probability of "one more than six" in place of "seven".
        text_wrong: probability that the sentence is about another digit.
        views: noise draws per validation and test digit; they share a group.
        train_share: share of the training digits that is kept, in each class.
        imbalance: training samples of class 0 over those of class 9, exponential between.
        label_noise: share of the training labels replaced by another class.
        image_scale: multiplies the images, which have unit standard deviation.
        audio_scale: the same for the spectrograms.
    """

    def __init__(
        self,
        *,
        seed: int,
        use: str | Sequence[str] = "all",
        modalities: Mapping[str, Any] | None = None,
        image_noise: float = 0.35,
        image_occlusion: float = 0.35,
        audio_snr_db: float = -12.0,
        text_typo: float = 0.10,
        text_ambiguous: float = 0.20,
        text_wrong: float = 0.08,
        views: int = 8,
        train_share: float = 1.0,
        imbalance: float = 1.0,
        label_noise: float = 0.0,
        image_scale: float = 1.0,
        audio_scale: float = 1.0,
    ) -> None:
        within("image_noise", image_noise, 0)
        for knob, probability in (
            ("image_occlusion", image_occlusion),
            ("text_typo", text_typo),
            ("text_ambiguous", text_ambiguous),
            ("text_wrong", text_wrong),
            ("label_noise", label_noise),
        ):
            within(knob, probability, 0, 1)
        within("audio_snr_db", audio_snr_db, -100, 200)
        within("views", views, 1, 1000)
        within("train_share", train_share, high=1, above=0)
        within("imbalance", imbalance, 1)
        within("image_scale", image_scale, above=0)
        within("audio_scale", audio_scale, above=0)
        self.image_noise, self.image_occlusion = image_noise, image_occlusion
        self.audio_snr_db = audio_snr_db
        self.text_typo, self.text_ambiguous, self.text_wrong = text_typo, text_ambiguous, text_wrong
        self.scales = {"image": image_scale, "audio": audio_scale}

        offered = declared(modalities or {name: of.kind for name, of in SPECS.items()})
        for name, settings in offered.items():
            if name not in SPECS or settings != {"kind": SPECS[name].kind}:
                raise UserError(
                    "digits3 has no such modality",
                    given=f"{name}: {settings['kind']}",
                    remedy=f"It has {', '.join(f'{n}: {of.kind}' for n, of in SPECS.items())}.",
                )
        names = chosen(use, list(offered))
        pixels, labels = _read_digits()
        rows = dict(
            zip(
                ("train", "val", "test"),
                stratified(labels, SHARES, stream(seed, "split")),
                strict=True,
            )
        )

        # The training inputs are drawn for every training digit, before some are left out, so that neither
        # train_share nor imbalance changes an input, a statistic, or the other splits.
        digits = {name: np.repeat(rows[name], 1 if name == "train" else views) for name in rows}
        inputs = {
            split: {m: self._draw(m, pixels[at], labels[at], stream(seed, m, split)) for m in names}
            for split, at in digits.items()
        }
        for m in set(names) & set(self.scales):
            mean, sd = inputs["train"][m].mean(), inputs["train"][m].std()
            for drawn in inputs.values():
                drawn[m] = (drawn[m] - mean) * np.float32(self.scales[m] / sd)

        train_labels = labels[rows["train"]]
        kept, _ = stratified(train_labels, (train_share,), stream(seed, "train_share"))
        kept = kept[long_tail(train_labels[kept], imbalance, stream(seed, "imbalance"))]
        shown = {name: labels[at] for name, at in digits.items()}
        noisy = replaced(train_labels, label_noise, 10, stream(seed, "label_noise"))
        shown["train"], digits["train"] = noisy[kept], digits["train"][kept]
        inputs["train"] = {m: values[kept] for m, values in inputs["train"].items()}

        self._splits = {
            name: MemorySplit(
                {m: torch.from_numpy(values) for m, values in inputs[name].items()},
                torch.from_numpy(shown[name]),
                group=torch.from_numpy(digits[name]),
                mask={m: torch.from_numpy(inputs[name][m] > 0) for m in names if SPECS[m].padded},
            )
            for name in digits
        }
        self.spec = DatasetSpec(
            modalities={name: SPECS[name] for name in names},
            target="class",
            classes=10,
            class_counts=tuple(np.bincount(shown["train"], minlength=10).tolist()),
            class_names=_digit_text.WORDS,
            sizes={name: len(split) for name, split in self._splits.items()},
        )

    def split(self, name: SplitName) -> MemorySplit:
        """The samples of one split."""
        return self._splits[name]

    def _draw(
        self,
        modality: str,
        pixels: NDArray[np.float32],
        labels: NDArray[np.int64],
        rng: np.random.Generator,
    ) -> NDArray[Any]:
        """Noisy inputs of one modality for digits with these pixels [N, 8, 8] and labels [N]."""
        if modality == "audio":
            return _dtmf.spectrograms(labels, self.audio_snr_db, rng)
        if modality == "text":
            return _digit_text.sentences(
                labels,
                typo=self.text_typo,
                ambiguous=self.text_ambiguous,
                wrong=self.text_wrong,
                rng=rng,
            )
        n, side = len(pixels), pixels.shape[-1]
        place = np.arange(side)
        corner = rng.integers(0, side - PATCH + 1, (2, n, 1))
        inside = (place >= corner) & (place < corner + PATCH)  # [2, N, 8]: rows, columns
        hidden = inside[0][:, :, None] & inside[1][:, None, :]
        hidden &= (rng.random(n) < self.image_occlusion)[:, None, None]
        noise = rng.standard_normal(pixels.shape, np.float32)
        return (np.where(hidden, 0, pixels) + np.float32(self.image_noise) * noise)[:, None]


def _read_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Pixels [1797, 8, 8] in [0, 1] and labels [1797].

    Read from scikit-learn's own file; importing sklearn would take most of a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError(
            "the digits come with scikit-learn, which is not installed",
            remedy="pip install scikit-learn.",
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise UserError(
            "scikit-learn has no digits file", given=path, remedy="Reinstall scikit-learn."
        )
    with gzip.open(path) as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)  # [1797, 65]
    return table[:, :64].reshape(-1, 8, 8) / np.float32(16), table[:, 64].astype(np.int64)
