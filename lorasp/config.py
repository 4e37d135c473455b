"""The experiment of one scale: a YAML file, validated, unfolded into cells that a stage resolves.

A cell is one run: (model, task, method, recipe, seed). Everything that a stage needs to know about
it is in the plain dictionary that `resolve` returns, and that dictionary is saved with its results.
"""

import dataclasses
import difflib
import itertools
from pathlib import Path
from typing import Any

from lorasp.claims import claims_file
from lorasp.errors import UsageError, WorkError
from lorasp.methods import METHODS, first_problem, merge, table
from lorasp.plugins import code_digest
from lorasp.results import fingerprint, first_error, read_yaml
from lorasp.tasks import load_task

Config = dict[str, Any]
# What of a method decides its steps; all else of it is for tables and for budgets.
NUMBERS = ("device", "precision", "weights", "tf32", "attention")  # of a runtime, likewise
OF_A_STEP = ("family", "settings", "code", "entry_point", "code_sha256")


@dataclasses.dataclass(frozen=True, order=True)
class Cell:
    """The name of one run; its folder is where every stage finds and leaves its files."""

    scale: str
    model: str
    task: str
    method: str
    recipe: str
    seed: int

    @property
    def folder(self) -> Path:
        parts = (self.scale, self.model, self.task, self.method, self.recipe, f"seed-{self.seed}")
        return Path("results", *parts)

    def __str__(self) -> str:
        return f"{self.model} {self.task} {self.method} {self.recipe} seed-{self.seed}"


def load_config(path: Path) -> Config:
    """Read, complete and validate the configuration of a scale.

    `extends: other.yaml` starts from another file beside this one; the keys given here win, mapping
    by mapping, and beside experiments of its own the other's `sweeps` and `simulated` are left out.
    Methods start from those of `lorasp.methods.table` in the same way. Raises UsageError with the
    key, what was found and what is allowed.
    """
    if not path.is_file():
        raise UsageError(f"there is no configuration {path}; shipped are config/*.yaml")
    config = _with_parents(path)
    own = config.get("methods")
    try:
        config["methods"] = table(own)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if problem := first_error(config, "config"):
        raise UsageError(f"{path}: {first_problem(config['methods'], own) or problem}")
    _check_names(path, config)
    return _with_sweeps(path, config) if config.get("sweeps") else config


