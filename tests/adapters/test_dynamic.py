"""Dynamic LoRA: the budget, who gets it, what moves with a component, and all that PEFT does."""

import copy
from fractions import Fraction
from itertools import pairwise
from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lorasp.adapters import DynamicLoraConfig, hooks
from lorasp.adapters.dynamic import allocation_steps, apportion
from lorasp.adapters.ranked import spread_of
from lorasp.errors import UsageError

SIZES = (30, 20, 24, 16)
LAYERS = ["0", "2", "4"]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(SIZES)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def adapt(base: nn.Module | None = None, **options: Any) -> Any:
    options = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS} | options
    return get_peft_model(base or net(), DynamicLoraConfig(**options)).train()


def randomize(model: nn.Module, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(0.3 * torch.randn(weight.shape, generator=generator))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return torch.optim.AdamW(trained, lr=0.02, weight_decay=0.1)


def step(model: Any, optimizer: torch.optim.Optimizer, number: int) -> None:
    x = torch.randn(6, 30, generator=torch.Generator().manual_seed(number))
    model(x).square().sum().backward()
    optimizer.step()
    hooks.after_step(model, number)
    optimizer.zero_grad()


def weigh(layer: nn.Module, factor: float) -> None:
    """Scale the gradients of one layer's weights, and of nothing else."""

    def scaled(x: torch.Tensor, by: float) -> torch.Tensor:
        return x.detach() + by * (x - x.detach())

    layer.register_forward_pre_hook(lambda _, x: (scaled(x[0], 1 / factor),))
    layer.register_forward_hook(lambda _, x, y: scaled(y, factor))


def pairs(model: Any) -> list[tuple[Any, Any]]:
    layers = [model.base_model.model[int(name)] for name in LAYERS]
    return [(layer.lora_A["default"], layer.lora_B["default"]) for layer in layers]


def by_hand(weights: list[float], budget: int, least: list[int], most: list[int]) -> list[int]:
    """The definition, in exact arithmetic: one by one, looking at all of them each time."""
    shares = list(least)
    while sum(shares) < budget:
        open_ = [i for i in range(len(shares)) if shares[i] < most[i]]
        claims = {i: Fraction(weights[i]) / (shares[i] + Fraction(1, 2)) for i in open_}
        best = max(claims.values())
        shares[min(i for i, claim in claims.items() if claim == best)] += 1
    return shares


@given(st.data())
def test_the_apportionment_is_websters(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    weights = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    least = data.draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    most = [low + data.draw(st.integers(0, 6)) for low in least]
    budget = data.draw(st.integers(sum(least), sum(most)))
    shares = apportion([float(w) for w in weights], budget, least, most)
    assert shares == by_hand(weights, budget, least, most)
    assert sum(shares) == budget
    # Webster's condition: no component would be worth more elsewhere
    for i, j in ((i, j) for i in range(count) for j in range(count)):
        if shares[i] < most[i] and shares[j] > least[j]:
            assert weights[i] / (shares[i] + 0.5) <= weights[j] / (shares[j] - 0.5) + 1e-9


def test_shares_are_proportional_where_they_can_be() -> None:
    assert apportion([1.0, 2.0, 5.0], 32, [1, 1, 1], [32, 32, 32]) == [4, 8, 20]
    assert apportion([1.0, 1.0, 1.0], 12, [1, 1, 1], [8, 8, 8]) == [4, 4, 4]
    assert apportion([0.0, 1.0, 0.0], 12, [1, 1, 1], [8, 8, 8]) == [3, 8, 1]


def test_the_schedule() -> None:
    config = DynamicLoraConfig(allocations=6, warmup_share=0.1, final_share=0.6)
    assert allocation_steps(config, 1000) == [100, 200, 300, 400, 500, 600]
    assert allocation_steps(config, 10) == [1, 2, 3, 4, 5, 6]
    assert allocation_steps(config, 3) == [1, 2]
    assert allocation_steps(DynamicLoraConfig(allocations=1, warmup_share=0.5), 10) == [5]


def test_before_the_first_allocation_it_is_lora() -> None:
    ours, lora = (
        adapt(),
        get_peft_model(net(), LoraConfig(r=4, lora_alpha=8, target_modules=LAYERS)),
    )
    assert ours.get_nb_trainable_parameters() == lora.get_nb_trainable_parameters()
    randomize(ours)
    for name, (a, b) in zip(LAYERS, pairs(ours), strict=True):
        layer = lora.base_model.model[int(name)]
        layer.lora_A["default"].weight.data.copy_(a.values.data)
        layer.lora_B["default"].weight.data.copy_(b.values.data)
    x = torch.randn(64, 30)
    out, expected = ours(x), lora(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward(), expected.square().sum().backward()
    for name, (a, b) in zip(LAYERS, pairs(ours), strict=True):
        layer = lora.base_model.model[int(name)]
        for mine, theirs in ((a, layer.lora_A), (b, layer.lora_B)):
            grad = theirs["default"].weight.grad
            torch.testing.assert_close(mine.values.grad, grad, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=10)
@given(
    measure=st.integers(1, 5),
    features=st.booleans(),
    change=st.sampled_from([None, 3]),
    smoothing=st.sampled_from([0.0, 0.85]),
)
def test_every_allocation_follows_from_what_was_seen(
    measure: int, features: bool, change: int | None, smoothing: float
) -> None:
    """Importances and spreads computed apart from the hooks, by the formulas, in each step."""
    options = {"measure_steps": measure, "features": features, "max_change": change}
    model = adapt(allocations=3, final_share=0.7, smoothing=smoothing, **options)
    optimizer, total, due = adamw(model), 20, [2, 8, 14]
    assert allocation_steps(model.peft_config["default"], total) == due
    hooks.begin(model, optimizer, total)
    importance, spread = [0.0] * 3, [0.0] * 3
    changed = False
    for number in range(1, total + 1):
        seen: list[torch.Tensor] = []
        handles = [
            model.base_model.model[int(n)].register_forward_pre_hook(
                lambda _, x, seen=seen: seen.append(x[0].detach().double())
            )
            for n in LAYERS
        ]
        x = torch.randn(6, 30, generator=torch.Generator().manual_seed(number))
        model(x).square().sum().backward()
        for handle in handles:
            handle.remove()
        optimizer.step()
        before = list(model.base_model.ranks().values())
        if any(0 <= step - number < measure for step in due):
            for i, (a, b) in enumerate(pairs(model)):
                sensitivity = sum((w.values * w.values.grad).abs().mean().item() for w in (a, b))
                importance[i] += (1 - smoothing) * (sensitivity - importance[i])
                inputs = seen[i]
                f = inputs.var(0, correction=0).sum() / inputs.square().mean(0).sum()
                spread[i] += (1 - smoothing) * (f.sqrt().item() - spread[i])
        hooks.after_step(model, number)
        optimizer.zero_grad()
        after = list(model.base_model.ranks().values())
        if number in due:
            scores = [i * (s if features else 1) for i, s in zip(importance, spread, strict=True)]
            least = [max(1, rank - (change or 1)) for rank in before]
            most = [min(8, rank + (change or 1)) for rank in before]
            assert after == by_hand(scores, 12, least, most)
            changed |= after != before
        else:
            assert after == before
        assert sum(after) == 12
        for a, b in pairs(model):
            assert a.values.shape[0] == b.values.shape[1] == a.rank == b.rank
            for matrix in (a, b):
                state = optimizer.state[matrix.values]
                assert state["exp_avg"].shape == state["exp_avg_sq"].shape == matrix.values.shape
    assert changed


def test_what_is_kept_stays_and_what_comes_changes_nothing() -> None:
    model = adapt(allocations=1, warmup_share=0.5, measure_steps=1, max_change=2)
    randomize(model)
    weigh(model.base_model.model[2], 100)
    optimizer = adamw(model)
    hooks.begin(model, optimizer, 10)
    for number in range(1, 5):
        step(model, optimizer, number)
    x = torch.randn(6, 30, generator=torch.Generator().manual_seed(5))
    model(x).square().sum().backward()
    optimizer.step()
    matrices = [matrix for pair in pairs(model) for matrix in pair]
    before = [m.values.detach().clone() for m in matrices]
    moments = [optimizer.state[m.values]["exp_avg"].clone() for m in matrices]
    hooks.after_step(model, 5)
    ranks = list(model.base_model.ranks().values())
    assert ranks != [4, 4, 4] and sum(ranks) == 12
    for index, rank in enumerate(ranks):
        a, b = matrices[2 * index], matrices[2 * index + 1]
        old_a, old_b = before[2 * index], before[2 * index + 1]
        norms = old_a.norm(dim=1) * old_b.norm(dim=0)
        kept = sorted(sorted(range(4), key=lambda i: -norms[i])[:rank])
        stay = len(kept)
        assert torch.equal(a.values[:stay], old_a[kept])
        assert torch.equal(b.values[:, :stay], old_b[:, kept])
        assert not b.values[:, stay:].any() and a.values[stay:].all()
        assert (a.values[stay:].abs() < 1 / sqrt(a.values.shape[1])).all()
        moment_a, moment_b = (optimizer.state[m.values]["exp_avg"] for m in (a, b))
        assert torch.equal(moment_a[:stay], moments[2 * index][kept])
        assert torch.equal(moment_b[:, :stay], moments[2 * index + 1][:, kept])
        assert not moment_a[stay:].any() and not moment_b[:, stay:].any()
        # what is gained leaves the product as it was, what is lost takes its own part away
        torch.testing.assert_close(b.values @ a.values, old_b[:, kept] @ old_a[kept])
    optimizer.zero_grad()
    step(model, optimizer, 6)
    gained = [b for (a, b), rank in zip(pairs(model), ranks, strict=True) if rank > 4]
    assert gained and all(b.values[:, 4:].all() for b in gained)  # and learns from the next step


@pytest.mark.parametrize("planted", [0, 1, 2])
def test_an_important_module_gains_rank(planted: int) -> None:
    model = adapt(allocations=5, final_share=0.9, features=False)
    weigh(model.base_model.model[int(LAYERS[planted])], 100)
    optimizer = adamw(model)
    hooks.begin(model, optimizer, 12)
    for number in range(1, 13):
        step(model, optimizer, number)
    ranks = list(model.base_model.ranks().values())
    assert ranks[planted] == max(ranks) == 8 and sum(ranks) == 12


def test_the_spread_of_inputs() -> None:
    assert spread_of(torch.ones(2, 5, 7)) == 0  # every token the same
    alternating = torch.tensor([[1.0, -2.0], [-1.0, 2.0]])
    assert spread_of(alternating) == 1  # no mean at all
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)) + 3
    torch.testing.assert_close(spread_of(100 * rows), spread_of(rows))
    torch.testing.assert_close(
        spread_of(rows.repeat_interleave(64, dim=0)), spread_of(rows), rtol=0.1, atol=0
    )


def test_features_change_the_allocation_and_the_seed_what_is_drawn() -> None:
    def trained(**options: Any) -> Any:
        model = adapt(allocations=3, max_change=2, **options)
        model.base_model.model[2].register_forward_pre_hook(lambda _, x: (x[0] + 5,))
        optimizer = adamw(model)
        hooks.begin(model, optimizer, 12)
        for number in range(1, 13):
            step(model, optimizer, number)
        return model

    one, same, other = (trained(selection_seed=seed) for seed in (0, 0, 1))
    plain = trained(features=False)
    assert one.base_model.ranks() == same.base_model.ranks()
    for (a, b), (c, d), (e, _) in zip(pairs(one), pairs(same), pairs(other), strict=True):
        assert torch.equal(a.values, c.values) and torch.equal(b.values, d.values)
        assert a.values.shape != e.values.shape or not torch.equal(a.values, e.values)
    # all tokens have much in common where 5 is added, and that module counts less
    assert one.base_model.ranks()["2"] < plain.base_model.ranks()["2"]


def test_nothing_is_watched_between_measurements() -> None:
    model = adapt(allocations=2, measure_steps=2, final_share=0.8)
    optimizer = adamw(model)
    hooks.begin(model, optimizer, 20)  # allocates after 2 and 16
    watched = []
    for number in range(1, 21):
        watched.append(bool(model.base_model.model[0]._forward_pre_hooks))
        before = [float(a.importance) for a, _ in pairs(model)]
        step(model, optimizer, number)
        assert (before != [float(a.importance) for a, _ in pairs(model)]) == watched[-1]
    assert [number for number, is_watched in enumerate(watched, 1) if is_watched] == [1, 2, 15, 16]
    for total in (20, 20, 200):  # begun anew, and the last time with nothing to watch yet
        hooks.begin(model, optimizer, total)
        assert len(model.base_model.model[0]._forward_pre_hooks) == (total == 20)


def test_a_step_that_overflowed_says_nothing() -> None:
    model = adapt(allocations=1, warmup_share=0.5, measure_steps=3)
    hooks.begin(model, adamw(model), 4)
    model(torch.full((6, 30), torch.inf)).sum().backward()
    hooks.after_step(model, 1)
    assert all(float(a.importance) == float(a.spread) == 0 for a, _ in pairs(model))
    hooks.after_step(model, 2)
    assert set(model.base_model.ranks().values()) == {4}


def six_steps(model: Any, batch: dict[str, Any]) -> None:
    optimizer = adamw(model)
    hooks.begin(model, optimizer, 6)
    for number in range(1, 7):
        model(**batch).loss.backward()
        optimizer.step()
        hooks.after_step(model, number)
        optimizer.zero_grad()


def moved(family: Any, **options: Any) -> Any:
    """An adapted model whose ranks are no longer what they were."""
    config = DynamicLoraConfig(
        task_type=family.task, target_modules=list(family.targets), r=4, **options
    )
    model: Any = get_peft_model(family.model(), config).train()
    six_steps(model, family.batch())
    ranks = list(model.base_model.ranks().values())
    assert set(ranks) != {4} and sum(ranks) == 4 * len(ranks)
    randomize(model)
    return model.eval()


@torch.no_grad()
def logits(model: Any, family: Any) -> torch.Tensor:
    return model(**family.batch()).logits  # type: ignore[no-any-return]


def test_save_load_merge_disable_and_two_adapters(family, tmp_path) -> None:
    model = moved(family)
    expected, ranks = logits(model, family), model.base_model.ranks()
    model.save_pretrained(tmp_path)
    for options in ({}, {"low_cpu_mem_usage": True}, {"is_trainable": True}):
        loaded: Any = PeftModel.from_pretrained(family.model(), tmp_path, **options).eval()
        assert torch.equal(logits(loaded, family), expected)
        assert loaded.base_model.ranks() == ranks
    other: Any = get_peft_model(family.model(), copy.deepcopy(model.peft_config["default"])).eval()
    other.load_adapter(tmp_path, "moved")
    assert set(other.base_model.ranks().values()) == {4}
    other.set_adapter("moved")
    assert torch.equal(logits(other, family), expected)
    assert other.base_model.ranks("moved") == ranks
    with model.disable_adapter():
        if not family.labels:
            assert torch.equal(logits(model, family), logits(family.model(), family))
    clone = copy.deepcopy(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model, family), expected, rtol=1e-4, atol=1e-5)
    model.unmerge_adapter()
    torch.testing.assert_close(logits(model, family), expected, rtol=1e-4, atol=1e-5)
    merged = clone.merge_and_unload()
    torch.testing.assert_close(logits(merged, family), expected, rtol=1e-4, atol=1e-5)


