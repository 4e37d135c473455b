"""Which graphics cards hold a simulated step of the large models, and with what settings."""

import functools

import pandas as pd

from lorasp.claims.printed import listed
from lorasp.planning import devices
from lorasp.planning.memory import CONTEXT, FRAGMENTS
from lorasp.report.steps import GIB, gib, shape
from lorasp.results import read_yaml

CARDS = (24, 16, 8)  # GB, as the names of the planned devices say
LARGE = 10**9  # parameters from which on it is a question which card holds a model
STORED = {"none": "unquantized", "nf4": "in NF4", "int8": "in int8"}


def large_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """Steps of the large models at the paper's batch and length: all ways of what was quantized."""
    steps = frame[frame["shaped"] & (frame["total"] >= LARGE)]
    tried = set(steps.loc[steps["quantize"] != "none", "method"])
    return steps[steps["method"].isin(tried | {"ft"})]


@functools.cache
def usable(card: int) -> float:
    """Bytes that a process can allocate on any card of so many GB among the planned devices."""
    table = read_yaml(devices.FILE)
    return GIB * min(
        entry["memory_gib"] for name, entry in table.items() if name.endswith(f"-{card}gb")
    )


def room(card: int, peak: int) -> int:
    """Bytes of tensors that a card of so many GB has left beside a step; below 0 it does not fit.

    What a process takes beside the tensors is what `lorasp plan` assumes.
    """
    return int((usable(card) - CONTEXT) / (1 + FRAGMENTS)) - peak


def rule() -> str:
    """What a card holds, in words."""
    sizes = listed(f"{usable(card) / GIB:.1f}" for card in CARDS)
    left = listed(f"{room(card, 0) / GIB:.1f}" for card in CARDS)
    return (
        f"A card of {listed(f'{card}' for card in CARDS)} GB has {sizes} GiB here, the least of "
        "that size among the devices of lorasp plan. As in a plan the CUDA context takes "
        f"{CONTEXT / GIB:.1f} GiB, and the allocator's fragments {100 * FRAGMENTS:.0f} % of the "
        f"tensors: {left} GiB are for tensors. What has less than half a GiB left is worth a try, "
        "not a promise."
    )


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
        everyone = set(group["label"])
        for card in CARDS:
            ways = [
                way
                for quantize, stored in group.groupby("quantize", sort=False)
                if (way := _way(str(quantize), stored, card, everyone))
            ]
            said.append(f"of {card} GB {listed(ways) if ways else 'in no way that was simulated'}")
        where = f"{model}, batch {shape(group.iloc[0])}, fits a card"
        sentences.append(f"{where} {'; one '.join(said)}.")
    return [*sentences, *_without_adapter(steps), *_both(steps)]


def _way(quantize: str, steps: pd.DataFrame, card: int, everyone: set[str]) -> str:
    """How one number format of the weights fits a card; empty if it does not.

    Methods are named where some of `everyone` (labels) do not fit, or were not tried.
    """
    fits = steps[[room(card, peak) >= 0 for peak in steps["peak"]]]
    if fits.empty:
        return ""
    if len(fits) == len(steps):
        return STORED[quantize] + _who(fits, steps, everyone)
    policies = [
        f"{policy}{_who(some, steps[steps['recompute'] == policy], everyone)}"
        for policy, some in fits.groupby("recompute", sort=False)
    ]
    return f"{STORED[quantize]} with recomputation {listed(policies)}"


def _who(fits: pd.DataFrame, tried: pd.DataFrame, everyone: set[str]) -> str:
    labels = "; ".join(dict.fromkeys(fits["label"]))
    if len(fits) < len(tried):
        return f" ({labels} alone)"
    return "" if set(tried["label"]) == everyone else f" (tried: {labels})"


def _without_adapter(steps: pd.DataFrame) -> list[str]:
    """What full fine-tuning takes at the least, where it fits no card."""
    full = steps[steps["method"] == "ft"]
    if full.empty or any(room(max(CARDS), peak) >= 0 for peak in full["peak"]):
        return []
    least = full.groupby("model", sort=False)["peak"].min()
    needs = listed(f"{gib(peak)} for {model}" for model, peak in least.items())
    return [f"Full fine-tuning fits none of them: the least that was simulated is {needs}."]


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
