"""The paper's repositories, a stand-in that serves them, and waits that take no time."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import transformers
from standins import ROOT, Repositories, turned_to

from lorasp.config import Config, load_config
from lorasp.rehearsal.hub import Hub
from lorasp.rehearsal.repositories import repositories


@pytest.fixture(scope="session")
def published() -> Repositories:
    """Every repository of the paper's configuration."""
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    return repositories(load_config(ROOT / "config" / "paper.yaml"))


@pytest.fixture
def hub(published: Repositories) -> Iterator[Hub]:
    """A stand-in that nobody has asked yet; this process has its address and no token."""
    with turned_to(published) as hub:
        yield hub


@pytest.fixture
def rehearse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The rehearsal's configuration; its data lie in the test's own folder, where the test runs."""
    config = load_config(ROOT / "config" / "rehearse.yaml")
    monkeypatch.chdir(tmp_path)
    return config


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a download or the hub's client would have slept, which it does not."""
    asked: list[float] = []
    for place in ("lorasp.data.tries.time", "huggingface_hub.utils._http.time"):
        monkeypatch.setattr(place, _Clock(asked))
    return asked


class _Clock:
    """The module `time`, but for its sleep."""

    def __init__(self, asked: list[float]) -> None:
        self.sleep = asked.append

    def __getattr__(self, name: str) -> object:
        import time

        return getattr(time, name)
