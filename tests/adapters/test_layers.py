"""Selections that span modules: whole matrices near half of the total, whole adapters by depth."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from lorasp.adapters import LoraSpConfig
from lorasp.adapters.layer import LoraSpLayer
from lorasp.adapters.plan import adapted_names, layer_of, trained_sides


def config(**options) -> LoraSpConfig:
    return LoraSpConfig(selection="matrix", unselected="init", **options)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99)), min_size=1, max_size=30),
    st.integers(0, 99),
)
def test_balanced_matrices_come_within_one_matrix_of_half(sizes, seed) -> None:
    named = {f"m{i}": size for i, size in enumerate(sizes)}
    sides = trained_sides(named, config(selection_seed=seed))
    trained = sum(named[name]["AB".index(side)] for name, side in sides.items())
    total = sum(map(sum, sizes))
    assert abs(trained - total / 2) <= max(abs(a - b) for a, b in sizes) / 2
    assert sides == trained_sides(named, config(selection_seed=seed))


def test_square_modules_take_either_side_by_the_seed() -> None:
    sizes = {f"m{i}": (4, 4) for i in range(64)}
    draws = [trained_sides(sizes, config(selection_seed=seed)) for seed in (0, 1)]
    assert draws[0] != draws[1]
    assert all(10 < list(sides.values()).count("A") < 54 for sides in draws)


@pytest.mark.parametrize("side", ["A", "B"])
def test_one_side_everywhere(side: str) -> None:
    assert set(trained_sides({"x": (1, 9), "y": (9, 1)}, config(matrix_side=side)).values()) == {
        side
    }


def test_layer_of() -> None:
    assert layer_of("roberta.encoder.layer.11.attention.self.query") == "roberta.encoder.layer.11"
    assert layer_of("decoder.block.3.layer.1.EncDecAttention.q") == "decoder.block.3"
    assert layer_of("h.0.attn.c_attn") == "h.0"
    assert layer_of("3.linear") == "3"
    assert layer_of("layer_norm2.weight") is None


def adapted_layers(model: torch.nn.Module) -> set[str | None]:
    return {layer_of(n) for n, m in model.named_modules() if isinstance(m, LoraSpLayer)}


def deep(family, layers: int, **options):
    model = family.model()
    stacks = [model.encoder.block, model.decoder.block] if family.task == "SEQ_2_SEQ_LM" else []
    for stack in stacks or [model.roberta.encoder.layer]:
        while len(stack) < layers:
            stack.append(stack[0])
    options = {"selection": "depth", "target_modules": list(family.targets), "r": 4, **options}
    return get_peft_model(model, LoraSpConfig(task_type=family.task, **options))


def test_upper_half_of_t5_is_its_decoder(t5) -> None:
    model = deep(t5, 2)
    prefix = "base_model.model.decoder.block."
    assert adapted_layers(model) == {prefix + "0", prefix + "1"}


def test_random_layers_differ_by_seed_alone() -> None:
    names = [f"h.{i}.attn.q" for i in range(12)]

    def chosen(seed: int, **options) -> list[str]:
        options = {"selection": "depth", "depth": "random", **options}
        return adapted_names(names, LoraSpConfig(selection_seed=seed, **options))

    assert len(chosen(0)) == 6 and chosen(0) == chosen(0)
    assert len({tuple(chosen(seed)) for seed in range(8)}) == 8
    assert len(chosen(0, density=0.01)) == 1
    assert adapted_names(["head", *names], LoraSpConfig(selection="depth"))[:2] == [
        "head",
        names[6],
    ]


def test_depth_is_plain_lora_and_ends_the_backward_pass(roberta) -> None:
    ours = deep(roberta, 2)
    theirs = get_peft_model(
        roberta.model(),
        LoraConfig(
            task_type="SEQ_CLS", target_modules=["query", "value"], layers_to_transform=[1], r=4
        ),
    )
    theirs.load_state_dict({**theirs.state_dict(), **as_lora(ours)})
    torch.testing.assert_close(
        ours.eval()(**roberta.batch()).logits, theirs.eval()(**roberta.batch()).logits
    )
    trainable = [m.get_nb_trainable_parameters()[0] for m in (ours, theirs)]
    assert trainable[0] == trainable[1]
    flows = []
    encoder = ours.base_model.model.roberta.encoder.layer
    for layer in encoder:
        layer.register_forward_hook(lambda *args: flows.append(args[2][0].requires_grad))
    ours(**roberta.batch())
    assert flows == [False, True]


def as_lora(model) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{side}.default.weight": getattr(layer, side)["default"].weight.detach()
        for name, layer in model.named_modules()
        if isinstance(layer, LoraSpLayer)
        for side in ("lora_A", "lora_B")
    }
