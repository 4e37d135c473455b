"""The steps themselves: against a plain loop, in micro-batches, and with the best epoch kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import TASKS, Recorder, Run, adapter_of, weights
from sklearn.metrics import accuracy_score

from lorasp.adapters.registry import apply_method, restore_model
from lorasp.config import Cell, Config, decisive, resolve
from lorasp.data.load import load_split
from lorasp.errors import UsageError
from lorasp.models import load_model
from lorasp.results import read_json
from lorasp.training import best_epoch, train


def plain_loop(
    model: torch.nn.Module, batches: list[dict[str, torch.Tensor]], rate: float, decay: float
) -> None:
    """AdamW with a linear schedule, a quarter of the steps to warm up, gradients clipped to 1.

    Written from Loshchilov and Hutter, Algorithm 2; biases and layer norms are not decayed.
    """
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    first = {n: torch.zeros_like(p) for n, p in parameters.items()}
    second = {n: torch.zeros_like(p) for n, p in parameters.items()}
    total, warm = len(batches), -(-len(batches) // 4)
    model.train()
    for step, batch in enumerate(batches, start=1):
        model.zero_grad()
        model(**batch).loss.backward()
        gradients = {n: p.grad for n, p in parameters.items() if p.grad is not None}
        norm = torch.sqrt(sum(g.square().sum() for g in gradients.values()))
        clip = torch.clamp(1 / (norm + 1e-6), max=1.0)
        done = step - 1
        factor = done / warm if done < warm else (total - done) / (total - warm)
        with torch.no_grad():
            for name, gradient in gradients.items():
                g = gradient * clip
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                m, v = first[name] / (1 - 0.9**step), second[name] / (1 - 0.999**step)
                kept = "bias" in name or "norm" in name.lower()
                parameters[name].mul_(1 - (0.0 if kept else factor * rate * decay))
                parameters[name].sub_(factor * rate * m / (v.sqrt() + 1e-8))


def fresh(config: Config, model: str, method: str, **settings: Any) -> torch.nn.Module:
    """The model as it is before its first step."""
    resolved = resolve(config, Cell("smoke", model, TASKS[model], method, "quick", 0), settings)
    return apply_method(load_model(resolved, Path("data/smoke/models", model)), resolved)


@pytest.mark.parametrize(
    ("model", "method"),
    [("roberta-tiny", "lora-sp"), ("roberta-tiny", "ft"), ("llama-tiny", "lora-sp-init")],
)
def test_a_plain_loop_ends_at_the_same_weights(
    config: Config, run: Run, recorder: Recorder, model: str, method: str
) -> None:
    run(method, model, epochs=2, learning_rate=1e-3)
    reference = fresh(config, model, method)
    start = weights(reference)
    plain_loop(reference, recorder.batches, rate=1e-3, decay=0.1)
    for name, expected in weights(reference).items():
        torch.testing.assert_close(recorder.epochs[-1][name], expected, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(start[name], value) for name, value in weights(reference).items())


def test_each_epoch_reads_every_row_once(run: Run, recorder: Recorder) -> None:
    run("lora", epochs=2)
    rows = load_split(Path("data/smoke/tokens/roberta-tiny/mrpc"), "train")
    pad = 1
    seen = [
        tuple(ids[ids != pad].tolist()) for batch in recorder.batches for ids in batch["input_ids"]
    ]
    texts = sorted(tuple(ids) for ids in rows["input_ids"])
    assert sorted(seen[:64]) == texts and sorted(seen[64:]) == texts
    assert seen[:64] != seen[64:]


def test_batches_are_grouped_by_length_and_padded_to_their_longest(
    run: Run, recorder: Recorder
) -> None:
    run("lora", batch_size=8)
    widths = [batch["input_ids"].shape[1] for batch in recorder.batches]
    longest = [int(batch["attention_mask"].sum(1).max()) for batch in recorder.batches]
    assert widths == longest and len(set(widths)) > 1
    lengths = np.array(load_split(Path("data/smoke/tokens/roberta-tiny/mrpc"), "train")["length"])
    orders = (np.random.default_rng(seed).permutation(64) for seed in range(20))
    random = [8 * lengths[order].reshape(8, 8).max(axis=1).sum() for order in orders]
    assert 8 * sum(widths) < min(random)


@pytest.mark.parametrize(
    ("model", "whole", "part"),
    [
        ("roberta-tiny", 16, 4),
        ("roberta-tiny", 48, 12),  # of 64 rows: the last batch is four micro-batches short
        ("llama-tiny", 16, 4),
        ("t5-tiny", 16, 4),
    ],
)
def test_micro_batches_make_the_same_steps(
    run: Run, recorder: Recorder, model: str, whole: int, part: int
) -> None:
    """Answers differ in length: a mean of means over micro-batches would be another loss."""
    recipe = {"learning_rate": 1e-3, "batch_size": whole}
    one, a = run("lora-sp", model, out="whole", **recipe)
    count = len(recorder.batches)
    other, b = run("lora-sp", model, out="split", **recipe, micro_batch_size=part)
    assert len(recorder.batches) > 3 * count
    assert b["steps"] == a["steps"] and b["examples"] == a["examples"]
    expected = [entry["loss"] for entry in a["loss"]]
    assert [entry["loss"] for entry in b["loss"]] == pytest.approx(expected, abs=2e-6)
    split = adapter_of(other)
    for name, tensor in adapter_of(one).items():
        torch.testing.assert_close(tensor, split[name], atol=2e-5, rtol=1e-4)


def test_a_planned_micro_batch_is_the_same_run(config: Config, project: Path) -> None:
    """As `--micro-batch`: recorded, and no reason to train or evaluate again."""
    cell = Cell("smoke", "roberta-tiny", "mrpc", "lora-sp", "quick", 0)
    losses = []
    for size in (None, 4):
        path = train.train_cell(config, cell, folder=project / str(size), micro_batch=size)
        record = read_json(path, "train")
        assert record["config"]["recipe"].get("micro_batch_size") == size
        assert decisive("train", record["config"]) == decisive("train", resolve(config, cell))
        losses.append(record["final_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_micro_batches_must_divide_the_batch(run: Run) -> None:
    with pytest.raises(UsageError, match="micro_batch_size 5 does not divide batch_size 16"):
        run("lora", micro_batch_size=5)


@pytest.mark.parametrize("method", ["lora-sp", "lora", "ft"])
def test_select_best_keeps_the_epoch_that_scored_best(
    run: Run, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    scores = iter([10.0, 30.0, 20.0])
    scored = lambda found: {"headline": next(scores)}  # noqa: E731
    monkeypatch.setattr(best_epoch, "headline", lambda task: scored)
    folder, record = run(method, epochs=3, select="best")
    assert record["best"] == {"epoch": 2.0, "value": 30.0}
    saved = adapter_of(folder)
    assert len(saved) == len(recorder.epochs[1])
    for name, value in recorder.epochs[1].items():
        short = name.replace(".default", "").replace("modules_to_save.", "")
        assert torch.equal(saved[short], value)
    assert any(
        not torch.equal(*pair)
        for pair in zip(*(e.values() for e in recorder.epochs[1:]), strict=True)
    )
    assert {file.name for file in folder.iterdir()} == {"adapter", "train.json"}


def test_the_best_score_is_that_of_the_saved_weights(config: Config, run: Run) -> None:
    folder, record = run("lora-sp", epochs=3, select="best")
    resolved = record["config"]
    model = restore_model(resolved, Path("data/smoke/models/roberta-tiny"), folder)
    rows = load_split(Path("data/smoke/tokens/roberta-tiny/mrpc"), "validation")
    with torch.no_grad():
        found = [
            model(input_ids=torch.tensor([ids])).logits.argmax().item() for ids in rows["input_ids"]
        ]
    assert record["best"]["value"] == pytest.approx(100 * accuracy_score(rows["labels"], found))


def test_select_best_of_a_translation_is_the_least_loss(run: Run, recorder: Recorder) -> None:
    folder, record = run("lora", "t5-tiny", epochs=2, select="best", learning_rate=1e-3)
    assert record["best"]["epoch"] in (1.0, 2.0)
    rows = load_split(Path("data/smoke/tokens/t5-tiny/wmt16-en-ro"), "validation")
    model = restore_model(record["config"], Path("data/smoke/models/t5-tiny"), folder)
    with torch.no_grad():
        alone = [
            (
                model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item(),
                labels,
            )
            for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True)
        ]
    # one batch holds all 16 rows, so its mean is over tokens
    mean = np.average([loss for loss, _ in alone], weights=[len(labels) for _, labels in alone])
    assert record["best"]["value"] == pytest.approx(mean, abs=1e-4)


def test_select_best_needs_a_validation_split(run: Run) -> None:
    with pytest.raises(UsageError, match=r"alpaca-mmlu has no validation split.* select: last"):
        run("lora", "llama-tiny", select="best")


@pytest.mark.parametrize("model", ["roberta-tiny", "t5-tiny"])
def test_recomputation_changes_no_number(run: Run, model: str) -> None:
    runs = {
        policy: run("lora-sp", model, out=policy, settings={"recompute": policy}, max_steps=3)
        for policy in ("none", "full", "selective")
    }
    folder, record = runs.pop("none")
    for other, found in runs.values():
        losses = [entry["loss"] for entry in record["loss"]]
        assert [entry["loss"] for entry in found["loss"]] == pytest.approx(losses, abs=1e-6)
        one, two = adapter_of(folder), adapter_of(other)
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=1e-6, rtol=1e-5)
