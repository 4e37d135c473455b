"""Dropout's own masks: their rate, their independence, and the random words they take."""

import math

import pytest
import torch

from lorasp.adapters.dropout import draw_kept, kept_scale, rounded_rate


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.25, 0.5, 0.9])
def test_entries_stay_at_the_rounded_rate_and_independently(rate: float) -> None:
    torch.manual_seed(0)
    shape = torch.Size((1000, 1003))
    stays = kept_scale(draw_kept(shape, rate, torch.device("cpu")), shape, rate, torch.float64) > 0
    q, count = 1 - rounded_rate(rate), stays.numel()
    assert abs(rounded_rate(rate) - rate) <= 2**-17
    five_errors = 5 * math.sqrt(q * (1 - q) / count)
    assert abs(stays.double().mean() - q) < five_errors
    centred = stays.double().flatten() - q
    for lag in (1, 2, 7, 8, 63, 64, 65, 1003):  # neighbours in a byte, a word, a row
        product = (centred[:-lag] * centred[lag:]).mean() / (q * (1 - q))
        assert abs(product) < 5 / math.sqrt(count)
    by_place = stays.flatten()[: 64 * (count // 64)].view(-1, 64).double().mean(0)
    assert (by_place - q).abs().max() < 5 * math.sqrt(q * (1 - q) / (count // 64))


def test_a_rate_of_one_half_takes_one_random_word_for_64_entries(monkeypatch) -> None:
    drawn, real = [], torch.randint_like
    monkeypatch.setattr(torch, "randint_like", lambda t, *a: drawn.append(t.numel()) or real(t, *a))
    draw_kept(torch.Size((10, 64)), 0.5, torch.device("cpu"))
    assert drawn == [10]
    drawn.clear()
    draw_kept(torch.Size((10, 64)), 0.1, torch.device("cpu"))
    assert len(drawn) == 15  # 6554 / 65536, an even numerator


@pytest.mark.slow  # inductor calls a C++ compiler
def test_inductor_drops_at_the_rate() -> None:
    shape = torch.Size((400, 500))

    @torch.compile(fullgraph=True)
    def draw() -> torch.Tensor:
        return kept_scale(draw_kept(shape, 0.1, torch.device("cpu")), shape, 0.1, torch.float32)

    dropped = (draw() == 0).double()
    assert abs(dropped.mean() - 0.1) < 5 * math.sqrt(0.09 / dropped.numel())
    columns = dropped.mean(0)
    assert (columns - 0.1).abs().max() < 5.5 * math.sqrt(0.09 / 400)
