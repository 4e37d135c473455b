"""Every method of the table on T5's shape, in a file of its own for another process to run."""

import pytest
from test_conformance import TABLE, failures


@pytest.mark.parametrize("name", TABLE)
def test_it_passes(name: str) -> None:
    assert failures(name, "seq2seq") == []
