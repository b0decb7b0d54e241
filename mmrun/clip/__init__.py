"""Clip laws: gradients -> gradients, measured. Usable in any PyTorch loop; needs torch alone.

    law = Norm(threshold=0.5)
    law.bind({"image": dict(image.named_parameters()), "head": dict(head.named_parameters())})
    ...
    loss.backward(); stats = law.apply(); optimizer.step()

Contract and how to add a law: see ``mmrun.clip.law``.
"""
