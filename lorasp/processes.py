"""Run one piece of work in several processes of this machine, which end together.

They are forked before torch is imported, so that CUDA starts in each anew. Where torch has been
imported and CUDA has not started, as in a test, they share the import.
"""

import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

from lorasp.errors import UsageError, WorkError, sentence_of

TERMINATED = 128 + signal.SIGTERM  # the exit code of a process that SIGTERM has ended
INTERRUPTED = 128 + signal.SIGINT
ENDING = (signal.SIGTERM, signal.SIGINT)
# Seconds that all get to write a checkpoint after SIGTERM: 150 GB take minutes. A scheduler that
# has less patience kills them itself.
GRACE = 1800.0
LOST = 5.0  # seconds that the others get when one has failed: they may wait for it for ever
LONGEST = 3000  # characters of what went wrong: a pipe takes so much in one piece


class Place(NamedTuple):
    """A process's rank among `size`, and the socket on which rank 0 listens for the others."""

    rank: int
    size: int
    listener: socket.socket


class Again(Exception):
    """Raised in a process to end all and be raised where they were started, with its arguments."""


class Failed(Exception):
    """A process raised what is no sentence for a user: its traceback."""


def run(size: int, work: Callable[[Place], None]) -> None:
    """Call `work` in `size` processes with their places; return when it has returned in all.

    Where it raises in one, all are ended and its UsageError, WorkError or Again is raised here,
    for anything else Failed. SIGTERM and Ctrl-C are passed on, and SystemExit raised once they have
    ended; a second Ctrl-C kills them. They also end when this process is killed.
    """
    reading, writing = os.pipe()
    ranks: dict[int, int] = {}  # by process number
    with socket.create_server(("127.0.0.1", 0)) as listener, os.fdopen(reading, "rb") as told:
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal waits until each process is where it can end as it should.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        for rank in range(size):
            if (pid := os.fork()) == 0:
                os.close(reading)
                _live(Place(rank, size, listener), work, writing)
            ranks[pid] = rank
        os.close(writing)
        grace = LOST
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            failed = _first_failure(ranks)
        except SystemExit:
            grace = GRACE
            raise
        except KeyboardInterrupt:
            grace = GRACE
            raise SystemExit(INTERRUPTED) from None
        finally:
            _end(ranks, grace)
        message = told.read()
    if message:  # of several the first, which is the cause
        raise pickle.loads(message)
    if failed:
        raise WorkError(failed)


def _live(place: Place, work: Callable[[Place], None], writing: int) -> None:
    """The life of one process; never returns, whatever signal comes."""
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
    code = TERMINATED
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        code = _outcome(place, work, writing)
    finally:
        os._exit(code)  # a thread of gloo's now and then keeps the interpreter from ending


def _outcome(place: Place, work: Callable[[Place], None], writing: int) -> int:
    """Do the work and tell the starter how it failed, if it did; the exit code."""
    code = 0
    failure: Exception | None = None
    try:
        work(place)
    except SystemExit as error:
        code = int(error.code or 0)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # by which all end when another has failed
        code, failure = 1, _failure(error)
    if failure is not None:
        os.write(writing, pickle.dumps(failure))
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _failure(error: BaseException) -> Exception:
    """What is raised, where the processes were started, for what one of them raised."""
    if isinstance(error, Again):
        return error
    if isinstance(error, UsageError | WorkError):
        return type(error)(str(error)[:LONGEST])
    if sentence := sentence_of(error):
        return WorkError(sentence[:LONGEST])
    return Failed("".join(traceback.format_exception(error))[-LONGEST:])


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _first_failure(ranks: dict[int, int]) -> str | None:
    """Wait until all have ended well, or one has not: then what is known of it.

    Raises WorkError for one that was killed, of which the others can only tell that it is gone.
    """
    size = len(ranks)
    while ranks:
        for rank, code in sorted(_ended(ranks), key=lambda ended: ended[1]):
            if code in (TERMINATED, INTERRUPTED):
                raise SystemExit(code)
            if code < 0:
                hint = "; is the host's memory too small?" if code == -signal.SIGKILL else ""
                raise WorkError(f"process {rank} of {size} was killed by signal {-code}{hint}")
            if code:
                return f"process {rank} of {size} ended with code {code}"
        time.sleep(0.05)
    return None


def _ended(ranks: dict[int, int]) -> list[tuple[int, int]]:
    """Rank and exit code of those that have ended since, which `ranks` then no longer has."""
    states = [os.waitpid(pid, os.WNOHANG) for pid in ranks]
    return [(ranks.pop(pid), os.waitstatus_to_exitcode(state)) for pid, state in states if pid]


def _end(ranks: dict[int, int], grace: float) -> None:
    """End those that are left: by SIGTERM, after the grace or another Ctrl-C by SIGKILL."""
    hurried: list[int] = []
    before = {  # a second one must not leave them alone
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.SIG_IGN),
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: hurried.append(1)),
    }
    for pid in ranks:
        os.kill(pid, signal.SIGTERM)
    limit = time.monotonic() + grace
    while ranks:
        _ended(ranks)
        if hurried or time.monotonic() > limit:
            for pid in ranks:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    for number, handler in before.items():
        signal.signal(number, handler)
