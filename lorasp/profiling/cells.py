"""The training steps that a configuration plans to simulate, as config/simulated.yaml does."""

from contextlib import suppress
from importlib import metadata
from itertools import product
from typing import Any

from lorasp.config import Config, resolve_method, resolve_model
from lorasp.errors import UsageError

# the code that decides a simulated step
STEP = [f"profiling/{name}" for name in ("simulate", "fake", "schedule", "step", "storage")]
CODE = (*STEP, "adapters", "models", "public_models", "recompute")

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def libraries() -> dict[str, str]:
    """The versions of the libraries that decide a simulated step as well."""
    found = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def planned(config: Config) -> list[tuple[str, str]]:
    """Every (model, method) with a simulation in the configuration, in its order."""
    pairs = [
        pair for group in _groups(config) for pair in product(group["models"], group["methods"])
    ]
    return list(dict.fromkeys(pairs))


def cells_of(config: Config, model: str, method: str) -> list[dict[str, Any]]:
    """The planned steps of a model and method: batch, length, quantize and recompute.

    Batch and length are those of the model's profile where a group names none. Raises UsageError
    for a model and method that the configuration does not plan.
    """
    shape = next(
        (cell for cell in config["profile"]["cells"] if cell["model"] == model),
        {"batch": 1, "length": 512},
    )
    cells = []
    for group in _groups(config):
        if model in group["models"] and method in group["methods"]:
            axes = {
                "batch": group.get("batch", [shape["batch"]]),
                "length": group.get("length", [shape["length"]]),
                "quantize": group.get("quantize", ["none"]),
                "recompute": group.get("recompute", ["none"]),
            }
            cells += [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    if not cells:
        pairs = ", ".join(f"{one} {other}" for one, other in planned(config))
        raise UsageError(f"simulate plans no {model} {method}; planned are {pairs or 'none'}")
    return [dict(values) for values in dict.fromkeys(tuple(cell.items()) for cell in cells)]


def _groups(config: Config) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = config.get("simulate", [])
    return groups


def resolve_cell(config: Config, model: str, method: str, cell: dict[str, Any]) -> dict[str, Any]:
    """What `simulate` needs to know of a planned step."""
    overrides = {key: cell[key] for key in ("quantize", "recompute") if cell[key] != "none"}
    entry = resolve_model(config, model)
    return {
        "model": entry,
        "method": resolve_method(config, method, overrides),
        "runtime": {**config["runtime"], **entry.get("runtime", {})},
        "profile": {"batch": cell["batch"], "length": cell["length"]},
    }
