"""What all tests share."""

import signal


def pytest_configure() -> None:
    """A shell that starts the tests in the background has SIGINT ignored, also by what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
