"""One run on several devices: a process for each, which takes its share of every step's rows.

The weights are shared out too (FSDP2: each process holds a part of each and gathers a layer at a
time), but for small encoders and for quantised weights, which every process holds whole (DDP).
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import check_cuda_p2p_ib_support
from datasets import Dataset, concatenate_datasets
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments
from transformers.trainer_utils import SaveStrategy

from lorasp.config import Config
from lorasp.errors import UsageError
from lorasp.models import device_of
from lorasp.processes import Place
from lorasp.results import sha256_of
from lorasp.training import checkpoints
from lorasp.training.callbacks import Checkpoints
from lorasp.training.trainer import CellTrainer, Order, all_finite, trained_state

Answer = TypeVar("Answer")
FLAT = StateDictOptions(flatten_optimizer_state_dict=True)  # by the names of the weights
SCHEDULER = "scheduler.pt"
SHARDS = (
    "shards"  # of a checkpoint: the trained weights and AdamW's moments, a part by each process
)
# Longer than any process lets the others wait, as while it reads 150 GB of a checkpoint. One that
# has failed is noticed by the process that started them all.
PATIENCE = timedelta(hours=6)


def join(place: Place, device: str) -> None:
    """Make this process one of a run's, with the device of its rank."""
    rank, size = str(place.rank), str(place.size)
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    host, port = place.listener.getsockname()
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port)}
    if device_of({"runtime": {"device": device}}).type == "cuda":
        torch.cuda.set_device(place.rank)
        if not check_cuda_p2p_ib_support():  # cards that NCCL would wait for in vain
            os.environ |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    store = dist.TCPStore(
        host,
        port,
        is_master=place.rank == 0,
        timeout=PATIENCE,
        wait_for_workers=False,
        # bound before the processes were forked, so nobody else can have taken the port
        master_listen_fd=place.listener.fileno() if place.rank == 0 else None,
    )
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=PATIENCE,
    )


def size() -> int:
    """How many processes work on this run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def told(ask: Callable[[], Answer]) -> Answer:
    """What the first process finds, in all of them."""
    if not dist.is_initialized():
        return ask()
    found: list[Any] = [ask() if is_first() else None]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[no-any-return]


def most(number: int) -> int:
    """The largest of what the processes have; all have to call it."""
    if not dist.is_initialized():
        return number
    found = torch.tensor(number)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def parts(resolved: Config) -> int:
    """Into how many parts each weight is cut: as many as processes, or 1 where each holds all."""
    quantize = resolved["method"].get("settings", {}).get("quantize", "none")
    whole = resolved["model"]["architecture"] == "encoder" or quantize != "none"
    if not whole and size() > 1 and resolved["runtime"]["precision"] == "fp16":
        raise UsageError(
            "runtime.precision fp16 on several devices would scale the loss on each by itself; use "
            "bf16 or fp32, or one device"
        )
    return 1 if whole else size()


def gathered(model: Any) -> dict[str, torch.Tensor] | None:
    """All weights of a model that is trained in parts, for the first process to save.

    Every process has to call it, and the others get an empty dictionary. None for a model whose
    trained weights are whole in each.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    if not any(isinstance(weight, DTensor) for weight in trained):
        return None
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state: dict[str, Any] = get_model_state_dict(model, options=whole)
    for tied in model.all_tied_weights_keys:  # each would be a copy by now
        state.pop(tied, None)
    model.config.distributed_config = None  # or `save_pretrained` would gather them once more
    return state


