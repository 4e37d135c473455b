"""What was measured of a training step, beside LoRA on the same model."""

import pandas as pd

from lorasp.config import Config
from lorasp.report.collect import DONE, NOT_RUN, Results
from lorasp.report.tables import TIMES


def profile_frame(config: Config, results: Results) -> pd.DataFrame:
    """Measured costs of a step as strings, each with its ratio to LoRA on the same model."""
    rows = []
    for _, profile in results.profiles.iterrows():
        entry = {
            "Model": profile["model"],
            "Method": config["methods"][profile["method"]]["label"],
            f"Batch {TIMES} length": f"{profile['batch']} {TIMES} {profile['length']}",
        }
        done = profile["status"] == DONE
        lora = lora_profile(results, profile["model"])
        peer = dict.fromkeys(COSTS) if lora is None else lora
        for name, (heading, unit, factor) in COSTS.items():
            entry[heading] = _cost(profile[name], factor, unit, peer[name]) if done else NOT_RUN
        rows.append(entry)
    return pd.DataFrame(rows)


def _cost(value: float, factor: float, unit: str, peer: float | None) -> str:
    """A value in its unit and its ratio to LoRA's; 'none' for states that the method has not."""
    if not value:
        return "none"
    scaled = value * factor
    text = f"{scaled:,.0f}" if scaled >= 100 or not unit else f"{scaled:.3g}"
    ratio = f" ({TIMES}{value / peer:.2f})" if peer else ""
    return f"{text} {unit}".rstrip() + ratio


COSTS = {
    "step": ("Step, median", "ms", 1e3),
    "tokens_per_second": ("Tokens a second", "", 1.0),
    "peak_memory": ("Peak memory", "MiB", 2.0**-20),
    "adapter_states": ("Adapter states", "KiB", 2.0**-10),
    "states": ("All trained states", "KiB", 2.0**-10),
    "adapter_bytes": ("Saved file", "KiB", 2.0**-10),
    "trainable": ("Trainable parameters", "", 1.0),
}


def lora_profile(results: Results, model: str) -> pd.Series | None:
    """The finished profile of LoRA on a model: what every ratio is taken to."""
    profiles = results.profiles
    rows = profiles[
        (profiles["model"] == model) & (profiles["method"] == "lora") & (profiles["status"] == DONE)
    ]
    return None if rows.empty else rows.iloc[0]
