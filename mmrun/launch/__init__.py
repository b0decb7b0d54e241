"""Sweeps: which points are left to train, and who trains them. No torch.

``loop.drive(sweep, ...)`` freezes every point, hands what is not done to an executor, says how each ended, and sums up. An
executor runs frozen points somewhere: ``inline`` one after another in this process. To add one: a class in
``mmrun/launch/x.py`` with the contract of ``executor.Executor``, and ``conf/launcher/x.yaml`` that names it. An executor knows
directories and nothing else; what became of a point, its run.json says.

Where points come from is a ``source.Source``: a list, or a ``study`` that chooses them on the way, by Optuna, which ``trials``
alone imports.
"""
