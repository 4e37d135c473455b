"""What the simulated steps answer: what LoRA-SP saves of memory and compute, and how."""

from typing import Any

import pandas as pd

from lorasp.claims import load_claims
from lorasp.claims.simulated import COMMAND
from lorasp.report.cards import card_answers, cards_frame, rule
from lorasp.report.steps import (
    KINDS,
    MINUS,
    change,
    gib,
    mib,
    one,
    shape,
    signed,
    table_steps,
)
from lorasp.report.tables import TIMES

TERA = 1e12
SAME = 0.01  # a relative difference below which nothing is called saved
FOLDED = 25  # rows of a table from which on it is folded
SAVES = {
    "states": "states",
    "activations": "activations",
    "backward_flops": "backward compute",
}


def headlines(frame: pd.DataFrame) -> list[str]:
    """What LoRA-SP saves of a step, on each model of the paper's tables: the largest in full."""
    sentences: list[str] = []
    printed = {claim["model"] for claim in load_claims()["claims"] if "table" in claim}
    base = frame[frame["base"] & frame["model"].isin(printed)]
    sizes = base.groupby("model")["total"].max()
    for model in sizes.sort_values(ascending=False, kind="stable").index:
        sp, lora, ft = (one(base, model=model, method=name) for name in ("lora-sp", "lora", "ft"))
        if sp is None or lora is None:
            continue
        said = f"{model}, batch {shape(sp)}: the peak of LoRA-SP is {gib(sp['peak'])} against "
        said += f"LoRA's {gib(lora['peak'])}, {change(sp['peak'], lora['peak'])}"
        if ft is not None:
            said += f", and {gib(ft['peak'])} of full fine-tuning, {change(sp['peak'], ft['peak'])}"
        if not sentences:
            said += f". {_why(sp, lora)}"
        sentences.append(f"{said}.")
    return sentences


def _why(sp: pd.Series, lora: pd.Series) -> str:
    """Where the difference to LoRA comes from: the states with their share, and the rest."""
    share = f"{100 * lora['states'] / lora['peak']:.2g} %"
    return (
        f"The trained states (weights, gradients, moments, masks) are {mib(sp['states'])} against "
        f"{mib(lora['states'])}, {change(sp['states'], lora['states'])}; LoRA's are as much as "
        f"{share} of its peak. The activations kept for the backward pass are "
        f"{change(sp['activations'], lora['activations'])}, the operations of a step "
        f"{change(sp['flops'], lora['flops'])}"
    )


def sources_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """Peak by source of the methods in the paper's tables, against LoRA and full fine-tuning."""
    rows = []
    base = table_steps(frame)
    for _, row in base.iterrows():
        entry = {
            "Model": row["model"],
            "Method": row["label"],
            f"Batch {TIMES} length": shape(row),
            "Peak": gib(row["peak"]),
        }
        for name, heading in (("lora", "Against LoRA"), ("ft", "Against FT")):
            peer = one(base, model=row["model"], method=name)
            if peer is None or row["method"] == name:
                entry[heading] = ""
            else:
                entry[heading] = change(row["peak"], peer["peak"])
        sources = {name: mib(row[f"at_peak_{kind}"]) for kind, name in KINDS.items()}
        rows.append(entry | sources)
    return pd.DataFrame(rows)


def savings_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """What LoRA-SP changes at the peak, source by source, against LoRA and full fine-tuning."""
    rows = []
    base = frame[frame["base"]]
    for _, row in base[base["method"] == "lora-sp"].iterrows():
        for name in ("lora", "ft"):
            peer = one(base, model=row["model"], method=name)
            if peer is None:
                continue
            entry = {
                "Model": row["model"],
                "LoRA-SP against": peer["label"],
                "Peak": signed(row["peak"] - peer["peak"]),
                "In per cent": f"{100 * (row['peak'] / peer['peak'] - 1):+.1f}".replace("-", MINUS),
            }
            for kind, heading in KINDS.items():
                column = f"at_peak_{kind}"
                entry[heading] = signed(row[column] - peer[column])
            rows.append(entry)
    return pd.DataFrame(rows)


