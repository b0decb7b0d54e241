"""Sweeps: which points are left to train, and who trains them. No torch.

``loop.drive(sweep, ...)`` locks the sweep, freezes every point and sums up; ``session.work_off`` and its ``work.Work`` hand what is
not done to an executor, retry, time out, prune and cancel. An executor runs frozen points somewhere: ``local`` in worker
processes of this machine, ``ray`` and ``slurm`` on a cluster, ``inline`` one after another in this process; wherever it is, a
job is ``task.run``. To add one: a class in ``mmrun/launch/x.py`` with the contract of ``executor.Executor``, and
``conf/launcher/x.yaml`` that names it. An executor knows directories and nothing else; what became of a point, its run.json says.

Where points come from is a ``source.Source``: a list, or a ``study`` that chooses them on the way, by Optuna, which ``trials``
alone imports.
"""
