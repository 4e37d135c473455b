"""Locks that end with their process, however it ends: `with exclusively(path): …`.

They are the kernel's own (flock), on a file that stays where it is: a process killed by `kill -9`
leaves nothing behind that would have to be cleaned up. On network file systems they hold between
machines where the file system passes flock on (NFS since version 4, Lustre with `-o flock`).
"""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
POLL = 0.2  # seconds between two tries


def take(path: Path) -> IO[str] | None:
    """Lock a file without waiting; it is free again when it is closed, or its process ends.

    None where another process holds it; `holder` then says which. On a file system without flock
    nothing is locked, and a line on stderr says so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        print(
            f"warning: {path.parent} cannot be locked ({error.strerror}): start nothing else there",
            file=sys.stderr,
        )
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def holder(path: Path) -> str:
    """Who locked a file: its process and machine."""
    return path.read_text() or "another process"


@contextmanager
def exclusively(path: Path) -> Iterator[None]:
    """Run the block while no other process holds the file; where one does, say so and wait."""
    told = False
    while (file := take(path)) is None:
        if not told:
            print(f"waiting for {holder(path)}, which holds {path}", file=sys.stderr)
            told = True
        time.sleep(POLL)
    with file:
        yield
