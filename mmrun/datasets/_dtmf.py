"""Telephone keys as they sound: DTMF tones in noise, as log-spectrograms.

Source: ITU-T Recommendation Q.23 (the frequencies). The impairments are ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE_HZ, SAMPLES, FRAME, HOP = 4000, 1024, 128, 64
BIN_HZ = RATE_HZ / FRAME  # 31.25
FIRST_BIN, ROWS = 16, 36  # 500 Hz to 1594 Hz: the tones with some room on both sides
FRAMES = (SAMPLES - FRAME) // HOP + 1  # 15
LOW_HZ = np.array([697, 770, 852, 941])
HIGH_HZ = np.array([1209, 1336, 1477])
# Row and column of the digits 0 to 9 on the keypad; 0 stands alone below 8.
KEY_ROW = np.array([3, 0, 0, 0, 1, 1, 1, 2, 2, 2])
KEY_COLUMN = np.array([1, 0, 1, 2, 0, 1, 2, 0, 1, 2])

LENGTH = (200, 700)  # samples that a tone lasts
JITTER = 0.012  # sd of a frequency, relative
TWIST_DB = 4.0  # sd of the level of the low tone over the high one
INTERFERENCE = 0.7  # probability of a third tone
INTERFERENCE_LEVEL = 0.75  # its amplitude over that of a key's tone without twist
INTERFERENCE_HZ = (550.0, 1550.0)
ROWS_AT_ONCE = 256  # so that the waveforms of a chunk stay in the cache


def spectrograms(
    digits: NDArray[np.int64], snr_db: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Log-spectrograms [N, 36, 15] of the keys of ``digits`` [N].

    snr_db: power of the white noise below that of the key's two tones, each averaged over the whole clip;
    the tones last a part of it, so that a short press is heard in less noise.
    """
    n = len(digits)
    jitter = 1 + JITTER * rng.standard_normal((n, 2))
    twist = 10 ** (TWIST_DB * rng.standard_normal(n) / 40)
    low = LOW_HZ[KEY_ROW[digits]] * jitter[:, 0]
    high = HIGH_HZ[KEY_COLUMN[digits]] * jitter[:, 1]
    key_on = _while_on(n, rng)
    other = rng.uniform(*INTERFERENCE_HZ, n)
    other_level = np.where(rng.random(n) < INTERFERENCE, INTERFERENCE_LEVEL, 0.0)
    other_on = _while_on(n, rng)
    phases = rng.uniform(0, 2 * np.pi, (n, 3))
    share_on = (key_on[:, 1] - key_on[:, 0]) / SAMPLES
    power = share_on * (twist**2 + twist**-2) / 2  # a tone of amplitude a has power a**2 / 2
    noise = (np.sqrt(power) * 10 ** (-snr_db / 20)).astype(np.float32)

    out = np.empty((n, ROWS, FRAMES), np.float32)
    for start in range(0, n, ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        wave = _tone(low[rows], phases[rows, 0], twist[rows], key_on[rows])
        wave += _tone(high[rows], phases[rows, 1], 1 / twist[rows], key_on[rows])
        wave += _tone(other[rows], phases[rows, 2], other_level[rows], other_on[rows])
        wave += noise[rows, None] * rng.standard_normal(wave.shape, np.float32)
        out[rows] = log_spectrogram(wave)
    return out


def log_spectrogram(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """log(1 + power) [N, 36, 15] of waves [N, 1024]; Hann frames of 128 samples, hop 64."""
    frames = np.lib.stride_tricks.sliding_window_view(wave, FRAME, axis=1)[:, ::HOP]  # [N, 15, 128]
    window = np.hanning(FRAME + 1)[:-1].astype(np.float32)
    spectrum = np.fft.rfft(frames * window)[..., FIRST_BIN : FIRST_BIN + ROWS]
    power = spectrum.real**2 + spectrum.imag**2
    return np.log1p(power).astype(np.float32).swapaxes(1, 2)


def _while_on(n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """First sample and first sample after the end, [n, 2], of tones anywhere in the clip."""
    length = rng.integers(LENGTH[0], LENGTH[1] + 1, n)
    first = (rng.random(n) * (SAMPLES - length + 1)).astype(np.int64)
    return np.stack([first, first + length], axis=1)


def _tone(
    hz: NDArray[np.float64],
    phase: NDArray[np.float64],
    level: NDArray[np.float64],
    on: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Sine waves [n, 1024], silent outside of ``on`` [n, 2]."""
    t = np.arange(SAMPLES, dtype=np.float32)
    step = (2 * np.pi * hz / RATE_HZ).astype(np.float32)[:, None]
    wave = np.sin(step * t + phase.astype(np.float32)[:, None])
    wave *= level.astype(np.float32)[:, None]
    wave *= (t >= on[:, :1]) & (t < on[:, 1:])
    return wave
