"""Clip laws: gradients -> gradients, measured. One file each; usable in any PyTorch loop.

    import mmrun

    law = mmrun.clip.norm.Norm(threshold=0.5, per="modality")
    law.bind({"image": dict(image.named_parameters()), "head": dict(head.named_parameters())})
    ...
    loss.backward()
    stats = law.apply()  # once per optimizer step, on reduced and unscaled gradients
    optimizer.step()
    stats.by_scope()["coefficient"]  # [1 + scopes], everything first; still on the device

The contract is ``mmrun.clip.law.Law``. A law that multiplies gradients by coefficients of their norms (nearly all
do) derives from ``mmrun.clip.scaling.Scaling`` and says one or both of: ``limits`` (the threshold in force) and
``respond`` (the coefficient). Any other law derives from ``Law`` and says ``clip``.

To add one: ``mmrun/clip/x.py`` with a class ``X``, ``conf/clip/x.yaml``, and the law in NumPy in ``tests/oracles.py``.
The tests find it in ``conf/clip``: parity with the oracle, the properties of every law, no host sync.
``mmrun.clip`` imports torch and ``mmrun.errors``, nothing else of mmrun.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """The module of a law, imported when it is first named."""
    module = f"{__name__}.{name}"
    if importlib.util.find_spec(module) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(module)