def _with_sweeps(path: Path, config: Config) -> Config:
    from lorasp.sweeps import expand  # it needs cells, which are defined here

    try:
        config = expand(config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if problem := first_error(config, "config"):
        raise UsageError(f"{path}: a sweep makes {problem}")
    return config


def _with_parents(path: Path, children: tuple[Path, ...] = ()) -> Config:
    try:
        config = read_yaml(path)
    except WorkError as error:
        raise UsageError(str(error)) from error
    parent = config.pop("extends", None)
    if parent is None:
        return config
    if not isinstance(parent, str) or Path(parent).name != parent:
        raise UsageError(f"{path}: extends is {parent!r}; allowed is the name of a file beside it")
    if path in children:
        raise UsageError(f"{path}: extends {parent} and so, in the end, itself; leave one out")
    under = _with_parents(path.parent / parent, (*children, path))
    if "experiments" in config:
        for key in ("sweeps", "simulated"):  # they say what is run, too
            under.pop(key, None)
    return merge(under, config)


def known(kind: str, name: str, table: dict[str, Any]) -> Any:
    """The entry of that name, or UsageError with the names that there are, the nearest first."""
    if name not in table:
        near = difflib.get_close_matches(name, table, 3) if isinstance(name, str) else []
        shown = dict.fromkeys([*near, *sorted(table)])
        raise UsageError(f"{kind} {name!r} is unknown; known are {', '.join(shown)}")
    return table[name]


def _check_names(path: Path, config: Config) -> None:
    """Every name that the configuration mentions must be one that it defines."""
    from lorasp.budgets import check as check_budgets  # it needs this module

    try:
        for name, task in config["tasks"].items():
            load_task(task.get("definition", name))
            for role in ("dataset", "benchmark"):
                if role in task:
                    known(f"tasks.{name}.{role}", task[role], config["datasets"])
        for index, group in enumerate(config["experiments"]):
            for kind in ("models", "tasks", "methods", "recipes"):
                for name in group[kind]:
                    known(f"experiments.{index}.{kind}", name, config[kind])
        for name, method in config["methods"].items():
            for other in method.get("match", {}).values():
                known(f"methods.{name}.match", other, config["methods"])
        check_budgets(config)
        for model in config["models"].values():
            if model["source"]["kind"] == "run":
                parse_cell(config, model["source"]["cell"])
            if "vocabulary" in model["source"]:
                known("vocabulary", model["source"]["vocabulary"]["dataset"], config["datasets"])
        for name in config["claims"]:
            claims_file(name)
        known("verdicts.recipe", config["verdicts"]["recipe"], config["recipes"])
        for index, plan in enumerate(config["profile"]["cells"]):
            known(f"profile.cells.{index}.model", plan["model"], config["models"])
            for name in plan["methods"]:
                known(f"profile.cells.{index}.methods", name, config["methods"])
        for index, group in enumerate(config.get("simulate", [])):
            for kind in ("models", "methods"):
                for name in group[kind]:
                    known(f"simulate.{index}.{kind}", name, config[kind])
        for name, recipe in config["recipes"].items():
            _check_exceptions(f"recipes.{name}", recipe, config)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _check_exceptions(where: str, recipe: dict[str, Any], config: Config) -> None:
    """The names under per_model, per_task and per_method: a misspelt one would change nothing."""
    for kind in ("model", "task", "method"):
        for name, special in recipe.get(f"per_{kind}", {}).items():
            known(f"{where}.per_{kind}", name, config[f"{kind}s"])
            _check_exceptions(f"{where}.per_{kind}.{name}", special, config)


def parse_cell(config: Config, names: dict[str, Any]) -> Cell:
    """The cell of those names, each checked against the configuration, the seed against NumPy."""
    for kind in ("model", "task", "method"):
        known(kind, names[kind], config[f"{kind}s"])
    if config["methods"][names["method"]]["family"] == "base":
        if names["recipe"] != "none":
            raise UsageError(f"method {names['method']} is not trained: its recipe is none")
    else:
        known("recipe", names["recipe"], config["recipes"])
    if not 0 <= names["seed"] < 2**32:
        raise UsageError(f"seed is {names['seed']}; allowed is 0 to {2**32 - 1}")
    return Cell(
        config["scale"], *(names[key] for key in ("model", "task", "method", "recipe", "seed"))
    )


def cells(config: Config, only: str = "") -> list[Cell]:
    """The runs of a configuration, sorted, without repeats.

    The untouched base model (`base`) learns nothing: its recipe is `none`, and it has one seed
    unless a classification head is drawn from it. `only` keeps the runs that agree with every name
    in a comma-separated list of models, tasks, methods, recipes and seeds (`seed-0`): names of one
    kind are alternatives. Raises UsageError for an unknown name.
    """
    runs = set()
    for group in config["experiments"]:
        kinds = (group[kind] for kind in ("models", "tasks", "methods", "recipes", "seeds"))
        for model, task, method, recipe, seed in itertools.product(*kinds):
            trained = config["methods"][method]["family"] != "base"
            drawn = trained or config["models"][model]["architecture"] == "encoder"
            if drawn or seed == group["seeds"][0]:
                place = (model, task, method, recipe if trained else "none", seed)
                runs.add(Cell(config["scale"], *place))
    wanted: dict[str, set[str]] = {}
    for name in filter(None, (part.strip() for part in only.split(","))):
        kind = next((kind for kind in _KINDS if name in _names(runs, kind)), None)
        if kind is None:
            raise UsageError(f"only={name}: {_why_no_run(config, runs, name)}")
        wanted.setdefault(kind, set()).add(name)
    return sorted(
        run for run in runs if all(_name(run, kind) in names for kind, names in wanted.items())
    )


_KINDS = ("model", "task", "method", "recipe", "seed")


def _why_no_run(config: Config, runs: set[Cell], name: str) -> str:
    """Why no run has a name, and what to do: it is nothing, or in no experiment."""
    scale, experiments = config["scale"], config["experiments"]
    kind = next((kind for kind in _KINDS[:-1] if name in config[f"{kind}s"]), None)
    if kind is None:
        allowed = "; ".join(f"{kind}: {', '.join(sorted(_names(runs, kind)))}" for kind in _KINDS)
        return f"no run has that name; allowed are {allowed}"
    said = f"{name} is a {kind}, but in no experiment of {scale}; add it to the {kind}s of one"
    if kind != "method":
        return f"{said} in config/{scale}.yaml"
    one = {f"{kind}s": experiments[0][f"{kind}s"][0] for kind in _KINDS} | {"methods": name}
    lines = ", ".join(f"{key}: [{value}]" for key, value in one.items())
    names = itertools.chain(["mine"], (f"mine-{number}" for number in itertools.count(2)))
    new = next(name for name in names if name != scale and not Path(f"config/{name}.yaml").exists())
    return (
        f"{said} in config/{scale}.yaml, or run with scale={new} and a new file config/{new}.yaml "
        f"of three lines: 'extends: {scale}.yaml', 'scale: {new}', 'experiments: [{{{lines}}}]'"
    )


def _name(cell: Cell, kind: str) -> str:
    value = getattr(cell, kind)
    return f"seed-{value}" if kind == "seed" else str(value)


def _names(runs: set[Cell], kind: str) -> set[str]:
    return {_name(run, kind) for run in runs}


def pick(entry: dict[str, Any], **names: str) -> dict[str, Any]:
    """A recipe for one run: its values, then those under per_model, per_task and per_method."""
    chosen = {key: value for key, value in entry.items() if not key.startswith("per_")}
    for kind, name in names.items():
        special = entry.get(f"per_{kind}", {}).get(name)
        if special is not None:
            chosen |= pick(special, **names)
    return chosen


def resolve_task(config: Config, name: str) -> dict[str, Any]:
    """The task's definition and what the configuration adds to it, in one dictionary."""
    entry = known("task", name, config["tasks"])
    return {**load_task(entry.get("definition", name)), "definition": name, **entry, "name": name}


def resolve_model(config: Config, name: str) -> dict[str, Any]:
    """The model's entry with its own name in it."""
    return {**known("model", name, config["models"]), "name": name}


def resolve_method(config: Config, name: str, overrides: dict[str, Any] | None = None) -> Config:
    """The method's entry with its name; `overrides` (from --set) win over its settings."""
    entry = known("method", name, config["methods"])
    settings = {**entry.get("settings", {}), **(overrides or {})}
    resolved = {**entry, "name": name, "settings": settings}
    return resolved | code_digest(name, entry)


def resolve(
    config: Config,
    cell: Cell,
    overrides: dict[str, Any] | None = None,
    fitted: bool = True,
    root: Path | None = None,
) -> Config:
    """Everything that decides the outcome of a cell, as one JSON-like dictionary.

    A method with `match` has the settings or the steps that `lorasp budget` has fitted, in
    results/<scale> or in `root`, and without `fitted` its own. Raises WorkError where they are not
    fitted yet.
    """
    recipe = config["recipes"].get(cell.recipe, {})
    recipe = pick(recipe, model=cell.model, task=cell.task, method=cell.method)
    model = resolve_model(config, cell.model)
    method = resolve_method(config, cell.method, overrides)
    if fitted and "match" in method:
        from lorasp import budget_steps, budgets  # they need this module

        budget = budgets.read(config, cell.model, cell.method, root)
        settings = budget["settings"] | (overrides or {})
        method = resolve_method(config, cell.method, settings) | {"budget": budget}
        recipe = budget_steps.stretched(recipe, budget["steps"])
    return {
        "cell": dataclasses.asdict(cell),
        "model": model,
        "task": resolve_task(config, cell.task),
        "method": method,
        "recipe": recipe,
        "runtime": {**config["runtime"], **model.get("runtime", {})},
    }


def decisive(stage: str, resolved: Config) -> Config:
    """The part of a resolved cell that can change what `stage` (train or evaluate) produces.

    Snakemake reruns a job when this changes: a new label or note reruns nothing, another beam width
    evaluates again and trains nothing.
    """
    task, method = resolved["task"], resolved["method"]
    scoring = ("evaluate", "metrics", "headline", "generation", "benchmark")
    # the micro-batch splits the work of a step and, but for rounding, changes nothing
    silent = {"source", "micro_batch_size"}
    shown = {"version", "table", "column", "note", *scoring}
    runtime = {key: resolved["runtime"].get(key) for key in NUMBERS}
    if resolved["recipe"].get("select") == "best":
        shown -= {"evaluate", "headline"}  # they choose the epoch
    if resolved["runtime"]["device"] == "cpu":
        runtime["threads"] = resolved["runtime"]["threads"]  # sums are split among them
    trained = {
        "cell": resolved["cell"],
        "model": {key: resolved["model"][key] for key in ("architecture", "targets")},
        "task": {key: value for key, value in task.items() if key not in shown},
        "method": {key: method[key] for key in OF_A_STEP if key in method},
        "recipe": {key: value for key, value in resolved["recipe"].items() if key not in silent},
        "runtime": runtime,
    }
    return trained if stage == "train" else {key: task.get(key) for key in scoring} | runtime


def decisive_step(config: Config, model: str, method: str) -> Config:
    """The part of a configuration that decides the measured steps of a model and method."""
    entry = resolve_model(config, model)
    cells = [cell for cell in config["profile"]["cells"] if cell["model"] == model]
    shape: Config = next((cell for cell in cells if method in cell["methods"]), {})
    resolved = resolve_method(config, method)
    runtime = {**config["runtime"], **entry.get("runtime", {})}
    return {
        **{key: config["profile"][key] for key in ("warmup", "repeats")},
        "shape": {key: shape.get(key) for key in ("batch", "length")},
        "model": {key: entry[key] for key in ("architecture", "targets")},
        "method": {key: resolved[key] for key in OF_A_STEP if key in resolved},
        "runtime": {key: runtime.get(key) for key in (*NUMBERS, "threads")},
    }


def text_of(task: Config) -> Config:
    """The part of a task that decides its tokens."""
    written = ("text", "prefix", "prompt", "prompt_without_input", "max_length")
    keys = ("dataset", "family", "label", "labels", "train", "evaluate", "validation", *written)
    return {key: task[key] for key in keys if key in task}


def stage_code(*packages: str) -> str:
    """A fingerprint of the source of a stage: the named packages or modules of lorasp.

    The table of methods is left out: what a run uses of it is in its resolved configuration.
    """
    root = Path(__file__).parent
    files = [file for name in packages for file in [root / f"{name}.py", *(root / name).rglob("*")]]
    return fingerprint(
        {
            str(file.relative_to(root)): file.read_text()
            for file in sorted(files)
            if file.is_file() and file.suffix != ".pyc" and file.parent != METHODS
        }
    )


def data_folder(config: Config, *parts: str) -> Path:
    """Where prepared files lie: <data>/<scale>/ DATASET, models/MODEL or tokens/MODEL/TASK."""
    return Path(config["data_dir"], config["scale"], *parts)
