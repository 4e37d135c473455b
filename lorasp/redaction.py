"""Secrets kept out of what is passed on: the words of pip, of the hub's clients, of tracebacks."""

import functools
import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

NAMES = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY", re.IGNORECASE)
LEAST = 6  # characters: a shorter value would be found in words that have nothing to do with it
# user:password@ of an address, where the password may hold anything: only behind a host that is
# one by its dots is an @ taken for a part of the path
LOGIN = re.compile(r"""(?<=://)(?![\w-]+(?:\.[\w-]+)+(?::\d+)?[/?#])(?:[^\s"'<>]+|[^\s/@]+)(?=@)""")
BASIC = re.compile(r"(?<=\bBasic )(?=\S*[A-Z0-9=])[A-Za-z0-9+/_-]{8,}=*")  # the same, in base64
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def secrets() -> dict[str, str]:
    """The variables of the environment that hold a secret, to judge by their names."""
    return {name: value for name, value in os.environ.items() if NAMES.search(name)}


def redacted(text: str) -> str:
    """The text without logins in addresses, tokens of the hub and secrets of the environment."""
    # the longest first: one secret may begin like another
    for name, value in sorted(secrets().items(), key=lambda pair: -len(pair[1])):
        if len(value) >= LEAST:
            text = text.replace(value, f"<{name}>")
    for pattern, shown in ((LOGIN, "****"), (BASIC, "****"), (HUB_TOKEN, "hf_****")):
        text = pattern.sub(shown, text)
    return text


@functools.cache
def redact_logs() -> None:
    """From now on, let what any library logs in this process pass through `redacted`."""
    import logging  # which a command that only parses does without

    make = logging.getLogRecordFactory()

    def record(*arguments: Any, **named: Any) -> "logging.LogRecord":
        made = make(*arguments, **named)
        try:
            text = made.getMessage()
        except (TypeError, ValueError):  # ill-formed, which its handler tells
            return made
        if (shown := redacted(text)) != text:
            made.msg, made.args = shown, None
        return made

    logging.setLogRecordFactory(record)
