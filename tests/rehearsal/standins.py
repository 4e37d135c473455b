"""This process's clients turned to the stand-in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _detect_agent

from lorasp.rehearsal.hub import Hub, Repository, serve

ROOT = Path(__file__).parents[2]
Repositories = dict[tuple[str, str], Repository]


@contextlib.contextmanager
def turned_to(published: Repositories) -> Iterator[Hub]:
    """Serve the repositories, and turn this process's clients to them."""
    with serve(dict(published)) as hub, pytest.MonkeyPatch.context() as monkeypatch:
        for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(variable, raising=False)
        for variable in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(variable, "127.0.0.1,localhost")
        # once a process the client asks for a list of tools by whose name it would call itself
        monkeypatch.setattr(_detect_agent, "_registry", _detect_agent._EMPTY_REGISTRY)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
