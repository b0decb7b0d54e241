"""Clip laws: gradients -> gradients, measured. One file each; usable in any PyTorch loop.

    from mmrun.clip import Clipper, Norm, Value

    clip = Norm(0.5)
    ...
    loss.backward()
    stats = clip(model.parameters())  # once per optimizer step, on reduced and unscaled gradients
    optimizer.step()
    stats["coefficient"][""]  # of everything; still on the device

    clip.load_state_dict(checkpoint["clip"])  # from clip.state_dict(); before the first call, or at any time

    clip = Norm(0.5, per="modality")  # a bound of its own for each scope
    stats = clip({"image": image_encoder, "text": text_encoder, "head": head})

    clip = Clipper(Norm(0.5), scopes={"text": Value(0.1)}, warmup=100, nonfinite="zero")
    clip(optimizer)  # which a fused one knows by to leave out a step that is skipped

    clip = Clipper(Norm(1.0), on="update")  # what the optimizer makes of the gradient
    clip(optimizer)
    optimizer.step()  # here

Parameters that FSDP2 has cut up are whole to a law: norms are summed over processes, each of which calls it; so does
each ``state_dict``, which is the same in all of them.

``Law`` (mmrun.clip.law) is the contract, ``Clipper`` (mmrun.clip.engine) what every law can be combined with. A law that
multiplies gradients by coefficients of their norms (nearly all do) derives from ``Scaling`` and says one or both of
``limits`` (the threshold in force) and ``respond`` (the coefficient); from ``Bounded`` where its threshold is a norm;
from ``Adaptive``, and says ``fields`` and ``follow``, where its threshold follows earlier norms. Any other law derives
from ``Law`` and says ``clip``.

To add one: ``mmrun/clip/x.py`` with a class ``X``, ``conf/clip/x.yaml``, and the law in NumPy in ``tests/oracles``.
The tests find it in ``conf/clip``: parity with the oracle, the properties of every law, no host sync; and
``from mmrun.clip import X`` finds it by its name. ``mmrun.clip`` imports torch and ``mmrun.errors``, nothing else of mmrun.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

from mmrun.clip.engine import Clipper
from mmrun.clip.law import Law
from mmrun.clip.none import Unclipped
from mmrun.clip.stats import Stats
from mmrun.errors import nearest

__all__ = ["Clipper", "Stats", "Unclipped"]


def __getattr__(name: str) -> Any:
    """A module of this package, or the law of that name: ``BlockRMS`` is in ``block_rms``."""
    for module in pkgutil.iter_modules(__path__):
        if name == module.name:
            return importlib.import_module(f"{__name__}.{name}")
        if name != name.lower() and module.name.replace("_", "") == name.lower():
            return getattr(importlib.import_module(f"{__name__}.{module.name}"), name)
    remedy = "" if name.startswith("_") else f". {nearest(name, {*__all__, *_laws()})}"
    if sys._getframe(1).f_code.co_name == "_handle_fromlist":
        # ``from mmrun.clip import Nrom`` would drop an AttributeError, and the nearest name with it.
        raise ImportError(f"cannot import name {name!r} from {__name__!r}{remedy}", name=__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{remedy}")


def __dir__() -> list[str]:
    modules = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted({*__all__, *_laws(), *modules, *(n for n in globals() if n.startswith("__"))})


def _laws() -> set[str]:
    """The names of all laws: classes with an ``algorithm`` of their own."""
    modules = [
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    ]
    classes = [
        each for module in modules for each in vars(module).values() if isinstance(each, type)
    ]
    return {c.__name__ for c in classes if issubclass(c, Law) and "algorithm" in vars(c)}
