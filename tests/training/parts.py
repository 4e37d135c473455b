"""Parts of a run: processes that are killed, told to end or stopped by the disk, and their sum."""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from runs import adapter_of
from tqdm import tqdm

from lorasp.errors import WorkError

# In what two runs may differ that took the same steps.
OWN = ("started", "finished", "wall_seconds", "peak_memory_bytes", "resumed", "provenance")


def start(part: Callable[[], Any]) -> int:
    """Do `part` in a forked process, which has everything imported; its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)  # the threads of this process are not in its child
        tqdm.set_lock(threading.RLock())  # or it is shared, and one that is killed may hold it
        part()
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except WorkError as error:
        print(f"error: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int) -> int:
    """The exit code of a process, or less than zero: the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def assert_same(one: Path, two: Path) -> None:
    """Two folders hold the same run: every logged number, and every weight, bit by bit."""
    first, second = (
        {key: value for key, value in json.loads((folder / "train.json").read_text()).items()}
        for folder in (one, two)
    )
    assert {k: v for k, v in first.items() if k not in OWN} == {
        k: v for k, v in second.items() if k not in OWN
    }
    weights, others = adapter_of(one), adapter_of(two)
    assert set(weights) == set(others)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert {file.name for file in one.iterdir()} == {file.name for file in two.iterdir()}


def resumed(folder: Path) -> list[int]:
    """The steps after which a finished run went on."""
    steps: list[int] = json.loads((folder / "train.json").read_text())["resumed"]
    return steps
