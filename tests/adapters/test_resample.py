"""Selections that are drawn again: what moves in a step, what is saved, what is refused."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lorasp.adapters import LoraSpConfig, protect_unselected, selection_summary
from lorasp.adapters.masks import draw_components, draw_mask
from lorasp.errors import UsageError


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 7))


def adapt(**options) -> PeftModel:
    options = {"resample": "step", "r": 5, "init_lora_weights": False, **options}
    return get_peft_model(net(), LoraSpConfig(target_modules=["0", "2"], **options))


def matrices(model: PeftModel) -> dict[str, nn.Module]:
    layers = {name: model.base_model.model.get_submodule(name) for name in "02"}
    return {f"{n}.{s}": getattr(m, f"lora_{s}")["default"] for n, m in layers.items() for s in "AB"}


@pytest.mark.parametrize("selection", ["element", "rank"])
@pytest.mark.parametrize("unselected", ["zero", "init"])
def test_only_the_selected_entries_of_a_step_move(selection: str, unselected: str) -> None:
    model = adapt(selection=selection, unselected=unselected)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    assert len(protect_unselected(optimizer, model)) == 2
    x = torch.randn(6, 12)
    ever = {name: torch.zeros(m.shape, dtype=torch.bool) for name, m in matrices(model).items()}
    for step in range(6):
        model.base_model.resample_selection(step)
        before = {name: m.values.detach().clone() for name, m in matrices(model).items()}
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        for name, matrix in matrices(model).items():
            if selection == "element":
                mask = draw_mask(matrix.shape, 0.5, 0, name, step)
            else:
                chosen = draw_components(5, 0.5, 0, name[0], step)
                mask = (chosen[:, None] if name.endswith("A") else chosen).expand(matrix.shape)
            moved = (matrix.values != before[name]).view(matrix.shape)
            assert torch.equal(moved, mask)
            values = matrix.values.detach().view(matrix.shape)
            dense = values * mask if unselected == "zero" else values
            assert torch.equal(matrix.weight, dense)
            ever[name] |= moved
    assert all(moved.float().mean() > 0.9 for moved in ever.values())


def test_without_protection_momentum_and_decay_would_move_them() -> None:
    model = adapt()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    handles = protect_unselected(optimizer, model)
    for handle in handles:
        handle.remove()
    before = {name: m.values.detach().clone() for name, m in matrices(model).items()}
    model(torch.randn(6, 12)).square().sum().backward()
    optimizer.step()
    assert all((m.values != before[name]).all() for name, m in matrices(model).items())


def test_the_last_draw_stays_in_force_after_loading(tmp_path) -> None:
    model = adapt()
    x = torch.randn(6, 12)
    first = model(x)
    model.base_model.resample_selection(17)
    last = model(x)
    assert not torch.equal(first, last)
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(net(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(loaded(x), last)
        assert all(int(matrix.draw) == 17 for matrix in matrices(loaded).values())
    other = adapt()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), last)


def test_states_are_those_of_lora_and_are_counted_so() -> None:
    summary = selection_summary(adapt())["default"]
    entries = 5 * (12 + 9 + 9 + 7)
    assert summary["trainable"] == summary["entries"] == entries
    assert abs(summary["selected"] - entries / 2) <= 4 * 0.5
    assert summary["state_bytes"] >= 16 * entries


def test_a_fixed_selection_needs_no_protection_and_cannot_be_redrawn() -> None:
    model = adapt(resample="never")
    optimizer = torch.optim.AdamW(model.parameters())
    assert protect_unselected(optimizer, model) == []
    with pytest.raises(UsageError, match="adapter 'default' keeps its selection"):
        model.base_model.resample_selection(1)
