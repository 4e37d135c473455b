"""The tasks as data: one YAML file each, read by every stage that needs the same fact."""

import functools
from pathlib import Path
from typing import Any

from lorasp.errors import UsageError
from lorasp.results import first_error, read_yaml

FOLDER = Path(__file__).parent


@functools.cache
def load_task(name: str) -> dict[str, Any]:
    """The definition of a task: columns, labels, splits, metrics, place in the paper's tables.

    `name` is a file of this folder without `.yaml`, or the path of a YAML file of your own.
    Raises UsageError where there is no such task or its file breaks the schema.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise UsageError(f"task definition {name!r} is unknown; known are {known}, or a .yaml file")
    definition = read_yaml(path)
    if problem := first_error(definition, "task"):
        raise UsageError(f"{path}: {problem}")
    return definition
