"""What all tests share."""

import signal


def pytest_configure() -> None:
    """A shell that starts tests in the background has SIGINT ignored by all they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