def test_bf16_checkpointing_and_loading_to_go_on(llama, tmp_path) -> None:
    config = DynamicLoraConfig(target_modules=list(llama.targets), r=4, allocations=2)
    model: Any = get_peft_model(llama.model().bfloat16(), config, autocast_adapter_dtype=False)
    model.train().enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    six_steps(model, llama.batch())
    ranks = model.base_model.ranks()
    assert sum(ranks.values()) == 4 * len(ranks) and set(ranks.values()) != {4}
    assert all(p.dtype == torch.bfloat16 for n, p in model.named_parameters() if "lora_" in n)
    model.save_pretrained(tmp_path)
    loaded: Any = PeftModel.from_pretrained(llama.model(), tmp_path, is_trainable=True).train()
    optimizer = adamw(loaded)
    hooks.begin(loaded, optimizer, 6)
    for number in range(1, 7):
        loaded(**llama.batch()).loss.backward()
        optimizer.step()
        hooks.after_step(loaded, number)
        optimizer.zero_grad()
    assert sum(loaded.base_model.ranks().values()) == 4 * len(ranks)


@pytest.mark.parametrize("quantization", ["Linear4bit", "Linear8bitLt"])
def test_quantized_layers(quantization: str) -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if quantization == "Linear8bitLt":
        options = {"has_fp16_weights": False, "threshold": 6.0}
    kind = getattr(bnb.nn, quantization)
    base = nn.Sequential(*(kind(64, 64, bias=False, **options) for _ in range(2))).to("cpu")
    model = adapt(base, target_modules=["0", "1"], allocations=2)
    weigh(model.base_model.model[0], 100)
    optimizer = adamw(model)
    hooks.begin(model, optimizer, 6)
    x = torch.randn(5, 64)
    losses = []
    for number in range(1, 7):
        loss = model(x).square().sum()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        hooks.after_step(model, number)
        optimizer.zero_grad()
    ranks = list(model.base_model.ranks().values())
    assert sum(ranks) == 8 and ranks != [4, 4] and losses[-1] < losses[0]


