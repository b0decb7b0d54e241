"""Normal random numbers that follow from a key and a counter, worked out where the counter lies.

A generator of torch's is seeded by the host, which does not know how many steps there were that count. Here the
counter is a tensor: nobody waits for it, and the same numbers come on every rank, after a restart, on CPU and GPU.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

# Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators": SplitMix64, as signed numbers.
GOLDEN = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64
HALF = 2**32


def normal(key: str, counter: Tensor, like: Tensor) -> Tensor:
    """Standard normal numbers in the shape of a tensor; float32 at least.

    Args:
        key: what they are for; others at any other key.
        counter: 0-dim, a whole number; others at any other one.
        like: shape, device and at least the precision.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    start = _mixed(counter.to(like.device, torch.int64) * GOLDEN + _signed(digest))
    pairs = torch.arange(-(-like.numel() // 2), device=like.device, dtype=torch.int64)
    bits = _mixed(pairs.mul_(GOLDEN).add_(start))
    # Box and Muller: two uniform numbers, the first above 0, make two normal ones.
    above, angle = _logical(bits, 32).to(dtype), (bits & (HALF - 1)).to(dtype)
    radius = above.add_(0.5).div_(HALF).log_().mul_(-2.0).sqrt_()
    angle.mul_(2.0 * math.pi / HALF)
    both = torch.cat((radius * angle.cos(), radius * angle.sin()))
    return both[: like.numel()].reshape(like.shape)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's mixing of 64 bits, in place."""
    x ^= _logical(x, 30)
    x *= FIRST
    x ^= _logical(x, 27)
    x *= SECOND
    x ^= _logical(x, 31)
    return x


def _logical(x: Tensor, by: int) -> Tensor:
    """A shift to the right that fills with 0, where >> repeats the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _signed(digest: bytes) -> int:
    return int.from_bytes(digest, signed=True)