class Shares:
    """The batches of micro-batches that one process computes: lists of rows, by their numbers.

    Every `size`-th row of a step is a process's. All have the same number of micro-batches, as even
    as can be; where a short last step has no row for one, it gets row number `rows`, a blank.
    """

    def __init__(self, order: Order, rows: int, batch: int, micro: int) -> None:
        self.order, self.rows, self.batch, self.micro = order, rows, batch, micro

    def _pieces(self, rows: int) -> int:
        share = -(-rows // size())
        return -(-share // self.micro)

    def __len__(self) -> int:
        steps, rest = divmod(self.rows, self.batch)
        return steps * self._pieces(self.batch) + self._pieces(rest)

    def __iter__(self) -> Iterator[list[int]]:
        order = list(self.order)
        for start in range(0, self.rows, self.batch):
            step = order[start : start + self.batch]
            mine, pieces = step[dist.get_rank() :: size()], self._pieces(len(step))
            for piece in range(pieces):
                cut = slice(len(mine) * piece // pieces, len(mine) * (piece + 1) // pieces)
                yield mine[cut] or [self.rows]


def blank(rows: Dataset) -> Dataset:
    """A row that counts for nothing: one of `rows` with every label masked."""
    row = dict(rows[0])
    row["labels"] = [-100] * len(row["labels"]) if isinstance(row["labels"], list) else -100
    return Dataset.from_list([row], features=rows.features)


class AgreedOrder(Order):
    """The order of an epoch's rows, drawn from the first process's random state in all of them."""

    def __iter__(self) -> Iterator[int]:
        own = torch.get_rng_state()
        first = own.clone()
        dist.broadcast(first, src=0)
        torch.set_rng_state(first)
        rows = super().__iter__()
        if not is_first():
            torch.set_rng_state(own)  # its dropout is not the first one's
        return rows


class ShardedTrainer(CellTrainer):
    """The Trainer of one of several processes: the steps of all are those of a single process."""

    def __init__(self, model: Any, args: TrainingArguments, **others: Any) -> None:
        # the Trainer refuses to save weights in parts, as it cannot save their moments: we do below
        args.save_strategy = SaveStrategy.NO
        super().__init__(model, args, **others)
        if not is_first():  # dropout takes out other entries of other rows
            torch.manual_seed(args.seed + dist.get_rank())

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset
        self.order = AgreedOrder(self._rows_a_step(), lengths=rows["length"][:])
        return self.order

    def _rows_a_step(self) -> int:
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * size()

    def get_train_dataloader(self) -> Any:
        rows: Any = self._remove_unused_columns(self.train_dataset, description="training")  # type: ignore[arg-type]
        micro = self.args.train_batch_size
        shares = Shares(self._get_train_sampler(), len(rows), self._rows_a_step(), micro)
        return DataLoaderShard(
            concatenate_datasets([rows, blank(rows)]),
            device=self.args.device,
            batch_sampler=shares,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if not (inputs["labels"] != -100).any():  # a blank takes part in what all do together
            outputs = model(**inputs)
            loss = (outputs.logits * 0).sum()
            return (loss, outputs) if return_outputs else loss
        computed = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None or self.causal:
            return computed
        # of the gradients the mean over the processes is taken, where their sum is meant
        if return_outputs:
            return computed[0] * size(), computed[1]
        return computed * size()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.mean_loss = self.accelerator.gather(self._tr_loss).mean()
        self.history.peak_memory_bytes = most(self.history.peak_memory(self.args.device.type))
        if is_first():
            super()._save_checkpoint(model, trial)
        else:
            with checkpoints.disk_errors(self.checkpoint()):
                super(CellTrainer, self)._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        dist.barrier()  # the first process has made the folder; the weights follow with the moments

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        dcp.save(self._shards(), checkpoint_id=Path(output_dir, SHARDS))
        if is_first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER))  # type: ignore[union-attr]

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # each reads its own part back: the first one alone would take minutes for 150 GB
        folder = Path(output_dir)
        mine = [*folder.glob(f"{SHARDS}/__{dist.get_rank()}_*")]
        own = {file.relative_to(folder).as_posix(): sha256_of(file) for file in mine}
        found: list[Any] = [None] * size()
        dist.all_gather_object(found, own)
        # every part is written by now, and the first process can seal them
        self.digests = {name: digest for part in found for name, digest in part.items()}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        dcp.load({"weights": self._weights()}, checkpoint_id=Path(resume_from_checkpoint, SHARDS))

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        state = {"moments": self._shards()["moments"]}
        dcp.load(state, checkpoint_id=Path(checkpoint, SHARDS))
        set_optimizer_state_dict(self.model, self._adamw(), state["moments"], options=FLAT)  # type: ignore[arg-type]
        saved = torch.load(Path(checkpoint, SCHEDULER), weights_only=True)
        self.lr_scheduler.load_state_dict(saved)  # type: ignore[union-attr]

    def _weights(self) -> dict[str, torch.Tensor]:
        """What is trained, this process's parts of it: the model's own tensors, to read or fill."""
        model: Any = self.model
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # after an evaluation some are still gathered
        return trained_state(model)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        # an adapter has no weights without decay, and torch saves no group without weights
        groups = optimizer.param_groups
        groups[:] = [group for group in groups if group["params"]]
        return optimizer

    def _adamw(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)  # type: ignore[return-value]

    def _shards(self) -> dict[str, Any]:
        model: Any = self.model
        moments = get_optimizer_state_dict(model, self._adamw(), options=FLAT)
        return {"weights": self._weights(), "moments": moments}

    def is_finite(self) -> bool:
        model: Any = self.model
        trained = (weight.detach() for weight in model.parameters() if weight.requires_grad)
        own = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained)
        return most(int(not all_finite(own))) == 0

    def loop_state(self) -> dict[str, Any]:
        # the losses of this process alone are no mean
        return super().loop_state() | {"loss": self.mean_loss}


class AgreedCheckpoints(Checkpoints):
    """Checkpoints that all processes take after the same step: when the first one's clock says so,
    or when any has been told to stop."""

    agreed = 0  # a signal can come to one of them while they agree: that one is for the next step

    @property
    def code(self) -> int:
        return self.agreed

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        due = is_first() and time.monotonic() - self.saved >= self.seconds
        flags = torch.tensor([self.told, due], dtype=torch.uint8)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        self.agreed = int(flags[0])
        if not is_first():
            self.saved = -math.inf if flags[1] else math.inf
        super().on_step_end(args, state, control, **kwargs)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The others would wait for the rest of this process's step."""

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Likewise."""