def test_meta_and_fake_tensors_draw_nothing(llama, monkeypatch) -> None:
    config = DynamicLoraConfig(target_modules=list(llama.targets), r=4)
    monkeypatch.setattr("lorasp.adapters.masks.raw_words", lambda *_: pytest.fail("drawn"))
    with torch.device("meta"):
        base = llama.build()
    model: Any = get_peft_model(base, config, low_cpu_mem_usage=True, autocast_adapter_dtype=False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        trained = [p for p in model.parameters() if p.requires_grad]
        model(input_ids=torch.zeros(2, 6, dtype=torch.long)).logits.sum().backward()
    assert trained and all(p.grad.shape == p.shape for p in trained)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"max_rank": 3}, "max_rank is 3; allowed is at least the largest rank .* starts with, 4"),
        (
            {"max_rank": 6, "rank_pattern": {"query": 8}},
            "max_rank is 6; .* starts with, 8 by r and",
        ),
        ({"allocations": 0}, "allocations is 0; allowed: a positive integer"),
        ({"warmup_share": 0.7}, "warmup_share is 0.7 and final_share 0.6; allowed"),
        ({"smoothing": 1}, r"smoothing is 1; allowed: a number in \[0, 1\)"),
        ({"features": "yes"}, "features is 'yes'; allowed: true, false"),
        ({"use_dora": True}, "use_dora does not work with Dynamic LoRA"),
    ],
)
def test_refusals(options: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        adapt(**options)


def test_it_has_to_know_how_many_steps_there_will_be() -> None:
    model = adapt()
    with pytest.raises(UsageError, match="has to know how many steps there will be"):
        hooks.after_step(model, 1)
