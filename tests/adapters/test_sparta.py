"""SpaRTA entry by entry: which are drawn, that only they move, and what is held and saved."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from scipy.stats import binom
from torch import nn

from lorasp.adapters import SpartaConfig
from lorasp.adapters.delta import DeltaLayer, deltas_of
from lorasp.adapters.masks import raw_words
from lorasp.adapters.places import Places, draw_count, draw_places
from lorasp.adapters.registry import count_parameters
from lorasp.errors import UsageError

CPU = torch.device("cpu")


# The draws


@given(st.integers(1, 300), st.floats(0.001, 1), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_draws_are_those_of_a_slow_reference(total, share, seed) -> None:
    """Counts and entries from the words of the stream, one at a time, in Python's own integers."""
    bits, equal, count = round(share * 2**64), total, 0
    for place in range(64):
        words = raw_words(math.ceil(equal / 64), "count", seed, place)
        digits = "".join(f"{int(word):064b}" for word in words[:-1])
        last = f"{int(words[-1]):064b}" if equal else ""
        ones = (digits + last[: 64 - (-equal % 64)]).count("1")
        if share < 1 and bits >> (63 - place) & 1:
            count, equal = count + equal - ones, ones
        else:
            equal -= ones
    if share == 1:
        count = total
    assert draw_count(total, share, seed) == count

    wanted = min(count, total - count)
    seen: list[int] = []
    for word in raw_words(200 * total + 64, "places", seed):
        if len(seen) == wanted:
            break
        if (entry := int(word) % total) not in seen:
            seen.append(entry)
    chosen = seen if 2 * count <= total else set(range(total)) - set(seen)
    assert draw_places(total, count, seed).tolist() == sorted(chosen)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.987])
@pytest.mark.parametrize("total", [1, 7, 64, 100])
def test_counts_are_binomial(total, share) -> None:
    """The sum of 3000 counts, and the share of counts up to the median, within exact bounds."""
    counts = [draw_count(total, share, key) for key in range(3000)]
    low, high = binom.ppf([5e-5, 1 - 5e-5], 3000 * total, share)
    assert low <= sum(counts) <= high
    median = binom.median(total, share)
    expected = binom.cdf(median, total, share)
    low, high = binom.ppf([5e-5, 1 - 5e-5], 3000, expected)
    assert low <= sum(count <= median for count in counts) <= high


