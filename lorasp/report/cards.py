"""Which graphics cards hold a simulated step of the large models, and with what settings."""

import pandas as pd

from lorasp.claims.printed import listed
from lorasp.report.steps import GIB, gib, shape

GB = 10**9
CARDS = (24, 16, 8)  # GB, of 10^9 bytes: no card that is sold under the name has fewer
RESERVE = GIB  # the CUDA context, the libraries' workspaces, what the allocator cannot use
LARGE = 10**9  # parameters from which on it is a question which card holds a model
STORED = {"none": "unquantized", "nf4": "in NF4", "int8": "in int8"}


def large_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Steps of the large models at the paper's batch and length: all ways of what was quantized."""
    steps = frame[frame["shaped"] & (frame["total"] >= LARGE)]
    tried = set(steps.loc[steps["quantize"] != "none", "method"])
    return steps[steps["method"].isin(tried | {"ft"})]


def room(card: int, peak: int) -> int:
    """Bytes that a card of so many GB has left beside a step; below 0 the step does not fit."""
    return card * GB - RESERVE - peak


def cards_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Which card holds each step of the large models, and what it has left or lacks."""
    rows = []
    for _, row in large_steps(frame).iterrows():
        entry = {
            "Model": row["model"],
            "Weights": STORED[row["quantize"]].removeprefix("in "),
            "Recomputation": row["recompute"],
            "Method": row["label"],
            "Peak": gib(row["peak"]),
        }
        for card in CARDS:
            left = room(card, row["peak"])
            entry[f"{card} GB"] = f"lacks {gib(-left)}" if left < 0 else f"fits, {gib(left)} left"
        rows.append(entry)
    return pd.DataFrame(rows)


def card_answers(frame: pd.DataFrame) -> list[str]:
    """What it takes each large model to fit each card; whether LoRA-SP helps it over LoRA."""
    steps = large_steps(frame)
    sentences = []
    for model, group in steps[steps["method"] != "ft"].groupby("model", sort=False):
        said = []
        for card in CARDS:
            ways = [
                way
                for quantize, stored in group.groupby("quantize", sort=False)
                if (way := _way(str(quantize), stored, card))
            ]
            said.append(f"of {card} GB {listed(ways) if ways else 'in no way that was simulated'}")
        where = f"{model}, batch {shape(group.iloc[0])}, fits a card"
        sentences.append(f"{where} {'; one '.join(said)}.")
    return [*sentences, *_without_adapter(steps), *_both(steps)]


def _way(quantize: str, steps: pd.DataFrame, card: int) -> str:
    """How one number format of the weights fits a card; empty if it does not."""
    fits = steps[[room(card, peak) >= 0 for peak in steps["peak"]]]
    if fits.empty or len(fits) == len(steps):
        return "" if fits.empty else STORED[quantize]
    policies = []
    for policy, some in fits.groupby("recompute", sort=False):
        everyone = len(some) == (steps["recompute"] == policy).sum()
        policies.append(f"{policy}" + ("" if everyone else f" ({', '.join(some['label'])} alone)"))
    return f"{STORED[quantize]} with recomputation {listed(policies)}"


def _without_adapter(steps: pd.DataFrame) -> list[str]:
    """The largest card that full fine-tuning lacks, where it fits none."""
    full = steps[steps["method"] == "ft"]
    if full.empty or any(room(max(CARDS), peak) >= 0 for peak in full["peak"]):
        return []
    least = full.groupby("model", sort=False)["peak"].min()
    needs = listed(f"{gib(peak)} for {model}" for model, peak in least.items())
    return [f"Full fine-tuning fits none of them: it needs {needs}."]


def _both(steps: pd.DataFrame) -> list[str]:
    """In how many settings LoRA-SP fits a card that LoRA does not."""
    axes = ["model", "quantize", "recompute"]
    pairs = steps[steps["method"] == "lora"].merge(
        steps[steps["method"] == "lora-sp"], on=axes, suffixes=("_lora", "_sp")
    )
    if pairs.empty:
        return []
    gained = sum(
        any(room(card, row.peak_sp) >= 0 > room(card, row.peak_lora) for card in CARDS)
        for row in pairs.itertuples()
    )
    return [
        f"In {gained or 'none'} of the {len(pairs)} settings that were simulated with both does "
        "LoRA-SP fit a card that LoRA does not."
    ]
