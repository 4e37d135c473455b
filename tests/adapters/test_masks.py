"""Masks and initial values: exact counts, balance, randomness, and the same everywhere."""

import hashlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorasp.adapters import masks
from lorasp.adapters.masks import (
    decode,
    draw_codes,
    draw_components,
    draw_mask,
    pack_bits,
    unpack_bits,
)

sides = st.integers(1, 40)
densities = st.one_of(st.just(0.5), st.floats(0.01, 1.0))


@settings(deadline=None, max_examples=150)
@given(sides, sides, densities, st.integers(-5, 2**40))
def test_counts_are_exact_and_spread_evenly(
    rows: int, columns: int, density: float, seed: int
) -> None:
    mask = draw_mask((rows, columns), density, seed, "layer.query.A")
    assert mask.shape == (rows, columns) and mask.dtype == torch.bool
    assert mask.sum() == max(1, round(density * rows * columns))
    for axis in (0, 1):
        counts = mask.sum(dim=axis)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("shape", [(16, 768), (768, 16), (7, 33)])
def test_exactly_half_of_a_usual_matrix(shape: tuple[int, int]) -> None:
    mask = draw_mask(shape, 0.5, 0, "x")
    assert abs(int(mask.sum()) - mask.numel() / 2) <= 0.5


def test_masks_differ_by_seed_name_and_draw() -> None:
    masks = [
        draw_mask((8, 64), 0.5, seed, name, draw)
        for seed, name, draw in [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    ]
    agreement = [float((x == masks[0]).float().mean()) for x in masks[1:]]
    assert all(0.35 < share < 0.65 for share in agreement)


def test_lines_are_independent_of_each_other() -> None:
    """Balance alone would allow every second row to be its neighbour's complement."""
    signs = draw_mask((16, 2048), 0.5, 0, "x").float() * 2 - 1
    correlation = signs @ signs.T / 2048
    off_diagonal = correlation[~torch.eye(16, dtype=torch.bool)]
    # Columns hold exactly 8 of 16, hence a mean of -1/15; the rest is noise of 1/sqrt(2048).
    assert off_diagonal.mean() == pytest.approx(-1 / 15, abs=1e-3)
    assert (off_diagonal + 1 / 15).abs().max() < 5 / 2048**0.5


def test_every_entry_is_as_likely() -> None:
    share = sum(draw_mask((5, 7), 0.5, seed, "x").float() for seed in range(600)) / 600
    assert (share - share.mean()).abs().max() < 5 * 0.5 / 600**0.5


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 70), densities, st.integers(0, 9))
def test_components(rank: int, density: float, seed: int) -> None:
    components = draw_components(rank, density, seed, "x")
    assert components.shape == (rank,)
    assert components.sum() == max(1, round(density * rank))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_round_trip_and_agree_with_numpy(entries: list[bool]) -> None:
    mask = torch.tensor(entries)
    bits = pack_bits(mask)
    assert bits.tolist() == np.packbits(entries, bitorder="little").tolist()
    assert torch.equal(unpack_bits(bits, len(entries)), mask)


def test_initial_values_have_the_moments_of_pefts() -> None:
    values = decode(draw_codes((64, 1024), 0, "x"), bound=0.25)
    assert values.abs().max() < 0.25 and values.unique().numel() == 256
    assert values.mean() == pytest.approx(0, abs=5 * 0.25 / (3 * 65536) ** 0.5)
    assert values.std() == pytest.approx(0.25 / 3**0.5, rel=0.01)
    levels = decode(torch.arange(256, dtype=torch.uint8), bound=1.0).double()
    assert levels.mean() == 0
    assert (levels**2).mean() == pytest.approx(1 / 3, rel=2e-5)


# The module is run by its path: importing the package would import PEFT, for seconds.
FINGERPRINT = f"""
import hashlib, runpy
globals().update(runpy.run_path({masks.__file__!r}))
name = "roberta.encoder.layer.0.attention.self.query"
parts = (
    draw_mask((16, 768), 0.5, 42, name + ".A"), draw_mask((3072, 7), 0.3, 42, name + ".B", draw=3),
    draw_components(17, 0.5, 42, name), draw_codes((16, 767), 42, name + ".A"),
)
print(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
"""
# Adapters saved by an earlier release are read with masks drawn again: this must never change.
PINNED = "8718b618fecfffcbc77c88b3898ce04662d348f86b381c0c288d36be22e98595"


def test_the_stream_is_the_same_as_ever_in_a_fresh_process() -> None:
    noise = "import random, numpy, torch; random.random(); numpy.random.rand(7); torch.rand(9)\n"
    noise += "numpy.random.seed(5); torch.manual_seed(5)"
    shown = subprocess.run(
        [sys.executable, "-c", noise + FINGERPRINT], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == PINNED


def test_global_generators_are_neither_read_nor_moved() -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    digest = hashlib.sha256(draw_mask((9, 31), 0.5, 0, "x").numpy().tobytes()).digest()
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])
    torch.rand(3), np.random.rand(3), random.random()
    again = draw_mask((9, 31), 0.5, 0, "x")
    assert hashlib.sha256(again.numpy().tobytes()).digest() == digest