def test_every_entry_is_as_likely_and_every_pair() -> None:
    total, count, draws = 6, 2, 6000
    drawn = [tuple(draw_places(total, count, key)) for key in range(draws)]
    low, high = binom.ppf([1e-6, 1 - 1e-6], draws, 1 / 15)
    pairs = {pair: drawn.count(pair) for pair in set(drawn)}
    assert len(pairs) == 15 and all(low <= n <= high for n in pairs.values())


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_form_gives_the_set_back(total, share, seed) -> None:
    count = round(share * total)
    entries = draw_places(total, count, seed)
    held = Places(total, count, CPU)
    assert held.code.nbytes == min(4 * count, math.ceil(total / 8), count + total // 255)
    held.fill(entries)
    assert held().tolist() == entries.tolist() and not held.state_dict()


@pytest.mark.parametrize(
    ("count", "form"), [(1_000, "indices"), (10_000, "gaps"), (100_000, "gaps"), (500_000, "bits")]
)
def test_the_form_is_the_smallest_at_every_density(count, form) -> None:
    held = Places(1_000_000, count, CPU)
    held.fill(draw_places(1_000_000, count, "x"))
    assert held.form == form
    assert np.array_equal(held().numpy(), draw_places(1_000_000, count, "x"))


# The method


def adapt(family, model=None, **options):
    options = {"density": 0.2, **options}
    if options["density"] is None and "sparsity" not in options:
        options["sparsity"] = 0.99
    if family.task == "CAUSAL_LM":
        options.setdefault("target_modules", list(family.targets))
    config = SpartaConfig(task_type=family.task, **options)
    return get_peft_model(model or family.model(), config)


def randomize(model, seed: int = 7) -> None:
    generator = torch.Generator().manual_seed(seed)
    for delta in deltas_of(model, "default"):
        for values in delta.parameters():
            values.data.copy_(0.3 * torch.randn(values.shape, generator=generator))


@torch.no_grad()
def logits(model, family):
    return model(**family.batch()).logits


def layers(model) -> dict[str, DeltaLayer]:
    path = "base_model.model."
    found = {n: m for n, m in model.named_modules() if isinstance(m, DeltaLayer)}
    return {name.removeprefix(path): layer for name, layer in found.items()}


def adapted(model) -> dict[str, torch.Tensor]:
    """Every adapted tensor as it is now, (out, in) or (out,), by name."""
    tensors = {}
    for name, layer in layers(model).items():
        weight, bias = layer.adapted("default")
        tensors[f"{name}.weight"] = weight.clone()
        if bias is not None:
            tensors[f"{name}.bias"] = bias.detach().clone()
    return tensors


def mask_by_hand(tensor: torch.Tensor, name: str, density: float, seed: int) -> torch.Tensor:
    key = ("sparta", seed, name)
    count = draw_count(tensor.numel(), density, *key)
    mask = torch.zeros(tensor.numel(), dtype=torch.bool)
    mask[torch.from_numpy(draw_places(tensor.numel(), count, *key))] = True
    return mask.view(tensor.shape)


def train(model, family, optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(**family.batch()).loss.backward()
        optimizer.step()


def adamw(model) -> torch.optim.AdamW:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=0.05, weight_decay=0.5)


def test_only_drawn_entries_move_under_decay_and_after_resume(family, tmp_path) -> None:
    model = adapt(family, selection_seed=5).eval()
    start = adapted(model)
    optimizer = adamw(model)
    train(model, family, optimizer, 3)
    middle = adapted(model)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(family.model(), tmp_path, is_trainable=True).eval()
    assert all(torch.equal(now, middle[name]) for name, now in adapted(loaded).items())
    resumed = adamw(loaded)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(loaded, family, resumed, 3)
    train(model, family, optimizer, 3)
    end = adapted(loaded)
    assert all(torch.equal(end[name], now) for name, now in adapted(model).items())
    moved = 0
    for name, before in start.items():
        mask = mask_by_hand(before, name, 0.2, 5)
        for after in (middle[name], end[name]):
            assert torch.equal(after[~mask], before[~mask]), name
        moved += int((end[name] != before)[mask].sum())
    assert moved > 0.5 * sum(d.values.numel() for d in deltas_of(model, "default"))
    # the base itself, and all that is not targeted, is what it was
    untouched = family.model()
    for path, layer in layers(loaded).items():
        assert torch.equal(layer.base_layer.weight, untouched.get_submodule(path).weight)


def test_the_defaults_are_values_and_outputs_and_a_whole_head(roberta, t5, llama) -> None:
    expected = {
        "roberta": ("attention.self.value", "attention.output.dense"),
        "t5": ("Attention.v", "Attention.o"),
        "llama": ("v_proj", "o_proj"),
    }
    for family, names in zip((roberta, t5, llama), expected.values(), strict=True):
        model = adapt(family, target_modules=None)
        assert all(path.endswith(names) for path in layers(model))
        assert len(layers(model)) == 2 * (6 if family is t5 else 2)
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        head = {n for n in trained if "modules_to_save.default" in n}
        assert all("delta_" in n for n in trained - head) and bool(head) == family.labels
    biased = adapt(roberta, target_modules=None)
    assert any("delta_bias" in n for n, _ in biased.named_parameters())
    plain = adapt(roberta, target_modules=None, biases=False)
    assert not any("delta_bias" in n for n, _ in plain.named_parameters())


def test_the_probability_by_hand(roberta) -> None:
    """RoBERTa's sizes from its shapes: hidden 16, 2 layers, MLP 32, 64 words, 20 positions."""
    embeddings = 64 * 16 + 20 * 16 + 2 * 16 + 2 * 16  # two segment types; a norm
    attention = 4 * (16 * 16 + 16) + 2 * 16
    mlp = 2 * 16 * 32 + 32 + 16 + 2 * 16
    total = embeddings + 2 * (attention + mlp)  # below the head
    targeted = 2 * 2 * (16 * 16 + 16)
    model = adapt(roberta, target_modules=None, density=None, sparsity=0.9)
    config = model.peft_config["default"]
    assert config.density == pytest.approx(0.1 * total / targeted, rel=1e-12)
    exact = adapt(roberta, target_modules=None, density=None, sparsity=0.9, draw="exact")
    p = config.density
    count = 4 * (round(256 * p) + round(16 * p))
    head = 16 * 16 + 16 + 2 * 16 + 2
    assert count_parameters(exact)["trainable"] == count + head
    with pytest.raises(UsageError, match=rf"has to be above {1 - targeted / total:.6f}"):
        adapt(roberta, target_modules=None, density=None, sparsity=0.5)
    fits = math.ceil(1e6 * (1 - targeted / total)) / 1e6
    adapt(roberta, target_modules=None, density=None, sparsity=fits)


def test_settings_that_serve_two_models_give_each_its_own_share(roberta, tmp_path) -> None:
    shared = SpartaConfig(task_type="SEQ_CLS", sparsity=0.95)
    small = get_peft_model(roberta.model(), shared)
    grown = roberta.model()
    grown.resize_token_embeddings(640)
    large = get_peft_model(grown, shared)
    shares = [model.peft_config["default"].density for model in (small, large)]
    added = (640 - 64) * 16
    assert shared.density is None
    assert shares[1] - shares[0] == pytest.approx(0.05 * added / (4 * (16 * 16 + 16)), rel=1e-9)
    small.save_pretrained(tmp_path)  # after the other was made
    assert SpartaConfig.from_pretrained(tmp_path).density == shares[0]


def test_the_output_layer_of_a_llama_is_a_head(llama) -> None:
    """Its own 64 x 16 numbers, untied from the embeddings, count in no share."""
    settings = SpartaConfig(task_type="CAUSAL_LM", sparsity=0.9)
    model = llama.model()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    below = 64 * 16 + 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16)
    found = get_peft_model(model, settings).peft_config["default"].density
    assert found == pytest.approx(0.1 * below / (2 * 2 * 16 * 16), rel=1e-12)


