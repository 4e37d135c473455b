"""Random sets of entries of a tensor: how many, which, and the fewest bytes that hold them."""

from math import ceil
from typing import Any

import numpy as np
import torch
from torch import nn

from .masks import pack_bits, raw_words, unpack_bits

PRECISION = 64  # bits of a probability


def draw_count(total: int, share: float, *key: object) -> int:
    """How many of `total` independent draws succeed with probability `share`: exactly binomial.

    As if a random number of 64 bits were drawn for each and compared with `share`, the highest bits
    of all of them first: only how many are still equal to it matters, and of n random bits only how
    many are set. That takes n / 32 words in place of n, and is the same on every machine.
    """
    bits, succeeded, equal = round(share * 2**PRECISION), 0, total
    if bits >> PRECISION:
        return total
    for place in range(PRECISION):
        words = raw_words(ceil(equal / 64), "count", *key, place)
        words[-1:] >>= np.uint64(-equal % 64)
        ones = int(np.bitwise_count(words).sum())
        if bits >> (PRECISION - 1 - place) & 1:
            succeeded, equal = succeeded + equal - ones, ones
        else:
            equal -= ones
        if not equal:
            break
    return succeeded


def draw_places(total: int, count: int, *key: object) -> np.ndarray:
    """Draw `count` of range(total), every such set equally likely: ascending, (count,) int64.

    They are the first different remainders of the words of the stream that belongs to `key`; of
    more than half, those that are left out are drawn.
    """
    wanted = min(count, total - count)
    drawn, words, used = np.zeros(total, dtype=bool), np.empty(0, dtype=np.uint64), 0
    # As many at a time as are missing: there are never too many.
    while missing := wanted - int(np.count_nonzero(drawn)):
        if used + missing > len(words):
            words = raw_words(2 * (used + missing), "places", *key)
        drawn[words[used : used + missing] % np.uint64(total)] = True
        used += missing
    return np.flatnonzero(drawn if wanted == count else ~drawn)


class Places(nn.Module):
    """A set of entries in a buffer that is not saved, in the form that takes the fewest bytes.

    'indices': 4 bytes an entry; 'bits': one for each that might be in the set; 'gaps': a byte an
    entry, how many are left out before it, and one more for every 255 of all. With that, a set of
    1 % takes 1.4 bytes an entry, one of 10 % less than bits, and one of 0.1 % takes indices.

    Args:
        total: the number of entries that might be in the set.
        count: of those that are.
        device: where to allocate; on 'meta' nothing is filled in.
    """

    code: Any

    def __init__(self, total: int, count: int, device: torch.device) -> None:
        super().__init__()
        self.total, self.count = total, count
        sizes = {"gaps": count + total // 255, "bits": ceil(total / 8)}
        if total < 2**31:
            sizes["indices"] = 4 * count
        self.form = min(sizes, key=lambda form: sizes[form])
        length, dtype = sizes[self.form], torch.uint8
        if self.form == "indices":
            length, dtype = count, torch.int32
        code = torch.zeros(length, dtype=dtype, device=device)
        self.register_buffer("code", code, persistent=False)

    def fill(self, places: np.ndarray) -> None:
        """Take over a set: (count,) integers, ascending."""
        self.code.copy_(torch.from_numpy(getattr(self, f"_{self.form}")(places)))

    def _indices(self, places: np.ndarray) -> np.ndarray:
        return places.astype(np.int32)

    def _bits(self, places: np.ndarray) -> np.ndarray:
        mask = np.zeros(self.total, dtype=bool)
        mask[places] = True
        return pack_bits(torch.from_numpy(mask)).numpy()

    def _gaps(self, places: np.ndarray) -> np.ndarray:
        left_out = np.diff(places, prepend=-1) - 1
        code = np.full(len(self.code), 255, dtype=np.uint8)  # 255 left out, and no entry after
        code[np.arange(self.count) + np.cumsum(left_out // 255)] = left_out % 255
        return code

    def forward(self) -> torch.Tensor:
        """The entries, ascending: (count,) int64, or int32 where they are held so."""
        if self.form == "indices":
            indices: torch.Tensor = self.code
            return indices
        # Their number is known: no device has to wait for it, and fake tensors work.
        if self.form == "bits":
            return _true_places(unpack_bits(self.code, self.total), self.count)
        is_entry = self.code != 255
        ends = torch.cumsum(self.code.to(torch.int64) + is_entry, 0)
        return ends.index_select(0, _true_places(is_entry, self.count)) - 1


def _true_places(mask: torch.Tensor, count: int) -> torch.Tensor:
    return torch.nonzero_static(mask, size=count).squeeze(1)
