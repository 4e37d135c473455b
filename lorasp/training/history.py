"""What a run must remember when it is interrupted, and whose checkpoint a checkpoint is."""

import dataclasses
import json
import resource
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lorasp.config import Config, decisive, stage_code
from lorasp.errors import UsageError, WorkError
from lorasp.results import fingerprint, provenance
from lorasp.training import CODE
from lorasp.training.checkpoints import newest_sound, steps_of

FILE = "history.json"  # of a checkpoint
# What a person does who wants to go on where no more than this is another.
REMEDIES = {"packages": "use the environment as it was", "processes": "use --processes {}"}
DECISIVE_PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")


def identity(resolved: Config, data: dict[str, str], processes: int) -> dict[str, str]:
    """What must be the same for a run to go on from a checkpoint, by what a person calls it."""
    versions = provenance()["versions"]
    return {
        "configuration": fingerprint(decisive("train", resolved)),
        "data": fingerprint(data),
        "code": stage_code(*CODE),
        "packages": ", ".join(f"{name} {versions.get(name)}" for name in DECISIVE_PACKAGES),
        "processes": str(processes),
    }


@dataclasses.dataclass
class History:
    """A run so far, over all its parts; saved with each checkpoint.

    identity: as above.  started: when its first part was.  wall_seconds: of the parts before this
    one.  peak_memory_bytes: of those with the same micro_batch.  micro_batch: sequences computed at
    a time, in this part.  halved: the steps in which memory ran out.  resumed: the steps after
    which it was interrupted and went on.
    """

    identity: dict[str, str]
    started: str
    micro_batch: int | None
    wall_seconds: float = 0.0
    peak_memory_bytes: int = 0
    halved: list[int] = dataclasses.field(default_factory=list)
    resumed: list[int] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.checkpoint: Path | None = None  # to go on from
        self.clock = time.perf_counter()

    def seconds(self) -> float:
        """Wall time of all parts, this one up to now."""
        return self.wall_seconds + time.perf_counter() - self.clock

    def peak_memory(self, device: str) -> int:
        """Bytes, the most of all parts: by the CUDA allocator, or resident in a CPU's memory."""
        return max(self.peak_memory_bytes, peak_memory(device))

    def save(self, folder: Path, device: str) -> None:
        """Write the history into a checkpoint."""
        spent = {"wall_seconds": self.seconds(), "peak_memory_bytes": self.peak_memory(device)}
        (folder / FILE).write_text(json.dumps(dataclasses.asdict(self) | spent))

    def for_retry(self) -> dict[str, Any]:
        """What processes that start once more have to know, and no checkpoint has."""
        names = ("micro_batch", "halved", "resumed", "peak_memory_bytes")
        return {name: getattr(self, name) for name in names}

    def halve(self, step: int, batch_size: int, processes: int = 1) -> None:
        """Compute half as many sequences at a time from now on, after memory ran out in `step`.

        The next micro-batch is the largest that is at most half as large and divides the share that
        each process has of the batch. Raises WorkError where it was one sequence already.
        """
        share = batch_size // processes
        was = self.micro_batch or share
        if was == 1:
            raise WorkError(
                "out of GPU memory with one sequence at a time: set the method's recompute to "
                "selective or full, hold the base weights in bf16 or NF4, or use a larger GPU"
            )
        self.micro_batch = next(n for n in range(was // 2, 0, -1) if share % n == 0)
        self.halved.append(step)
        self.peak_memory_bytes = 0
        print(
            f"out of GPU memory in step {step}: going on with {self.micro_batch} sequences at a "
            f"time in place of {was}; the batch stays {batch_size}",
            file=sys.stderr,
        )


def recall(root: Path, mine: dict[str, str], micro_batch: int | None) -> History:
    """The history of the run whose checkpoints lie in `root`.

    A new one where none of them is sound; where they are of another configuration, data or code,
    which a line on stderr tells, they are removed. Raises UsageError where nothing but the packages
    or the number of processes is another: a result would not be made again for that, so hours of
    work are not thrown away for it. `micro_batch` is the size asked for: a run that has had to
    halve its own stays with no more than that.
    """
    fresh = History(mine, datetime.now(UTC).isoformat(timespec="seconds"), micro_batch)
    folder = newest_sound(root)
    if folder is None:
        return fresh
    found = History(**json.loads((folder / FILE).read_text()))
    other = [name for name, value in mine.items() if found.identity.get(name) != value]
    if other and set(other) <= REMEDIES.keys():
        raise UsageError(_made_elsewhere(folder, found.identity, mine, other))
    if other:
        print(f"{folder} was made with other {', '.join(other)}: starting again", file=sys.stderr)
        shutil.rmtree(root, ignore_errors=True)
        return fresh
    print(f"going on from step {steps_of(folder)}", file=sys.stderr)
    found.checkpoint = folder
    found.resumed.append(steps_of(folder))
    halved = found.micro_batch if found.halved else None
    found.micro_batch = min(halved, micro_batch) if halved and micro_batch else micro_batch
    return found


def _made_elsewhere(
    folder: Path, theirs: dict[str, str], mine: dict[str, str], other: list[str]
) -> str:
    was, now = ("; ".join(f"{name}: {one.get(name)}" for name in other) for one in (theirs, mine))
    remedies = " and ".join(REMEDIES[name].format(theirs.get(name)) for name in other)
    return (
        f"{folder} was made with other {' and '.join(other)} ({was}) than this run has ({now}): "
        f"{remedies}, or remove {folder.parent} to start from the first step"
    )


def peak_memory(device: str) -> int:
    """Bytes: the CUDA allocator's peak, or the peak resident set of this process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