def selection_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """The base steps of the models on which every selection is simulated, with ratios to LoRA.

    A column `<measure>_ratio` for states, activations, backward_flops and peak.
    """
    base = frame[frame["base"]]
    models = set(base.loc[base["method"].str.startswith("lora-sp-rank"), "model"])
    rows = []
    for _, row in base[base["model"].isin(models) & (base["method"] != "ft")].iterrows():
        lora = one(base, model=row["model"], method="lora")
        if lora is not None:
            ratios = {f"{name}_ratio": row[name] / lora[name] for name in (*SAVES, "peak")}
            rows.append(row.to_dict() | ratios)
    return pd.DataFrame(rows)


def selections_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """What each selection saves of states, activations, backward operations and peak."""
    rows = []
    for row in selection_rows(frame).to_dict("records"):
        saved = [name for key, name in SAVES.items() if row[f"{key}_ratio"] <= 1 - SAME]
        rows.append(
            {
                "Model": row["model"],
                "Method": row["label"],
                "Trained": f"{row['trainable']:,}",
                "States": _beside(mib(row["states"]), row["states_ratio"]),
                "Kept activations": _beside(gib(row["activations"]), row["activations_ratio"]),
                "Backward TFLOP": _beside(
                    f"{row['backward_flops'] / TERA:.2f}", row["backward_flops_ratio"]
                ),
                "Peak": _beside(gib(row["peak"]), row["peak_ratio"]),
                "Saves over LoRA": "" if row["method"] == "lora" else ", ".join(saved) or "nothing",
            }
        )
    return pd.DataFrame(rows)


def _beside(text: str, ratio: float) -> str:
    return f"{text} ({TIMES}{ratio:.2f})"


def recomputation_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """What each policy of recomputation does to peak, kept activations and operations."""
    rows = []
    plain = frame[frame["shaped"] & (frame["quantize"] == "none")]
    for _, row in plain.iterrows():
        steps = plain[(plain["model"] == row["model"]) & (plain["method"] == row["method"])]
        if len(steps) < 2:
            continue
        none = one(steps, recompute="none")
        shown = {
            "Peak": (gib(row["peak"]), "peak"),
            "Kept activations": (gib(row["activations"]), "activations"),
            "TFLOP of a step": (f"{row['flops'] / TERA:.2f}", "flops"),
        }
        rows.append(
            {"Model": row["model"], "Method": row["label"], "Recomputation": row["recompute"]}
            | {
                heading: text if none is None else _beside(text, row[key] / none[key])
                for heading, (text, key) in shown.items()
            }
        )
    return pd.DataFrame(rows)


def tables(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Every table of the section: its name, title, note, columns of words, and frame."""
    made: list[tuple[str, str, str, tuple[str, ...], pd.DataFrame]] = [
        ("savings", "What LoRA-SP saves at the peak, by source",
         "Each step at its own peak: what moves from one phase to another shows as a plus and a "
         "minus.", ("LoRA-SP against",), savings_frame(frame)),
        ("sources", "Peak memory by source", "Bytes at the moment of the peak.",
         ("Method",), sources_frame(frame)),
        ("selections", "What each selection saves",
         f"In brackets: the ratio to LoRA. Saved is what shrinks by {100 * SAME:.0f} % or more.",
         ("Method", "Saves over LoRA"), selections_frame(frame)),
        ("recomputation", "What recomputation saves, and costs",
         "In brackets: the ratio to the same method without recomputation.",
         ("Method", "Recomputation"), recomputation_frame(frame)),
        ("cards", "Which card is enough", rule(),
         ("Weights", "Recomputation", "Method"), cards_frame(frame)),
    ]  # fmt: skip
    return [
        {"name": f"simulated-{name}", "title": title, "note": note, "words": words}
        | {"frame": shown, "folded": len(shown) > FOLDED}
        for name, title, note, words, shown in made
        if not shown.empty
    ]


def section(frame: pd.DataFrame) -> dict[str, Any]:
    """What the templates show of the simulated steps; without a step only the command to run."""
    if frame.empty:
        return {"command": COMMAND, "headlines": [], "answers": [], "tables": []}
    return {
        "command": COMMAND,
        "headlines": headlines(frame),
        "answers": card_answers(frame),
        "tables": tables(frame),
    }
