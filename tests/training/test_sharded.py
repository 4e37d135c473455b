"""Runs of two processes, on gloo: DDP for encoders and quantised weights, FSDP2 for the others."""

import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from runs import TASKS, adapter_of

from lorasp.adapters.registry import apply_method, restore_model
from lorasp.config import Cell, Config, resolve
from lorasp.errors import UsageError, WorkError
from lorasp.models import load_model
from lorasp.processes import Failed
from lorasp.results import read_json
from lorasp.training import checkpoints, history, sharded, train
from lorasp.training.launch import train_on_several
from lorasp.training.train import train_cell

Start = Callable[..., tuple[Path, dict[str, Any]]]
MODELS = Path("data/smoke/models")


@pytest.fixture
def start(config: Config, project: Path) -> Start:
    """Train a tiny model with a number of processes; the folder of the run and its train.json."""

    def begin(
        processes: int, method: str, model: str, micro: int = 6, out: str = "", **recipe: Any
    ) -> tuple[Path, dict[str, Any]]:
        config["recipes"]["quick"] |= {"batch_size": 24, "epochs": 2} | recipe
        folder = project / (out or f"{processes}-processes")
        arguments = config, Cell("smoke", model, TASKS[model], method, "quick", 0), {}, folder
        if processes > 1:
            path = train_on_several(processes, *arguments, micro)
        else:
            path = train_cell(*arguments, 2 * micro)
        return folder, read_json(path, "train")

    return begin


def losses(record: dict[str, Any]) -> list[float]:
    return [entry["loss"] for entry in record["loss"]]


@pytest.mark.parametrize(
    ("model", "method", "micro", "select"),
    [
        ("roberta-tiny", "lora-sp", 2, "best"),
        ("roberta-tiny", "ft", 12, "last"),
        ("llama-tiny", "ft", 1, "last"),
        ("llama-tiny", "lora-sp", 4, "last"),
        ("t5-tiny", "ft", 6, "best"),
        ("roberta-tiny", "lora-plus", 6, "best"),
        ("llama-tiny", "lora-plus", 6, "last"),
        ("t5-tiny", "lora-mini", 6, "last"),
    ],
)
def test_two_processes_train_as_one(
    start: Start, config: Config, model: str, method: str, micro: int, select: str
) -> None:
    """Batches of 24 rows, of which 16 or none are left for an epoch's last one."""
    folder, alone = start(1, method, model, micro, select=select, max_steps=5)
    shared_folder, shared = start(2, method, model, micro, select=select, max_steps=5)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)
    for key in ("steps", "examples", "tokens", "parameters", "adapter_bytes"):
        assert shared[key] == alone[key], key
    assert (shared["processes"], alone["processes"]) == (2, 1)
    assert shared["best"] == (alone["best"] and pytest.approx(alone["best"], rel=1e-5))
    assert {file.name for file in shared_folder.iterdir()} == {"adapter", "train.json"}
    files = [
        sorted(file.name for file in (f / "adapter").iterdir()) for f in (folder, shared_folder)
    ]
    assert files[0] == files[1]
    expected, found = adapter_of(folder), adapter_of(shared_folder)
    assert found.keys() == expected.keys()
    resolved = resolve(config, Cell(**shared["cell"]))
    # Adam moves an entry of almost no gradient by what rounding makes of it times the rate, and
    # LoRA+ has B's rate many times as high
    fold = resolved["method"]["settings"].get("optimizer", {}).get("loraplus_lr_ratio", 1)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5 * fold)
    restored = restore_model(resolved, MODELS / model, shared_folder)  # on one device
    assert not any("DTensor" in type(weight.data).__name__ for weight in restored.parameters())


@pytest.mark.parametrize("model", ["roberta-tiny", "llama-tiny"])
def test_selected_entries_alone_move(start: Start, config: Config, model: str) -> None:
    """Under weight decay, with unselected entries frozen at values that are not zero."""
    folder, record = start(2, "lora-sp-init", model, max_steps=3)
    resolved = resolve(config, Cell(**record["cell"]))
    after: Any = restore_model(resolved, MODELS / model, folder)
    before: Any = apply_method(load_model(resolved, MODELS / model), resolved)
    was = {name: m for name, m in before.named_modules() if hasattr(m, "mask")}
    moved = frozen = 0
    for name, matrix in after.named_modules():
        if name in was:
            same = matrix.weight == was[name].weight
            assert same[~matrix.mask].all()
            frozen += int((matrix.weight[~matrix.mask] != 0).sum())
            moved += int((~same[matrix.mask]).sum())
    assert moved > 200 and frozen > 200
    assert torch.equal(after.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_mixed_precision_keeps_fp32_weights(start: Start, config: Config) -> None:
    config["runtime"]["precision"] = "bf16"
    _, alone = start(1, "ft", "llama-tiny", max_steps=4)
    shared_folder, shared = start(2, "ft", "llama-tiny", max_steps=4)
    assert losses(shared) == pytest.approx(losses(alone), rel=0.01)
    weights = adapter_of(shared_folder)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert any((tensor != tensor.bfloat16()).any() for tensor in weights.values())


def test_quantised_weights_are_held_by_each(start: Start, config: Config) -> None:
    config["methods"]["lora-sp"]["settings"]["quantize"] = "nf4"
    _, alone = start(1, "lora-sp", "llama-tiny", max_steps=3)
    _, shared = start(2, "lora-sp", "llama-tiny", max_steps=3)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-3)


