"""Cut the network off from a command, where the kernel lets an ordinary user do so."""

import functools
import subprocess

import pytest

# A network of its own with nothing in it, not even a loopback that is up; -r: without being root.
COMMANDS = (["unshare", "-rn"], ["unshare", "-n"])


@functools.cache
def offline() -> tuple[str, ...]:
    """What to put before a command; nothing where the kernel or the container forbids it."""
    for command in COMMANDS:
        try:
            if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
                return tuple(command)
        except FileNotFoundError:
            break
    return ()


def require_offline() -> tuple[str, ...]:
    """As `offline`, but skip the test with the reason."""
    if not offline():
        pytest.skip("`unshare -n` is not allowed here, so the network cannot be cut off")
    return offline()
