"""The verbs: ``mmrun.verbs.x`` is ``mmrun x``.

Each module has ``main(words) -> int``: the words that follow the verb, and the exit code. It prints its help for ``--help`` and
imports what it needs after its words are parsed; only train, resume, eval and predict import torch. To add one: a module here, its
name in ``cli.VERBS`` and its line in ``cli.HELP``. ``words``, ``terminal``, ``garbage`` and ``outcome`` are what several share.
"""
