"""A small project with a method of one's own, to begin from.

lorasp methods new my-method
"""

import keyword
import re
from collections.abc import Iterable
from pathlib import Path
from string import Template

from lorasp.errors import UsageError
from lorasp.results import atomic, schema

METHOD = '''\
"""A method for lorasp: what becomes of the weight of a linear layer."""

import torch
from lorasp import Delta
from torch import nn


class $class_name(Delta):
    """W + M R, of a frozen random R (rank x in) and a trained M (out x rank)."""

    label = "$name"
    trainable_rule = "r out per adapted matrix (M), and the classification head"
    size = "rank"

    def __init__(self, out_features, in_features, generator, rank=8):
        super().__init__(out_features, in_features, generator)
        rows = torch.randn(rank, in_features, generator=generator) / in_features**0.5
        self.register_buffer("rows", rows, persistent=False)
        self.mix = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, weight):
        return weight + self.mix @ self.rows
'''
PROJECT = """\
[build-system]
requires = ["setuptools>=80"]
build-backend = "setuptools.build_meta"

[project]
name = "lorasp-$package"
version = "0.1.0"
description = "The method $name for lorasp."
requires-python = ">=3.11"
dependencies = ["lorasp"]

[project.entry-points."lorasp.methods"]
"$name" = "$module:$class_name"

[tool.setuptools]
py-modules = ["$module"]
"""
TEST = '''\
"""The method goes through the tests that those of lorasp go through."""

import pytest
from lorasp.config import resolve_method
from lorasp.conformance import ARCHITECTURES, check
from lorasp.methods import table


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_conformance(architecture):
    outcomes = check(resolve_method({"methods": table()}, "$name"), architecture)
    assert [one for one in outcomes if one["outcome"] == "failed"] == []
'''
README = """\
# $name

A method for [lorasp](https://arxiv.org/abs/2403.08822). The class in `$module.py` says what becomes
of a weight; PEFT and lorasp do the rest.

In the environment of lorasp:

    pip install --no-build-isolation --no-deps -e .
    lorasp methods check $name     # the tests that every method goes through
    pytest                         # the same tests

`$name` is then a method like any other, in every configuration of lorasp; it is trained where an
experiment names it. Save this in lorasp's folder as `config/mine.yaml`; the settings are the
constructor's arguments after the first three:

```yaml
extends: smoke.yaml
scale: mine
methods:
  $name: {settings: {rank: 4}}
experiments:
  - models: [roberta-tiny]
    tasks: [mrpc]
    methods: [lora, $name]
    recipes: [stated]
    seeds: [0, 1]
profile:
  cells: [{model: roberta-tiny, methods: [lora, $name], batch: 8, length: 32}]
```

There, `lorasp serve -- snakemake --cores all --config scale=mine` trains both, measures a step of
each and writes `reports/mine/report.html`. Say in `label`, `source` (the docstring's first line)
and `trainable_rule` of the class what yours is.
"""
NOT_A_WORD = re.compile(r"[^A-Za-z0-9]+")


def write_project(folder: Path, name: str, taken: Iterable[str]) -> list[Path]:
    """Write a project whose package offers a method, ready for `pip install -e`.

    Args:
        folder: a new one, or an empty one.
        name: of the method.
        taken: the names of methods that there are.

    Returns:
        The files that were written.

    Raises:
        UsageError: the folder holds something, or the name will not do.
    """
    rule = schema("config")["$defs"]["name"]
    module = NOT_A_WORD.sub("_", name).lower()
    if not re.search(rule["pattern"], name):
        raise UsageError(f"the method's name is {name!r}; allowed is {rule['description']}")
    if not module.isidentifier() or keyword.iskeyword(module):
        raise UsageError(
            f"the method's name is {name!r}, and Python has no module {module}; give another: "
            "--name NAME"
        )
    if name in taken:
        raise UsageError(f"there is a method {name} already; give yours another name: --name NAME")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UsageError(f"{folder} holds something already; name a new folder")
    words = {
        "name": name,
        "module": module,
        "package": module.strip("_").replace("_", "-"),
        "class_name": "".join(word.capitalize() for word in module.split("_")),
    }
    files = {
        "pyproject.toml": PROJECT,
        "README.md": README,
        f"{module}.py": METHOD,
        f"test_{module}.py": TEST,
    }
    for file, text in files.items():
        with atomic(folder / file) as temporary:
            temporary.write_text(Template(text).substitute(words))
    return [folder / file for file in files]
