"""Dropout whose mask costs one bit an entry, and on a CPU a quarter of the usual time to draw."""

from math import prod

import torch

from .masks import unpack_bits

# Of the rate: it is rounded to a multiple of 2 ** -PRECISION, and the scale is that of the rounded.
PRECISION = 16


def rounded_rate(rate: float) -> float:
    """The rate that `draw_kept` has: a multiple of 2^-16, which for 0.1 is 0.100006.

    Entries that stay are divided by one minus this, so that the expectation is exact.
    """
    return round(rate * 2**PRECISION) / 2**PRECISION


def draw_kept(shape: torch.Size, rate: float, device: torch.device) -> torch.Tensor:
    """Draw which entries stay: each with probability 1 - `rounded_rate(rate)`, independently.

    A random number below the threshold is found bit by bit: 64 entries at a time, with one random
    word for each bit of the rate's binary expansion from its last 1 on. So a word serves four
    entries, where the usual way draws a number for each.

    Returns:
        (ceil(numel / 64),) int64 with a bit for each entry, drawn from torch's own generator.
    """
    words = -(-prod(shape) // 64)
    threshold = round(rate * 2**PRECISION)
    dropped = torch.zeros(words, dtype=torch.int64, device=device)
    for place in range(PRECISION):
        digit = threshold >> place & 1
        if not digit and not threshold & ((1 << place) - 1):
            continue  # zeros at the end of the expansion decide nothing
        random = torch.randint_like(dropped, -(2**63), 2**63 - 1)  # all but one in 2^64 words
        # The random number's digit is 0 with even odds. Below it where the threshold's is 1: the
        # number is smaller, whatever follows; above it, larger; else the later digits decide.
        dropped = random | dropped if digit else random & dropped
    return ~dropped


def kept_scale(
    kept: torch.Tensor, shape: tuple[int, ...], rate: float, dtype: torch.dtype
) -> torch.Tensor:
    """What dropout multiplies by: 0 or 1 / (1 - rate), a tensor of `shape` and `dtype`."""
    scale = 1 / (1 - rounded_rate(rate))
    return unpack_bits(kept.view(torch.uint8), prod(shape), dtype, scale).view(shape)
