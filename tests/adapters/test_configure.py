"""Every method's settings become PEFT's configuration; what does not fit is told in a sentence."""

from typing import Any

import pytest

from lorasp.adapters.configure import SEEDS, peft_config
from lorasp.config import resolve_method
from lorasp.errors import UsageError
from lorasp.methods import table

TARGETS = {
    "encoder": ["query", "value"],
    "seq2seq": ["q", "v"],
    "causal": ["q_proj", "v_proj"],
}
METHODS = table()
TRAINED = [name for name, entry in METHODS.items() if entry["family"] not in ("base", "full")]


def resolved(name: str, architecture: str, **settings: Any) -> dict[str, Any]:
    return {
        "model": {"architecture": architecture, "targets": TARGETS[architecture]},
        "method": resolve_method({"methods": METHODS}, name, settings),
        "cell": {"seed": 7},
    }


@pytest.mark.parametrize("architecture", TARGETS)
@pytest.mark.parametrize("name", TRAINED)
def test_the_configuration_holds_every_setting(name: str, architecture: str) -> None:
    entry = METHODS[name]
    if architecture not in entry.get("applies_to", TARGETS):
        with pytest.raises(UsageError, match=f"{name} does not apply to {architecture} models"):
            peft_config(resolved(name, architecture))
        return
    found = peft_config(resolved(name, architecture))
    short = {"rank": "r", "targets": "target_modules", "dropout": "lora_dropout"}
    for key, value in entry["settings"].items() if "settings" in entry else ():
        if key not in ("quantize", "recompute", "optimizer"):
            assert getattr(found, short.get(key, key)) == value
    if hasattr(found, "target_modules") and "targets" not in entry.get("settings", {}):
        assert set(found.target_modules) == set(TARGETS[architecture])
    # PVeRA's generator_seed is that of the noise in training, which follows the run's own
    names = set(vars(found)) - {"generator_seed"}
    seeds = [key for key in names if "seed" in key or "prng" in key]
    assert all(getattr(found, key) == 7 for key in seeds)


def test_no_kind_of_seed_is_named_in_vain() -> None:
    found = [peft_config(resolved(name, "causal")) for name in TRAINED]
    assert {seed for seed in SEEDS if any(hasattr(one, seed) for one in found)} == set(SEEDS)


def test_a_seed_that_is_a_setting_stays() -> None:
    assert peft_config(resolved("vera", "encoder", projection_prng_key=3)).projection_prng_key == 3


def test_dropout_means_the_only_field_of_that_kind() -> None:
    assert peft_config(resolved("vera", "encoder", dropout=0.5)).vera_dropout == 0.5
    assert peft_config(resolved("lora", "encoder", dropout=0.5)).lora_dropout == 0.5
    with pytest.raises(UsageError, match="settings has no dropout"):  # it has two
        peft_config(resolved("loha", "encoder", dropout=0.5))


# What PEFT has no way for on quantised weights, as runs of every method have shown: those that a
# torch error ends, and those that compute something else (HRA, DEFT and PEANuT on int8, Uni-LoRA).
FLOATING = (
    *("pissa", "lora-orthogonal", "mica", "loha", "lokr", "hra", "psoft", "c3a", "delora", "deft"),
    *("gralora", "glora", "peanut", "unilora", "tinylora", "frod", "adamss", "osf", "supertuning"),
)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_quantised_weights_are_refused_where_peft_cannot_adapt_them(quantize: str) -> None:
    refused = set()
    for name in TRAINED:
        architecture = METHODS[name].get("applies_to", ["encoder"])[0]
        at = {**resolved(name, architecture, quantize=quantize), "runtime": {"device": "cpu"}}
        try:
            peft_config(at)
        except UsageError as error:
            assert f"methods.{name}.settings.quantize is {quantize}, and PEFT" in str(error)
            refused.add(name)
    assert refused == {*FLOATING, *(["dora"] if quantize == "int8" else [])}


@pytest.mark.parametrize(
    ("name", "setting", "nearest"),
    [
        ("lora-sp", "desnity", "density"),
        ("vera", "vera_drop", "vera_dropout"),
        ("boft", "block_size", "boft_block_size"),
    ],
)
def test_an_unknown_setting_names_the_nearest_first(name: str, setting: str, nearest: str) -> None:
    with pytest.raises(UsageError) as raised:
        peft_config(resolved(name, "encoder", **{setting: 1}))
    told = str(raised.value)
    assert f"settings has no {setting}; " in told and "\n" not in told
    assert told.partition(" allows ")[2].startswith(nearest)
    assert "auto_mapping" not in told and "quantize" in told


def test_a_family_that_peft_does_not_have() -> None:
    method = {**METHODS["lora"], "family": "LORAX"}
    wrong = resolved("lora", "encoder")
    wrong["method"] |= {"family": method["family"]}
    with pytest.raises(UsageError, match=r"family is 'LORAX'; allowed are base, full, .*LORA_SP"):
        peft_config(wrong)
