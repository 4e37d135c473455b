"""What was measured of a training step, beside LoRA on the same model and beside the simulation."""

import pandas as pd

from lorasp.config import Config
from lorasp.report.claims_view import signed
from lorasp.report.collect import DONE, NOT_RUN, Results
from lorasp.report.tables import TIMES

MIB = 2.0**-20
COSTS = {
    "step": ("Step, median", "ms", 1e3),
    "tokens_per_second": ("Tokens a second", "", 1.0),
    "peak_memory": ("Peak memory", "MiB", MIB),
    "adapter_states": ("Adapter states", "KiB", 2.0**-10),
    "states": ("All trained states", "KiB", 2.0**-10),
    "adapter_bytes": ("Saved file", "KiB", 2.0**-10),
    "trainable": ("Trainable parameters", "", 1.0),
}
ENERGY = {"joules": ("Energy a step", "J", 1.0)}
PEAKS = {
    "forward_peak": "Forward",
    "backward_peak": "Backward",
    "optimizer_peak": "Optimizer",
    "peak_memory": "Peak",
    "simulated_peak": "Simulated",
}
RESERVED = {"reserved": "Reserved"}


def profile_frame(config: Config, results: Results) -> pd.DataFrame:
    """Measured costs of a step as strings, each with its ratio to LoRA on the same model.

    Energy has a column where a device reported any.
    """
    costs = COSTS | (ENERGY if results.profiles["joules"].notna().any() else {})
    rows = []
    for _, profile in results.profiles.iterrows():
        entry = _names(config, profile)
        done = profile["status"] == DONE
        lora = lora_profile(results, profile["model"])
        peer = dict.fromkeys(costs) if lora is None else lora
        for name, (heading, unit, factor) in costs.items():
            entry[heading] = _cost(profile[name], factor, unit, peer[name]) if done else NOT_RUN
        rows.append(entry)
    return pd.DataFrame(rows)


def peaks_frame(config: Config, results: Results) -> pd.DataFrame:
    """Peak memory of each phase and of the same step simulated, in MiB, as strings.

    What torch's allocator reserved has a column where a GPU was measured.
    """
    peaks = PEAKS | (RESERVED if results.profiles["reserved"].notna().any() else {})
    rows = []
    for _, profile in results.profiles.iterrows():
        entry = _names(config, profile)
        done = profile["status"] == DONE
        for name, heading in peaks.items():
            entry[f"{heading}, MiB"] = _cost(profile[name], MIB, "", None) if done else NOT_RUN
        shown = f"{signed(100 * profile['difference'])} %" if done else NOT_RUN
        rows.append(entry | {"Difference": shown})
    return pd.DataFrame(rows)


def _names(config: Config, profile: pd.Series) -> dict[str, str]:
    return {
        "Model": profile["model"],
        "Method": config["methods"][profile["method"]]["label"],
        f"Batch {TIMES} length": f"{profile['batch']} {TIMES} {profile['length']}",
    }


def _cost(value: float | None, factor: float, unit: str, peer: float | None) -> str:
    """A value in its unit and its ratio to LoRA's; 'none' for states that the method has not."""
    if value is None or pd.isna(value):
        return "not counted"
    if not value:
        return "none"
    scaled = value * factor
    # a count is whole, whatever its size
    whole = scaled >= 100 or (not unit and factor == 1)
    text = f"{scaled:,.0f}" if whole else f"{scaled:.3g}"
    shown = f"{text} {unit}".rstrip()
    if peer is None or pd.isna(peer) or not peer:
        return shown
    ratio = value / peer
    return f"{shown} ({TIMES}{ratio:.{0 if ratio >= 100 else 2}f})"


def lora_profile(results: Results, model: str) -> pd.Series | None:
    """The finished profile of LoRA on a model: what every ratio is taken to."""
    profiles = results.profiles
    rows = profiles[
        (profiles["model"] == model) & (profiles["method"] == "lora") & (profiles["status"] == DONE)
    ]
    return None if rows.empty else rows.iloc[0]
