"""The simulated steps at the paper's scale as one table, and their numbers as text."""

from typing import Any

import pandas as pd

from lorasp.claims.simulated import BASE, MEASURES, read_simulations
from lorasp.public_models import public_models
from lorasp.report.tables import TIMES

GIB, MIB = 2**30, 2**20
KINDS = {  # of the bytes of a step, in the order of a bar, by the name that a reader sees
    "weights": "Weights",
    "activations": "Activations",
    "temporaries": "Temporaries",
    "copies": "Copies of weights",
    "gradients": "Gradients",
    "optimizer": "AdamW's moments",
    "masks": "Masks",
}
FAMILIES = ("full", "LORA", "LORA_SP")
SELECTIONS = ("element", "rank", "matrix", "depth")
MINUS = "\N{MINUS SIGN}"


def simulations_frame() -> pd.DataFrame:
    """One row a simulated step, models in the order of public_models.yaml, methods by what they do.

    Columns: model, method, label, family, selection; batch, length, quantize, recompute; `shaped`
    (at the paper's batch and length), `base` (neither quantized nor recomputing as well); the
    MEASURES in bytes and FLOPs; `at_peak_<kind>` in bytes; trainable, total.
    """
    known = list(public_models())
    rows: list[dict[str, Any]] = []
    for file in read_simulations():
        settings = file["settings"]
        first = file["cells"][0]
        place = known.index(file["model"]) if file["model"] in known else len(known)
        family = FAMILIES.index(file["family"]) if file["family"] in FAMILIES else len(FAMILIES)
        selection = settings.get("selection", SELECTIONS[0])
        for cell in file["cells"]:
            axes = {key: cell[key] for key in ("batch", "length", *BASE)}
            at_paper = all(axes[key] == first[key] for key in ("batch", "length"))
            peak = max(cell["phases"].values(), key=lambda phase: phase["peak_bytes"])
            rows.append(
                {key: file[key] for key in ("model", "method", "label", "family")}
                | {"selection": selection}
                | {"place": (place, family, SELECTIONS.index(selection), file["method"])}
                | axes
                | {"shaped": at_paper, "base": at_paper and axes.items() >= BASE.items()}
                | {name: measure[-1](cell) for name, measure in MEASURES.items()}
                | {f"at_peak_{kind}": peak["kinds"].get(kind, 0) for kind in KINDS}
                | cell["parameters"]
            )
    rows.sort(key=lambda row: row["place"])
    return pd.DataFrame(rows)


def one(frame: pd.DataFrame, **wanted: Any) -> pd.Series | None:
    """The row with these values, None without one."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return None if frame.empty else frame.iloc[0]


def table_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """The steps of the paper's tables: FT, LoRA, and LoRA-SP that selects single entries."""
    return frame[frame["base"] & (frame["selection"] == SELECTIONS[0])]


def change(value: float, peer: float) -> str:
    """'12 % less', 'the same', '3.1 % more' or '2.5 times as much' than a peer."""
    if value == peer:
        return "the same"
    if value >= 2 * peer:
        return f"{value / peer:.1f} times as much"
    percent = 100 * abs(value / peer - 1)
    size = "less than 0.1" if percent < 0.05 else f"{percent:.{0 if percent >= 9.95 else 1}f}"
    return f"{size} % {'less' if value < peer else 'more'}"


def gib(size: float) -> str:
    """Bytes in GiB with two decimals."""
    return f"{size / GIB:.2f} GiB"


def mib(size: float) -> str:
    """Bytes in MiB, or in GiB from a thousand on; 0 where it would show none."""
    if abs(size) < 0.05 * MIB:
        return "0"
    return f"{size / MIB:.1f} MiB" if abs(size) < 1000 * MIB else gib(size)


def signed(size: float) -> str:
    """A difference of bytes with its sign; a plain 0 where there is none."""
    return "0" if mib(size) == "0" else (MINUS if size < 0 else "+") + mib(abs(size))


def shape(row: pd.Series) -> str:
    return f"{row['batch']} {TIMES} {row['length']}"
