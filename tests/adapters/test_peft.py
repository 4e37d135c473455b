"""LoRA-SP in PEFT, on four model families: saving, several adapters, merging, precision."""

import copy
import json

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.helpers import rescale_adapter_scale

from lorasp import LoraSpConfig
from lorasp.adapters import selection_summary
from lorasp.adapters.layer import LoraSpLayer


def adapt(family, model=None, **settings):
    config = LoraSpConfig(task_type=family.task, target_modules=list(family.targets), **settings)
    model = get_peft_model(model or family.model(), config)
    randomize(model, 7)
    return model.eval()


def randomize(model, seed: int, adapter: str = "default") -> None:
    """Stand-in for training: every parameter of the adapter gets a value of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".{adapter}." in name:
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(0.3 * noise)


@torch.no_grad()
def logits(model, family, **kwargs):
    return model(**family.batch(), **kwargs).logits


SETTINGS = {
    "element-zero": {},
    "element-init": {"unselected": "init"},
    "rank-zero": {"selection": "rank"},
    "rank-init": {"selection": "rank", "unselected": "init"},
    "matrix": {"selection": "matrix", "unselected": "init"},
    "depth": {"selection": "depth"},
    "resampled": {"resample": "step"},
    "random-b": {"unselected": "init", "init_lora_weights": False, "use_rslora": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_an_untrained_adapter_changes_nothing(family, name) -> None:
    config = LoraSpConfig(
        task_type=family.task, target_modules=list(family.targets), r=4, **SETTINGS[name]
    )
    model = get_peft_model(family.model(), config).eval()
    same = torch.equal(logits(model, family), logits(family.model(), family))
    assert same == (name != "random-b")


@pytest.mark.parametrize("name", SETTINGS)
def test_save_and_load(family, name, tmp_path) -> None:
    model = adapt(family, r=4, selection_seed=3, **SETTINGS[name])
    expected = logits(model, family)
    assert not torch.equal(expected, logits(family.model(), family))
    model.save_pretrained(tmp_path / "adapter")

    torch.manual_seed(99)  # what the masks do not depend on
    loaded = PeftModel.from_pretrained(family.model(), tmp_path / "adapter")
    assert torch.equal(logits(loaded, family), expected)
    empty = PeftModel.from_pretrained(
        family.model(), tmp_path / "adapter", adapter_name="other", low_cpu_mem_usage=True
    )
    assert torch.equal(logits(empty, family), expected)


def test_auto_class(family, tmp_path) -> None:
    family.model().save_pretrained(tmp_path / "base")
    base = family.auto_class._target_class.from_pretrained(tmp_path / "base")
    model = adapt(family, base, r=4, unselected="init")
    model.save_pretrained(tmp_path / "adapter")
    loaded = family.auto_class.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(loaded, family), logits(model, family))


def test_config_round_trip(tmp_path) -> None:
    config = LoraSpConfig(
        r=6,
        density=0.25,
        selection="matrix",
        unselected="init",
        selection_seed=11,
        matrix_side="B",
        depth="random",
        target_modules=["query"],
    )
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LORA_SP" and saved["density"] == 0.25
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, LoraSpConfig)
    skipped = {"inference_mode", "peft_version"}  # what PEFT itself changes when it saves
    kept = {k: v for k, v in config.to_dict().items() if k not in skipped}
    assert kept == {k: v for k, v in loaded.to_dict().items() if k not in skipped}


def test_two_adapters_with_seeds_of_their_own(family, tmp_path) -> None:
    outputs = {}
    for seed, name in enumerate(("one", "two")):
        single = adapt(family, r=4, selection_seed=seed, unselected="init")
        randomize(single, seed)
        single.save_pretrained(tmp_path / name)
        outputs[name] = logits(single, family)

    model = PeftModel.from_pretrained(family.model(), tmp_path / "one", adapter_name="one")
    model.load_adapter(tmp_path / "two", adapter_name="two")
    model.eval()
    for name in ("one", "two", "one"):
        model.set_adapter(name)
        assert torch.equal(logits(model, family), outputs[name])
    with model.disable_adapter():
        if not family.labels:  # a classification head belongs to the adapter
            assert torch.equal(logits(model, family), logits(family.model(), family))
    if not family.labels and family.task == "CAUSAL_LM":
        mixed = logits(model, family, adapter_names=["one", "two", "__base__"])
        base = logits(family.model(), family)
        torch.testing.assert_close(mixed[0], outputs["one"][0])
        torch.testing.assert_close(mixed[1], outputs["two"][1])
        torch.testing.assert_close(mixed[2], base[2])
    model.delete_adapter("two")
    assert list(selection_summary(model)) == ["one"]


def test_an_adapter_added_later_has_the_masks_it_would_have_alone(roberta) -> None:
    alone = adapt(roberta, r=4, selection_seed=5)
    first = adapt(roberta, r=3, selection_seed=4)
    first.add_adapter(
        "late",
        LoraSpConfig(task_type="SEQ_CLS", target_modules=["query", "value"], r=4, selection_seed=5),
    )
    for (name, layer), other in zip(lora_sp_layers(first), lora_sp_layers(alone), strict=True):
        for side in ("lora_A", "lora_B"):
            late, single = getattr(layer, side)["late"], getattr(other[1], side)["default"]
            assert torch.equal(late.mask, single.mask), name
            assert not torch.equal(
                late.mask, getattr(layer, side)["default"].mask[: len(late.mask)]
            )


def lora_sp_layers(model):
    return [(n, m) for n, m in model.named_modules() if isinstance(m, LoraSpLayer)]


@pytest.mark.parametrize("name", SETTINGS)
def test_merge_unmerge_unload(family, name) -> None:
    model = adapt(family, r=4, **SETTINGS[name])
    expected = logits(model, family)
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(logits(model, family), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p, before[n], rtol=0, atol=1e-6)
    with rescale_adapter_scale(model, 0.0):
        unloaded = copy.deepcopy(model).unload()
        torch.testing.assert_close(logits(model, family), logits(unloaded, family))
    merged = model.merge_and_unload()
    assert not lora_sp_layers(merged)
    torch.testing.assert_close(logits(merged, family), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("autocast_adapter", [True, False])
def test_half_precision_base(roberta, name, autocast_adapter) -> None:
    config = LoraSpConfig(
        task_type="SEQ_CLS", target_modules=list(roberta.targets), r=4, **SETTINGS[name]
    )
    model = get_peft_model(
        roberta.model().bfloat16(), config, autocast_adapter_dtype=autocast_adapter
    )
    expected = torch.float32 if autocast_adapter else torch.bfloat16
    for _, layer in lora_sp_layers(model):
        for matrix in (layer.lora_A["default"], layer.lora_B["default"]):
            assert matrix.weight.dtype == expected
    out = model(**roberta.batch())
    out.loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in grads)
    model.merge_and_unload()


def test_autocast_and_checkpointing_give_the_same_gradients(llama) -> None:
    model = adapt(llama, r=4, unselected="init").train()

    def gradients(**context) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, **context):
            model(**llama.batch()).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.requires_grad]

    exact, mixed = gradients(enabled=False), gradients()
    for a, b in zip(exact, mixed, strict=True):
        assert b.dtype == torch.float32
        assert (a - b).norm() <= 0.05 * a.norm()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for a, b in zip(exact, gradients(enabled=False), strict=True):
        torch.testing.assert_close(a, b)


def test_dtype_moves_copies_and_state_dicts(roberta) -> None:
    model = adapt(roberta, r=4, unselected="init")
    clone = copy.deepcopy(model)
    assert torch.equal(logits(clone, roberta), logits(model, roberta))
    clone.double().float()
    assert torch.equal(logits(clone, roberta), logits(model, roberta))
    randomize(clone, 1)
    assert not torch.equal(logits(clone, roberta), logits(model, roberta))
    clone.load_state_dict(model.state_dict())
    assert torch.equal(logits(clone, roberta), logits(model, roberta))


@pytest.mark.parametrize("name", SETTINGS)
def test_meta_device_draws_nothing_and_has_the_true_sizes(roberta, name, monkeypatch) -> None:
    real = adapt(roberta, r=4, **SETTINGS[name])

    def refuse(*_: object) -> None:
        raise AssertionError("a mask was drawn on the meta device")

    monkeypatch.setattr("lorasp.adapters.masks.raw_words", refuse)
    with torch.device("meta"):
        base = roberta.build()
    config = copy.deepcopy(real.peft_config["default"])
    if name == "matrix":  # which side is trained is drawn, and says how many entries are
        monkeypatch.undo()
    model = get_peft_model(base, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    shapes = {n: p.shape for n, p in real.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    buffers = {n: b.shape for n, b in real.named_buffers() if "lora_" in n}
    assert {n: b.shape for n, b in model.named_buffers() if "lora_" in n} == buffers
    assert all(t.is_meta for n, t in model.state_dict().items() if "lora_" in n)
    if name != "resampled":  # whose selection is counted in the mask itself
        assert selection_summary(model) == selection_summary(real)


def test_injection_without_a_peft_model(roberta) -> None:
    model = adapt(roberta, r=4)
    config = LoraSpConfig(target_modules=["query", "value"], r=4)
    bare = inject_adapter_in_model(config, roberta.model()).eval()
    randomize(bare, 7)
    bare.classifier = model.base_model.model.classifier.modules_to_save["default"]
    for (_, ours), (_, theirs) in zip(lora_sp_layers(bare), lora_sp_layers(model), strict=True):
        assert torch.equal(ours.lora_A["default"].mask, theirs.lora_A["default"].mask)


def test_default_and_all_linear_targets(roberta) -> None:
    default = get_peft_model(roberta.model(), LoraSpConfig(task_type="SEQ_CLS"))
    assert default.peft_config["default"].target_modules == {"query", "value"}
    linear = get_peft_model(
        roberta.model(), LoraSpConfig(task_type="SEQ_CLS", target_modules="all-linear")
    )
    assert len(lora_sp_layers(default)) == 2 * 2 and len(lora_sp_layers(linear)) == 2 * 6
