"""From a method's settings to the PEFT configuration that they mean."""

import dataclasses
import difflib
import inspect
import warnings
from typing import Any

from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from lorasp.errors import UsageError
from lorasp.plugins import is_own

TASK_TYPES = {"encoder": "SEQ_CLS", "seq2seq": "SEQ_2_SEQ_LM", "causal": "CAUSAL_LM"}
SHORT_NAMES = {"rank": "r", "targets": "target_modules"}  # and dropout: see `_field_of`
# Settings of a method that say how the base model is held and trained, not what PEFT trains.
BASE_SETTINGS = ("quantize", "recompute", "optimizer")
# What PEFT's configurations call the seed of what they draw by a generator of their own.
SEEDS = (
    *("selection_seed", "random_seed", "random_loc_seed", "projection_prng_key"),
    *("projection_seed", "proj_seed"),
)
# What a Delta of somebody's own gets of PEFT's configuration; all else are its own arguments.
PLACED = ("target_modules", "exclude_modules", "modules_to_save")
# Families of PEFT that read a weight's numbers as they are stored, packed or scaled, and fail at it
# or compute something else; and the initial values of its LoRA that do not.
UNQUANTISED = (
    *("ADAMSS", "C3A", "DEFT", "DELORA", "FROD", "GLORA", "GRALORA", "HRA", "LOHA", "LOKR", "OSF"),
    *("PEANUT", "PSOFT", "SUPERTUNING", "TINYLORA", "UNILORA"),
)
QUANTISED_STARTS = (True, False, "gaussian", "olora")
# What PEFT warns of and is meant so: frozen draws are drawn again, norms are adapted whole; and
# BOFT asks for a CUDA compiler that it does without.
for message in (
    *("Specified to not save", "Unsupported layer type"),
    *("Failed to load the CUDA extension", "Setting boft_n_butterfly_factor"),
):
    warnings.filterwarnings("ignore", message, UserWarning)
# and AdaLoRA's are of ranks, which PEFT takes for those of a LoRA that names modules
warnings.filterwarnings("ignore", r"The following rank_pattern keys .*lora_E", RuntimeWarning)


def peft_config(resolved: dict[str, Any]) -> Any:
    """The PEFT configuration of a run's method.

    Raises UsageError for a family that PEFT does not have, a setting that the family lacks, an
    architecture that the method does not apply to, or quantised weights that it cannot adapt.
    """
    method, model = resolved["method"], resolved["model"]
    refuse_architecture(method, model["architecture"])
    family, config_class = _config_class(method)
    names = {field.name for field in dataclasses.fields(config_class)}
    settings: dict[str, Any] = {"targets": model["targets"]} if "target_modules" in names else {}
    settings |= {k: v for k, v in method["settings"].items() if k not in BASE_SETTINGS}
    if family == "DELTA":
        arguments = _of_delta(method["name"], settings)
    else:
        arguments = {_field_of(key, names): value for key, value in settings.items()}
        general = {field.name for field in dataclasses.fields(PeftConfig)}
        _refuse_unknown(method["name"], family, set(arguments) - names, names - general)
        # PEFT's own LoRA finds a rank of another kind only when it allocates
        if type(rank := arguments.get("r", 1)) is not int or rank < 1:
            raise UsageError(
                f"methods.{method['name']}.settings.rank is {rank!r}; allowed is a whole number "
                "from 1"
            )
    for name in names.intersection(SEEDS):
        arguments.setdefault(name, resolved.get("cell", {}).get("seed", 0))
    try:
        config = config_class(task_type=TASK_TYPES[model["architecture"]], **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"methods.{method['name']}.settings: {error}") from error
    _refuse_quantised(config, family, resolved)
    return config


def _refuse_quantised(config: Any, family: str, resolved: dict[str, Any]) -> None:
    """UsageError where PEFT has no way for a method on base weights that are quantised."""
    method = resolved["method"]
    if (quantize := method["settings"].get("quantize", "none")) == "none":
        return
    because, device = "", resolved.get("runtime", {}).get("device")
    if family in UNQUANTISED:
        because = f"PEFT's {family} adapts weights in a floating format alone"
    elif family == "LORA" and (start := config.init_lora_weights) not in QUANTISED_STARTS:
        because = f"PEFT computes init_lora_weights: {start} from weights in a floating format"
    elif family == "LORA" and config.use_dora and (quantize, device) == ("int8", "cpu"):
        because = "PEFT's DoRA loses the scales of int8 weights on a CPU"
    if because:
        raise UsageError(
            f"methods.{method['name']}.settings.quantize is {quantize}, and {because}: leave "
            "quantize out, or take another method"
        )


def refuse_architecture(method: dict[str, Any], architecture: str) -> None:
    """UsageError, with the reason, where a method does not apply to models of an architecture."""
    if architecture not in (allowed := method.get("applies_to", TASK_TYPES)):
        raise UsageError(
            f"method {method['name']} does not apply to {architecture} models, only to "
            f"{', '.join(allowed)}: {method['because']}"
        )


def _config_class(method: dict[str, Any]) -> tuple[str, Any]:
    """The method's family and PEFT's class of its configuration; its own code is loaded first."""
    family = method["family"]
    if is_own(method):
        from lorasp.adapters import own

        family = own.load(method)
    if family not in PEFT_TYPE_TO_CONFIG_MAPPING:
        families = sorted(str(getattr(key, "value", key)) for key in PEFT_TYPE_TO_CONFIG_MAPPING)
        raise UsageError(
            f"methods.{method['name']}.family is {family!r}; "
            f"allowed are base, full, {', '.join(families)}"
        )
    return family, PEFT_TYPE_TO_CONFIG_MAPPING[family]


def _field_of(key: str, names: set[str]) -> str:
    """The configuration's field that a setting means; `dropout` is its only one of that kind."""
    if key == "dropout" and key not in names:
        dropouts = sorted(name for name in names if name.endswith("_dropout"))
        return dropouts[0] if len(dropouts) == 1 else key
    return SHORT_NAMES.get(key, key)


def _of_delta(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """A Delta's configuration: where it is placed, and the arguments of its class."""
    from lorasp.adapters.delta import OFFERED

    renamed = {SHORT_NAMES[key] if key == "targets" else key: v for key, v in settings.items()}
    placed = {key: value for key, value in renamed.items() if key in PLACED}
    own = {key: value for key, value in renamed.items() if key not in PLACED}
    # the constructor's first four are self, out_features, in_features and the generator
    taken = list(inspect.signature(OFFERED[method].__init__).parameters.values())[4:]
    if not any(one.kind is one.VAR_KEYWORD for one in taken):
        _refuse_unknown(method, method, set(own) - {p.name for p in taken}, {p.name for p in taken})
    return {**placed, "method": method, "settings": own}


def _refuse_unknown(method: str, what: str, unknown: set[str], names: set[str]) -> None:
    """UsageError for settings that are not there: those nearest to them are named first."""
    if not unknown:
        return
    short = [key for key in (*SHORT_NAMES, "dropout") if _field_of(key, names) in names]
    known = [*short, *sorted(names), *BASE_SETTINGS]
    near = [name for key in unknown for name in difflib.get_close_matches(key, known, 2)]
    raise UsageError(
        f"methods.{method}.settings has no {', '.join(sorted(unknown))}; {what} allows "
        f"{', '.join(dict.fromkeys([*near, *known]))}"
    )
