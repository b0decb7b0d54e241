"""Every clip law in NumPy, written from its formula; and how tests build the laws of conf/clip.

An oracle takes the raw gradients of a whole training (so that laws with state fit) and returns the clipped ones:
``oracle(trajectory, weights, **knobs) -> trajectory``; a trajectory is a list of {scope: {name: array}}, in
float64; an absent gradient is not in the dict. Weights are {scope: {name: array}}, those that are trained, and
stay as they are. A knob's default is the one that conf/clip must have.
To add a law: its function in the file of its family, an entry in ``composed.SINGLE``, and settings worth trying in
``variants.VARIANTS``.

    units.py        what is clipped as one, and scaling it
    static.py       bounds that stay: none, value, norm, normalize, smooth, agc, block_rms, centralize
    adaptive.py     bounds learnt from norms: autoclip, zclip, quantile, ema, skip, adagc, adagn
    elementwise.py  spike, adaclip, coordinate, clip21, noise
    composed.py     chain
    options.py      what conf/clip says, and building a law from it
    variants.py     settings that the tests try
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.oracles.composed import SINGLE, Oracle, chain
from tests.oracles.elementwise import noise_variance
from tests.oracles.options import OPTIONS, build, config, knobs
from tests.oracles.units import Arrays, Trajectory
from tests.oracles.variants import SETTINGS, VARIANTS

__all__ = [
    "OPTIONS",
    "ORACLES",
    "SETTINGS",
    "STOCHASTIC",
    "VARIANTS",
    "Arrays",
    "Oracle",
    "Trajectory",
    "build",
    "config",
    "knobs",
]

ORACLES: Mapping[str, Oracle] = {**SINGLE, "chain": chain}

# Laws that add random numbers: their oracle gives the mean, this one the variance of each element.
STOCHASTIC: Mapping[str, Oracle] = {"noise": noise_variance}
