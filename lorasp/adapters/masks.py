"""Selection masks and initial values, drawn from (seed, name) alone.

Both come from a Philox counter stream whose key is a hash of what is drawn and for whom, so that
they are the same on every machine, whatever else drew random numbers before, and need not be saved.
Only raw integers of the stream are used, whose sequence NumPy guarantees across versions.
"""

import hashlib
from math import ceil

import numpy as np
import torch


def raw_words(count: int, *key: object) -> np.ndarray:
    """The first `count` unsigned 64-bit words of the stream that belongs to `key`."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little")).random_raw(count)


def random_order(count: int, *key: object) -> np.ndarray:
    """A random permutation of range(count); a stable sort, hence the same on every machine."""
    return np.argsort(raw_words(count, *key), kind="stable")


def selected_count(total: int, density: float) -> int:
    """How many of `total` things are selected: round(density * total), at least one."""
    return max(1, round(density * total))


def _shares(total: int, lines: int, *key: object) -> np.ndarray:
    """Split `total` into `lines` integers that differ by at most 1; who gets more is random."""
    shares = np.full(lines, total // lines)
    shares[random_order(lines, *key)[: total % lines]] += 1
    return shares


def draw_mask(
    shape: tuple[int, int], density: float, seed: int, name: str, draw: int = 0
) -> torch.Tensor:
    """Draw which entries of one matrix are selected: S of Eq. 1 of the paper.

    Exactly `selected_count(numel, density)` entries are selected; the counts of any two rows differ
    by at most 1, and so do those of any two columns. Each line of the long dimension draws its
    entries at random; the few lines of the short dimension that then hold too many hand them over,
    in random places, to those that hold too few.

    Args:
        shape: rows and columns, both at least 1.
        density: the share of selected entries, in (0, 1].
        seed: the selection seed.
        name: the name of the matrix, unique within the model.
        draw: the number of the draw, for methods that draw again during training.

    Returns:
        A boolean tensor of `shape` on the CPU, True where selected.
    """
    key = ("mask", seed, name, draw)
    short, long = min(shape), max(shape)
    total = selected_count(short * long, density)
    per_short_line = _shares(total, short, *key, "short")
    per_long_line = _shares(total, long, *key, "long")

    # 32-bit keys: half the work of 64-bit ones. Position breaks a tie, on every machine alike.
    keys = raw_words(ceil(short * long / 2), *key).astype("<u8").view("<u4")[: short * long]
    rank_in_line = keys.reshape(long, short).argsort(axis=1, kind="stable").argsort(axis=1)
    mask = np.ascontiguousarray((rank_in_line < per_long_line[:, None]).T)

    surplus = mask.sum(axis=1) - per_short_line
    while surplus.any():
        giver, taker = int(surplus.argmax()), int(surplus.argmin())
        moved = min(surplus[giver], -surplus[taker])
        # Enough places exist: the giver holds more than the taker by at least `moved` entries.
        movable = np.flatnonzero(mask[giver] & ~mask[taker])
        order = random_order(len(movable), *key, giver, taker, int(surplus[giver]))
        places = movable[order[:moved]]
        mask[giver, places], mask[taker, places] = False, True
        surplus[giver] -= moved
        surplus[taker] += moved

    return torch.from_numpy(mask if shape[0] == short else np.ascontiguousarray(mask.T))


def draw_components(rank: int, density: float, seed: int, name: str, draw: int = 0) -> torch.Tensor:
    """Draw which rank components (rows of A, same columns of B) are selected: (rank,), boolean."""
    components = torch.zeros(rank, dtype=torch.bool)
    chosen = random_order(rank, "components", seed, name, draw)[: selected_count(rank, density)]
    components[torch.from_numpy(chosen)] = True
    return components


def draw_codes(shape: tuple[int, int], seed: int, name: str) -> torch.Tensor:
    """Draw initial values as codes of 1 byte: uint8 of `shape`, uniform over the 256 levels."""
    numel = shape[0] * shape[1]
    words = raw_words(ceil(numel / 8), "initial", seed, name)
    codes = words.astype("<u8").view("u1")[:numel]
    return torch.from_numpy(codes.reshape(shape).copy())


def decode(codes: torch.Tensor, bound: float) -> torch.Tensor:
    """The values of codes: 256 equally likely, equally spaced levels in (-bound, bound), float32.

    PEFT draws A from the continuous uniform distribution on the same interval. The grid has its
    mean, and its variance to within 1 part in 65,536, and lets a frozen entry cost one byte.
    """
    return (2 * codes.to(torch.float32) - 255) * (bound / 256)


def pack_bits(mask: torch.Tensor) -> torch.Tensor:
    """Pack a boolean tensor into uint8, entry i in bit i % 8 of byte i // 8; any device."""
    flat = torch.nn.functional.pad(mask.reshape(-1).to(torch.uint8), (0, -mask.numel() % 8))
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (flat.view(-1, 8) << places).sum(dim=1, dtype=torch.uint8)


def unpack_bits(
    bits: torch.Tensor, numel: int, dtype: torch.dtype = torch.bool, one: float = 1
) -> torch.Tensor:
    """The inverse of `pack_bits`: a flat tensor of `numel` entries on the same device.

    Args:
        bits: (at least ceil(numel / 8),) uint8.
        dtype: of the result.
        one: what stands for a bit that is set.
    """
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    every_byte = torch.arange(256, dtype=torch.uint8, device=bits.device)
    # A table of the eight entries of each byte: looking rows up is several times as fast as shifts.
    table = ((every_byte.unsqueeze(1) >> places) & 1).to(dtype)
    if one != 1:
        table = table * one
    return table.index_select(0, bits.int()).view(-1)[:numel]
