"""Import torch once and fork for every job: `lorasp serve -- snakemake --cores all …`.

A short run spends more time on importing torch, transformers and PEFT than on its work. `serve`
imports them, listens on a socket and runs the given command with LORASP_SERVER in its environment.
Every `lorasp train …` under it hands its arguments, folder, environment and open files to the
server, which forks a process that has everything imported and does the work exactly as if it were
started alone. Without a server the same commands simply run by themselves.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lorasp import gpus

VARIABLE = "LORASP_SERVER"
PREFIX = "LORASP_SERVER_PREFIX"  # the environment of the server's Python
TIMES = "LORASP_TIMES"  # a file that each job adds a line to: its command and seconds of work
PRELOADED = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "lorasp.training.train",
    "lorasp.evaluation.evaluate",
    "lorasp.evaluation.glue",
    "lorasp.evaluation.mmlu",
    "lorasp.evaluation.translation",
    "lorasp.report",
    "lorasp.profiling.measure",
    "lorasp.profiling.simulate",
    "lorasp.planning.plan",
    "lorasp.data.prepare",
    "lorasp.commands",
    # what transformers, PEFT and the hub's client import at the first use
    "transformers.models.roberta.modeling_roberta",
    "transformers.models.t5.modeling_t5",
    "transformers.models.llama.modeling_llama",
    "jinja2",
)
GRACE = 60.0  # seconds that a job gets to end after its caller
Main = Callable[[list[str]], int]


def offline() -> None:
    """After `prepare` nothing touches the network; read by the hub's clients when imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"


def use_this_python() -> None:
    """Put the running interpreter's folder first in PATH: `python` in a rule is then this one.

    So `.venv/bin/snakemake` works without an activated environment.
    """
    folder = str(Path(sys.executable).parent)
    if os.environ.get("PATH", "").split(os.pathsep)[0] != folder:
        os.environ["PATH"] = os.pathsep.join([folder, os.environ.get("PATH", "")])


def serve(command: list[str], main: Main) -> int:
    """Run `command` with a server at its side; its exit code."""
    with tempfile.TemporaryDirectory(prefix="lorasp-") as folder:
        address = str(Path(folder, "socket"))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(address)
        listener.listen(64)
        server = os.fork()
        if server == 0:
            try:
                _listen(listener, main)
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(1)  # neither the server nor a job may leave this block and its folder
        listener.close()
        try:
            theirs = {**os.environ, VARIABLE: address, PREFIX: sys.prefix}
            return run_to_its_end(command, theirs)
        except FileNotFoundError:
            print(f"error: there is no command {command[0]!r}", file=sys.stderr)
            return 2
        finally:
            os.kill(server, signal.SIGTERM)
            os.waitpid(server, 0)


def run_to_its_end(command: list[str], environment: dict[str, str]) -> int:
    """Run a command; its exit code. It is awaited whatever ends us.

    SIGTERM goes on to it and to all that it has started: snakemake alone would wait for its jobs,
    which are to save what they have. Ctrl-C at a terminal reaches them without us.
    """
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait()
        except SystemExit:
            import psutil

            begun = psutil.Process(process.pid)
            for each in [*begun.children(recursive=True), begun]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    each.terminate()
            process.wait()
            raise
        except KeyboardInterrupt:
            process.wait()
            raise


def _listen(listener: socket.socket, main: Main) -> None:
    """The server process: import, then fork once for each connection while its parent lives."""
    parent = os.getppid()
    offline()
    # an import starts CUDA, which no fork survives: jobs on a GPU run by themselves
    os.environ[gpus.VISIBLE] = ""
    os.setpgrp()  # an interrupt at the terminal is for the command; we end after it
    for name in PRELOADED:
        importlib.import_module(name)
    _warm_up()
    # or each job's first collection would look through, and so copy, all that has been imported
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children report by themselves
    listener.settimeout(1.0)
    while os.getppid() == parent:  # which ends us, unless it was killed
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _child(connection, main)
        connection.close()


def _child(connection: socket.socket, main: Main) -> None:
    """One job: take over the caller's files, folder and environment, work, answer its exit code."""
    request, files = _receive(connection)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ[gpus.VISIBLE] = ""
    _set_threads()
    # when the caller is killed its end of the socket closes, and so must we
    threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
    code = 1
    with contextlib.suppress(KeyboardInterrupt), _timed(request["arguments"][0]):
        code = main(request["arguments"])
    # the caller leaves as soon as it has the answer, which is no reason to be interrupted
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        connection.sendall(bytes([code]))
    os._exit(code)


@contextlib.contextmanager
def _timed(command: str) -> Iterator[None]:
    """Tell what the block took to the file that TIMES names, where it names one.

    A line is JSON: the command, seconds of wall time, and of CPU time, user and system, in the
    process and its children.
    """
    before = os.times()
    yield
    if file := os.environ.get(TIMES):
        user, system, children, theirs, wall = (
            after - was for after, was in zip(os.times(), before, strict=True)
        )
        spent = {"wall": wall, "user": user + children, "system": system + theirs}
        with open(file, "a") as times:
            times.write(json.dumps({"command": command, **spent}) + "\n")


def _warm_up() -> None:
    """What transformers works out at the first model that it loads, for all its architectures."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("roberta")


def _set_threads() -> None:
    """torch read OMP_NUM_THREADS when it was imported; each job has its own."""
    import torch

    threads = os.environ.get("OMP_NUM_THREADS")
    if threads:
        torch.set_num_threads(int(threads))


def _die_with(connection: socket.socket) -> None:
    if not connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)  # an exception, or in training a checkpoint first
        time.sleep(GRACE)
        os._exit(1)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    descriptors = array.array("i")
    message, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(3 * descriptors.itemsize))
    for _, _, content in ancillary:
        descriptors.frombytes(content)
    while not message.endswith(b"\n"):
        part = connection.recv(1 << 16)
        if not part:
            os._exit(1)  # the caller has gone
        message += part
    return json.loads(message), list(descriptors)


def forward(arguments: list[str]) -> int | None:
    """Have a server run this command; its exit code, or None where no server listens.

    Nor does one serve a Python of another environment, in a container or in one that conda made:
    the work would be done with the server's packages.
    """
    address = os.environ.get(VARIABLE)
    if address is None or os.environ.get(PREFIX) != sys.prefix:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
    except OSError:
        return None
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE}
    request = {"arguments": arguments, "folder": os.getcwd(), "environment": environment}
    descriptors = array.array("i", [0, 1, 2])
    payload = json.dumps(request).encode() + b"\n"
    sent = connection.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    connection.sendall(payload[sent:])
    try:
        answer = connection.recv(1)
    except SystemExit:  # we are told to end: so is the job by this, and we with it
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(1)
    return answer[0] if answer else 1