def test_recomputation(start: Start, config: Config) -> None:
    config["methods"]["ft"]["settings"] = {"recompute": "selective"}
    _, alone = start(1, "ft", "llama-tiny", max_steps=3)
    _, shared = start(2, "ft", "llama-tiny", max_steps=3)
    assert losses(shared) == pytest.approx(losses(alone), rel=1e-5)


def children() -> set[str]:
    """The numbers of this process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def at_step(
    monkeypatch: pytest.MonkeyPatch, step: int, rank: int, happen: Callable[[Any], None]
) -> None:
    """Have something happen to one process at the beginning of a step."""
    usual = sharded.ShardedTrainer.training_step

    def training_step(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.state.global_step == step and dist.get_rank() == rank:
            happen(self)
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(sharded.ShardedTrainer, "training_step", training_step)


@pytest.mark.parametrize(("model", "method"), [("llama-tiny", "ft"), ("roberta-tiny", "lora-sp")])
def test_a_killed_run_goes_on(
    start: Start, config: Config, monkeypatch: pytest.MonkeyPatch, model: str, method: str
) -> None:
    config["runtime"]["checkpoint_minutes"] = 1e-9
    folder, whole = start(2, method, model, out="whole", select="last")
    with monkeypatch.context() as patch:
        at_step(patch, 3, 1, lambda _: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(WorkError, match="process 1 of 2 was killed by signal 9; is the host's"):
            start(2, method, model, out="killed")
    again_folder, again = start(2, method, model, out="killed")
    assert again["resumed"] == [3] and again["steps"] == whole["steps"]
    assert losses(again) == pytest.approx(losses(whole), rel=1e-6)
    for name, tensor in adapter_of(folder).items():
        torch.testing.assert_close(adapter_of(again_folder)[name], tensor, rtol=1e-6, atol=1e-7)


def test_sigterm_is_passed_on_and_a_checkpoint_is_taken(
    start: Start, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config["runtime"]["checkpoint_minutes"] = 1000.0
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with monkeypatch.context() as patch:
            at_step(patch, 1, 0, lambda _: os.kill(os.getppid(), signal.SIGTERM))
            with pytest.raises(SystemExit) as ended:
                start(2, "lora", "llama-tiny", out="run", epochs=8)
        assert ended.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    _, record = start(2, "lora", "llama-tiny", out="run", epochs=8)
    (step,) = record["resumed"]
    assert 2 <= step < record["steps"]


def test_ctrl_c_is_passed_on(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal it reaches all of them, and each has a handler of its own."""

    def press(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getppid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 1, 0, press)
        with pytest.raises(SystemExit) as ended:
            start(2, "lora", "llama-tiny", 12, out="run", epochs=8)
    assert ended.value.code == 130
    _, record = start(2, "lora", "llama-tiny", 12, out="run", epochs=8)
    (step,) = record["resumed"]
    assert 2 <= step < record["steps"]


