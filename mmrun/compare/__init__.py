"""Reading finished and running runs: what they were, how they went, how they compare. No torch.

``show`` one run in full, ``summary`` what a training says at its end. ``table`` settings side by side:
``collect`` which runs, and in which settings they differ; ``laws`` the words of clip laws among them; ``where`` which of them; ``metrics`` which
numbers; ``groups`` mean, sd, n, and the choice on validation; ``formats`` as text; ``figures`` as the
data of a picture; ``draw`` the picture. ``suggest`` thresholds worth trying: ``candidates``
their numbers, ``advice`` what they mean, ``trials`` the sweep over them and its control;
``command`` the line that makes a run again, as it was or changed.
"""