def test_a_second_adapter_and_a_reload_see_the_same_model(roberta, tmp_path) -> None:
    options = {"target_modules": None, "density": None, "sparsity": 0.9}
    model = adapt(roberta, **options)
    model.add_adapter("two", SpartaConfig(task_type="SEQ_CLS", sparsity=0.9, selection_seed=1))
    assert model.peft_config["two"].density == model.peft_config["default"].density
    first, second = deltas_of(model, "default"), deltas_of(model, "two")
    assert [len(d.places()) for d in first] != [len(d.places()) for d in second]
    randomize(model)
    model.save_pretrained(tmp_path, selected_adapters=["default"])
    grown = roberta.model()
    grown.resize_token_embeddings(90)  # its own share of all parameters would be another
    loaded = PeftModel.from_pretrained(grown, tmp_path)
    for ours, theirs in zip(deltas_of(loaded, "default"), first, strict=True):
        assert torch.equal(ours.places(), theirs.places()) and torch.equal(
            ours.values, theirs.values
        )


def test_seeds(roberta) -> None:
    def drawn(seed) -> list[list[int]]:
        model = adapt(roberta, target_modules=None, selection_seed=seed)
        return [delta.places().tolist() for delta in deltas_of(model, "default")]

    torch.manual_seed(1)
    one = drawn(1)
    torch.manual_seed(2)  # what the draws do not depend on
    assert drawn(1) == one != drawn(2)
    assert one[0] != one[2]  # two modules of one shape


@pytest.mark.parametrize("draw", ["bernoulli", "exact"])
def test_the_share_is_the_one_asked_for(draw) -> None:
    base = nn.Sequential(nn.Linear(400, 500), nn.Linear(500, 300, bias=False))
    options = SpartaConfig(target_modules=["0", "1"], density=0.05, draw=draw, selection_seed=2)
    model = get_peft_model(base, options)
    for delta in deltas_of(model, "default"):
        total, found = delta.places.total, delta.values.numel()
        if draw == "exact":
            assert found == round(0.05 * total)
        else:
            low, high = binom.ppf([1e-4, 1 - 1e-4], total, 0.05)
            assert low <= found <= high and found != round(0.05 * total)