def test_another_number_of_processes_throws_no_work_away(
    start: Start, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each process has computed the sha256 of its own part of the checkpoint."""
    config["runtime"]["checkpoint_minutes"] = 1e-9
    usual = sharded.sha256_of

    def watched(file: Path) -> str:
        assert file.name.startswith(f"__{dist.get_rank()}_")
        return usual(file)

    def first(file: Path) -> str:
        assert file.suffix != ".distcp"
        return usual(file)

    def die(trainer: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(sharded, "sha256_of", watched)
        patch.setattr(checkpoints, "sha256_of", first)
        at_step(patch, 3, 0, die)
        with pytest.raises(WorkError, match="killed by signal 9"):
            start(2, "ft", "llama-tiny", out="run")
    with pytest.raises(UsageError) as raised:
        start(1, "ft", "llama-tiny", out="run")
    assert (
        "processes (processes: 2) than this run has (processes: 1): use --processes 2, or"
        in str(raised.value)
    )
    _, record = start(2, "ft", "llama-tiny", out="run")
    assert record["resumed"] == [3]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_refuses_one_process(
    start: Start, config: Config, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    config["runtime"]["checkpoint_minutes"] = 1e-9

    def shrink(_: Any) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    with monkeypatch.context() as patch:
        at_step(patch, 1, rank, shrink)
        with pytest.raises(WorkError, match=r"^cannot write .*/checkpoint-2 \(.*: make room and"):
            start(2, "ft", "llama-tiny", out="run")
    _, record = start(2, "ft", "llama-tiny", out="run")
    assert record["resumed"] == [1]


def test_the_peak_is_that_of_the_fullest_device(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "peak_memory", lambda device: 1000 + dist.get_rank())
    _, record = start(2, "lora", "llama-tiny", max_steps=1)
    assert record["peak_memory_bytes"] == 1001


def test_cuda_where_there_is_none(
    start: Start, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config["runtime"]["device"] = "cuda"
    with pytest.raises(UsageError, match=r"runtime\.device is cuda, but torch finds no CUDA dev"):
        start(2, "lora", "llama-tiny")


def test_no_memory_for_the_model(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to\nallocate 2 GiB")

    monkeypatch.setattr(train, "load_model", refuse)
    with pytest.raises(WorkError, match=r"^CUDA out of memory\. Tried to allocate 2 GiB$"):
        start(2, "lora", "llama-tiny")


def test_memory_that_runs_out_in_one_process(
    start: Start, config: Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    config["runtime"]["checkpoint_minutes"] = 1e-9

    def happen(trainer: Any) -> None:
        if trainer.args.per_device_train_batch_size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    _, whole = start(2, "lora", "llama-tiny", out="whole", max_steps=3)
    at_step(monkeypatch, 1, 1, happen)
    _, record = start(2, "lora", "llama-tiny", out="run", max_steps=3)
    assert record["micro_batch"] == {"asked": 6, "used": 3, "halved": [2]}
    assert record["resumed"] == []
    told = capfd.readouterr().err
    assert "with 3 sequences at a time in place of 6; the batch stays 24" in told
    assert "going on from step 1" in told
    assert losses(record) == pytest.approx(losses(whole), rel=1e-5)


def test_errors_of_one_process_end_all(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()

    def refuse(_: Any) -> None:
        raise UsageError("nothing goes")

    def fail(_: Any) -> None:
        raise ZeroDivisionError("by accident")

    with monkeypatch.context() as patch:
        at_step(patch, 1, 1, refuse)
        with pytest.raises(UsageError, match=r"^nothing goes$"):
            start(2, "lora", "llama-tiny")
    with monkeypatch.context() as patch:
        at_step(patch, 1, 0, fail)
        with pytest.raises(Failed, match="ZeroDivisionError: by accident"):
            start(2, "lora", "llama-tiny")
    assert children() == before


def test_what_cannot_be_shared_is_refused(start: Start, config: Config) -> None:
    with pytest.raises(
        UsageError, match="micro_batch_size 5 in each of 2 processes does not divide"
    ):
        start(2, "lora", "llama-tiny", micro=5)
    for method in ("dynamic-lora", "adalora"):
        with pytest.raises(UsageError, match=f"method {method} trains in one process: what it mov"):
            start(2, method, "roberta-tiny")
    config["runtime"]["precision"] = "fp16"
    with pytest.raises(UsageError, match=r"runtime\.precision fp16 on several devices"):
        start(2, "lora", "llama-tiny")


def test_a_run_that_diverges(start: Start) -> None:
    folder, record = start(2, "lora", "llama-tiny", learning_rate=1e30, warmup_ratio=0.0)
    assert record["status"] == "diverged" and list((folder / "adapter").iterdir()) == []


def test_weights_of_one_process_that_are_no_numbers(
    start: Start, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def spoil(trainer: Any) -> None:
        weight: Any = next(one for one in trainer.model.parameters() if one.requires_grad)
        weight.data.to_local().view(-1)[0] = math.inf

    at_step(monkeypatch, 2, 1, spoil)
    folder, record = start(2, "ft", "llama-tiny", max_steps=3)
    assert (record["status"], record["diverged_at"]) == ("diverged", 3)
    assert list((folder / "adapter").iterdir()) == []
    assert capfd.readouterr().err.count("weights became inf or nan at step 3") == 1


@given(
    rows=st.integers(1, 60),
    batch=st.integers(1, 6),
    micro=st.integers(1, 3),
    size=st.integers(1, 5),
)
def test_every_row_of_a_step_is_computed_once(rows: int, batch: int, micro: int, size: int) -> None:
    batch, order = batch * micro * size, list(reversed(range(rows)))
    shares = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "size", lambda: size)
        for rank in range(size):
            patch.setattr(dist, "get_rank", lambda rank=rank: rank)
            share = sharded.Shares(order, rows, batch, micro)  # type: ignore[arg-type]
            shares.append(list(share))
            assert len(share) == len(shares[-1])
    assert len({len(share) for share in shares}) == 1  # or one would wait for ever
    assert all(1 <= len(piece) <= micro for share in shares for piece in share)
    accumulation = batch // (micro * size)
    for step, first in enumerate(range(0, rows, batch)):
        pieces = slice(step * accumulation, (step + 1) * accumulation)
        computed = [row for share in shares for piece in share[pieces] for row in piece]
        assert sorted(row for row in computed if row != rows) == sorted(
            order[first : first + batch]
        )
