"""Digits in words: a carrier sentence with the digit's name, its relation to a neighbour, and typos."""

from __future__ import annotations

import string

import numpy as np
from numpy.typing import NDArray

LENGTH = 40  # characters; longer sentences are cut
ALPHABET = string.ascii_lowercase + " "
VOCABULARY = len(ALPHABET) + 1  # id 0 is padding
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CARRIERS = (
    "please dial {}",
    "dial {} now",
    "press {} please",
    "the key is {}",
    "room {}",
    "enter {} and wait",
    "it says {}",
    "i think {}",
)
PLAIN, MORE, LESS = 0, 1, 2


def encode(text: str) -> list[int]:
    """Ids of the characters of a text, padded with 0 to 40."""
    ids = [ALPHABET.index(character) + 1 for character in text]
    return ids + [0] * (LENGTH - len(ids))


def _phrase(mode: int, digit: int) -> str:
    if (mode == MORE and digit > 0) or (digit == 9 and mode == LESS):
        return f"one more than {WORDS[digit - 1]}"
    if mode != PLAIN:
        return f"one less than {WORDS[digit + 1]}"
    return WORDS[digit]


# Ids of every sentence there is, by carrier, mode, digit and character.
SENTENCES = np.array(
    [
        [[encode(c.format(_phrase(mode, d))) for d in range(10)] for mode in (PLAIN, MORE, LESS)]
        for c in CARRIERS
    ]
)


def sentences(
    digits: NDArray[np.int64],
    *,
    typo: float,
    ambiguous: float,
    wrong: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Character ids [N, 40] of sentences about ``digits`` [N]; 0 is padding.

    Args:
        digits: the digit of each sentence.
        typo: probability per character that it is dropped, doubled or replaced.
        ambiguous: probability of a relation ("one more than six") in place of the name.
        wrong: probability that the sentence is about another digit.
        rng: where the noise comes from; the draws do not depend on the probabilities.
    """
    n = len(digits)
    other = (digits + rng.integers(1, 10, n)) % 10
    about = np.where(rng.random(n) < wrong, other, digits)
    side = rng.choice([MORE, LESS], n)
    mode = np.where(rng.random(n) < ambiguous, side, PLAIN)
    ids = SENTENCES[rng.integers(len(CARRIERS), size=n), mode, about]
    hit = rng.random(ids.shape) < typo
    kind = rng.integers(3, size=ids.shape)  # 0 drop, 1 double, 2 replace
    letter = rng.integers(1, VOCABULARY, ids.shape)

    ids = np.where(hit & (kind == 2) & (ids > 0), letter, ids)
    copies = np.where(
        ids == 0, 0, np.where(hit & (kind == 0), 0, np.where(hit & (kind == 1), 2, 1))
    )
    place = np.cumsum(copies, axis=1) - copies  # where a character's first copy goes
    row = np.repeat(np.repeat(np.arange(n), LENGTH), copies.ravel())
    again = np.arange(len(row)) - np.repeat(np.cumsum(copies) - copies.ravel(), copies.ravel())
    column = np.repeat(place.ravel(), copies.ravel()) + again
    kept = column < LENGTH
    out = np.zeros((n, LENGTH), np.int64)
    out[row[kept], column[kept]] = np.repeat(ids.ravel(), copies.ravel())[kept]
    return out