def test_what_is_held_and_saved(tmp_path) -> None:
    """Values alone are parameters and are saved; masks are a tenth of a dense weight's bits."""
    sizes, density = (1000, 800), 0.01
    model = get_peft_model(
        nn.Sequential(nn.Linear(*sizes)), SpartaConfig(target_modules=["0"], density=density)
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    model(torch.ones(2, sizes[0])).sum().backward()
    optimizer = torch.optim.AdamW(trained)
    optimizer.step()
    count = sum(p.numel() for p in trained)
    assert count == pytest.approx(density * 800_800, rel=0.1)
    masks = {n: b for n, b in model.named_buffers() if "delta_" in n}
    assert sum(b.nbytes for b in masks.values()) <= 1.5 * count
    assert all(p.grad.shape == p.shape for p in trained)
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert 4 * count <= file.stat().st_size <= 4 * count + 600
    dense = [t for m in model.modules() for t in vars(m).values() if torch.is_tensor(t)]
    assert not dense  # nothing is kept beside parameters and buffers


def test_merge_unmerge_disable(family) -> None:
    model = adapt(family).eval()
    randomize(model)
    expected = logits(model, family)
    if not family.labels:
        with model.disable_adapter():
            assert torch.equal(logits(model, family), logits(family.model(), family))
    model.merge_adapter()
    torch.testing.assert_close(logits(model, family), expected)
    model.unmerge_adapter()
    assert torch.equal(logits(model, family), expected)
    tensors = adapted(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged, family), expected)
    for name, tensor in tensors.items():
        path, _, kind = name.rpartition(".")
        found = getattr(merged.get_submodule(path), kind)
        assert torch.equal(found, tensor if found.shape == tensor.shape else tensor.t())


def test_gradients_in_double_precision(roberta) -> None:
    """Of each value, by a central difference of the loss."""
    model = adapt(roberta, roberta.model().double(), target_modules=None).eval()
    randomize(model)
    model(**roberta.batch()).loss.backward()
    for delta in deltas_of(model, "default"):
        values, step, losses = delta.values, 1e-5, []
        for sign in (1, -1):
            values.data[0] += sign * step
            losses.append(model(**roberta.batch()).loss.item())
            values.data[0] -= sign * step
        difference = (losses[0] - losses[1]) / (2 * step)
        assert float(values.grad[0]) == pytest.approx(difference, rel=1e-4, abs=1e-8)


def test_half_precision(roberta) -> None:
    for autocast, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        config = SpartaConfig(task_type="SEQ_CLS", density=0.2)
        model = get_peft_model(roberta.model().bfloat16(), config, autocast_adapter_dtype=autocast)
        assert {d.values.dtype for d in deltas_of(model, "default")} == {dtype}
        optimizer = adamw(model)
        train(model, roberta, optimizer, 2)
        assert all(d.values.isfinite().all() for d in deltas_of(model, "default"))
        assert logits(model, roberta).dtype == torch.bfloat16


def test_meta_device_draws_no_entries_and_has_the_true_sizes(roberta, monkeypatch) -> None:
    real = adapt(roberta, target_modules=None)

    def refuse(*_: object) -> None:
        raise AssertionError("entries were drawn on the meta device")

    monkeypatch.setattr("lorasp.adapters.sparta.draw_places", refuse)
    with torch.device("meta"):
        model = adapt(roberta, roberta.build(), target_modules=None)
    shapes = {n: p.shape for n, p in real.named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    buffers = {n: (b.shape, b.dtype) for n, b in real.named_buffers() if "delta_" in n}
    assert {n: (b.shape, b.dtype) for n, b in model.named_buffers() if "delta_" in n} == buffers
    assert all(p.is_meta for p in model.parameters())


def test_a_tensor_of_which_nothing_is_drawn(roberta, tmp_path) -> None:
    model = adapt(roberta, target_modules=None, density=1e-4).eval()
    assert len(deltas_of(model, "default")) < 8
    model(**roberta.batch()).loss.backward()
    expected = logits(model, roberta)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(roberta.model(), tmp_path).eval()
    assert torch.equal(logits(loaded, roberta), expected)
    torch.testing.assert_close(logits(model.merge_and_unload(), roberta), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity is 1\.0; allowed: a number in \(0, 1\)"),
        ({"density": 0}, r"density is 0; allowed: a number in \(0, 1\]"),
        ({"draw": "uniform"}, "draw is 'uniform'; allowed: bernoulli, exact"),
        ({"selection_seed": 1.5}, r"selection_seed is 1\.5; allowed: an integer"),
    ],
)
def test_refused_settings(options, message) -> None:
    with pytest.raises(UsageError, match=message):
        SpartaConfig(**options)
