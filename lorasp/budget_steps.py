"""The steps of a run that is to take as long as another one."""

import math
from typing import Any

from lorasp.config import Cell, Config, data_folder, pick, resolve_task
from lorasp.results import read_json

Recipe = dict[str, Any]


def stretched(recipe: Recipe, steps: float) -> Recipe:
    """The recipe with so many times its steps."""
    longer = dict(recipe)
    if "epochs" in recipe:
        longer["epochs"] = round(recipe["epochs"] * steps, 6)
    if "max_steps" in recipe:
        longer["max_steps"] = max(1, round(recipe["max_steps"] * steps))
    return longer


def ratio_of(config: Config, run: Cell, reference: str, times: float) -> list[float]:
    """A run's whole steps for each of the reference's, in a list; none where no rows are known."""
    names = {"model": run.model, "task": run.task}
    recipe = config["recipes"][run.recipe]
    other = pick(recipe, **names, method=reference)
    own = stretched(pick(recipe, **names, method=run.method), times)
    rows = token_rows(config, run.model, run.task)
    if not rows and not ("max_steps" in own and "max_steps" in other):
        return []
    return [whole_steps(own, rows) / whole_steps(other, rows)]


def token_rows(config: Config, model: str, task: str) -> int:
    """Rows of a task's training split, as its tokens were prepared; 0 where they are not."""
    manifest = data_folder(config, "tokens", model, task) / "manifest.json"
    if not manifest.is_file():
        return 0
    split = resolve_task(config, task)["train"]
    files = read_json(manifest, "manifest")["files"]
    return sum(file.get("rows", 0) for name, file in files.items() if name.startswith(f"{split}/"))


def whole_steps(recipe: Recipe, rows: int) -> int:
    """The steps that a run takes: each epoch's and then all of them rounded up."""
    epochs = math.ceil(rows / recipe["batch_size"])
    return int(recipe.get("max_steps", math.ceil(epochs * recipe.get("epochs", 0))))
