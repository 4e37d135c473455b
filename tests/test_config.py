"""The configuration: what is refused, what is chosen, and what decides a stage's outcome."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp import config as module
from lorasp.config import Cell, cells, decisive, load_config, parse_cell, pick, resolve, stage_code
from lorasp.errors import UsageError
from lorasp.methods import table

ROOT = Path(__file__).parents[1]
SCALES = ("smoke", "mini", "paper")
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Task definitions of one's own are named from the project's root."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A configuration file that extends the smoke scale, with some keys of its own."""
    shutil.copy(ROOT / "config" / "smoke.yaml", tmp_path)

    def make(name: str = "own.yaml", extends: Any = "smoke.yaml", **keys: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"extends": extends, **keys}))
        return path

    return make


def scale(name: str) -> dict[str, Any]:
    return load_config(ROOT / "config" / f"{name}.yaml")


@pytest.mark.parametrize("name", SCALES)
def test_shipped_scales(name: str) -> None:
    config = scale(name)
    assert config["scale"] == name
    runs = cells(config)
    assert runs and len(set(run.folder for run in runs)) == len(runs)
    for run in runs:
        resolved = resolve(config, run, fitted=False)
        assert (resolved["recipe"] == {}) == (run.method == "base")
        assert parse_cell(config, vars(run)) == run


def test_the_number_of_runs_of_the_paper() -> None:
    """GLUE: 2 models, 8 tasks, 5 methods that train by 2 recipes, and the base model; 5 seeds.

    Then 2 models each for one task of translation and one of instructions, 3 seeds, of which the
    base model has one: nothing in it is drawn. The sweeps: 5 ranks and 3 densities more by 5 rates,
    3 seeds, of which the plain method at its own rate is among the others. The peers: 4 methods by
    2 recipes on all of GLUE, 5 seeds, and on translation and instructions, 3 seeds. 22 other
    methods on one task, 5 seeds.
    """
    tables = 2 * 8 * 5 * (5 * 2 + 1) + 2 * 2 * (3 * 5 * 2 + 1)
    sweeps, peers = 3 * ((5 + 3) * 5 - 1), 4 * 2 * (8 * 5 + 2 * 3)
    assert len(cells(scale("paper"))) == tables + sweeps + peers + 22 * 5


def _runs(**wrong: str | int) -> str:
    names = {"models": "roberta-tiny", "tasks": "mrpc", "methods": "lora", "recipes": "stated"}
    chosen = {key: [value] for key, value in {**names, "seeds": 0, **wrong}.items()}
    return yaml.safe_dump({"experiments": [chosen]})


def _source(source: str) -> str:
    return f"datasets: {{own: {{source: {source}}}}}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modles: {}", ["top level", "'modles'", "models", "recipes"]),
        ("recipes: {stated: {rate: 1}}", ["recipes.stated", "'rate'", "learning_rate"]),
        (
            "recipes: {stated: {learning_rate: -1.0e-4}}",
            ["recipes.stated.learning_rate", "-0.0001", "0"],
        ),
        ("recipes: {stated: {batch_size: -4}}", ["recipes.stated.batch_size", "-4", "1"]),
        ("recipes: {stated: {epochs: 0}}", ["recipes.stated.epochs", "0"]),
        (
            "recipes: {stated: {schedule: step}}",
            ["recipes.stated.schedule", "'step'", "'linear'", "'cosine'"],
        ),
        ("recipes: {own: {epochs: 1}}", ["recipes.own", "learning_rate"]),
        ("runtime: {device: tpu}", ["runtime.device", "'tpu'", "'cpu'", "'cuda'"]),
        ("runtime: {threads: 0}", ["runtime.threads", "0", "1"]),
        ("runtime: {threads: two}", ["runtime.threads", "'two'", "integer"]),
        ("models: [roberta-tiny]", ["models", "roberta-tiny", "object"]),
        (
            "models: {roberta-tiny: {architecture: rnn}}",
            ["models.roberta-tiny.architecture", "'rnn'", "'causal'"],
        ),
        ("models: {../up: {}}", ["models", "'../up'", "letters"]),
        ("data_dir: /abs", ["data_dir", "'/abs'", "inside"]),
        ("data_dir: a/../../b", ["data_dir", "'a/../../b'", "inside"]),
        ("scale: a/b", ["scale", "'a/b'", "letters"]),
        ("methods: {lora: {rank: 4}}", ["methods.lora", "'rank'", "settings"]),
        ("methods: {own: {family: LORA}}", ["methods.own", "source"]),
        (_runs(models="bert"), ["experiments.0.models", "'bert'", "roberta-tiny"]),
        (_runs(tasks="wnli"), ["experiments.0.tasks", "'wnli'", "mrpc"]),
        (_runs(methods="doora"), ["experiments.0.methods", "'doora'", "lora-sp"]),
        (_runs(recipes="fast"), ["experiments.0.recipes", "'fast'", "stated"]),
        (_runs(seeds=-1), ["experiments.0.seeds.0", "-1", "0"]),
        ("tasks: {mrpc: {dataset: mprc}}", ["tasks.mrpc.dataset", "'mprc'", "mrpc"]),
        ("tasks: {own: {dataset: mrpc, max_length: 9}}", ["'own'", "mrpc", ".yaml"]),
        ("tasks: {mrpc: {max_length: -1}}", ["tasks.mrpc.max_length", "-1", "4"]),
        (_source("{kind: ftp}"), ["datasets.own.source.kind", "'ftp'", "'hub'"]),
        (_source("{kind: hub, id: a/b}"), ["datasets.own.source", "revision"]),
        (
            _source("{kind: hub, id: a/b, revision: main}"),
            ["datasets.own.source.revision", "'main'", "40"],
        ),
        (_source("{kind: local, path: /etc}"), ["own.source.path", "'/etc'", "inside"]),
        (_source("{kind: local, path: ..}"), ["own.source.path", "'..'", "inside"]),
        (_source("{kind: local, path: a, file: b}"), ["own.source", "'file'", "path"]),
        ("datasets: {tokens: {source: {kind: local, path: a}}}", ["datasets", "'tokens'"]),
    ],
)
def test_one_sentence_names_key_found_and_allowed(
    write: Write, text: str, words: list[str]
) -> None:
    path = write(**yaml.safe_load(text))
    with pytest.raises(UsageError) as raised:
        load_config(path)
    sentence = str(raised.value)
    assert sentence.startswith(f"{path}: ") and "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence


def test_files_that_are_no_configuration(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UsageError, match=r"no configuration .*missing\.yaml; shipped are config/"):
        load_config(tmp_path / "missing.yaml")
    with pytest.raises(UsageError, match=r"cannot read .*no-parent\.yaml: No such file"):
        load_config(write(extends="no-parent.yaml"))
    with pytest.raises(UsageError, match=r"own\.yaml: extends is 3; .* name of a file"):
        load_config(write(extends=3))
    with pytest.raises(UsageError, match=r"own\.yaml: extends .*own\.yaml.* itself"):
        load_config(write(extends="own.yaml"))
    for content, message in (("a: [1", "is not YAML"), ("- a", "must hold a YAML mapping")):
        (tmp_path / "bad.yaml").write_text(content)
        with pytest.raises(UsageError, match=message) as raised:
            load_config(tmp_path / "bad.yaml")
        assert "\n" not in str(raised.value)


def test_extends_merges_mapping_by_mapping(write: Write) -> None:
    write("middle.yaml", recipes={"stated": {"epochs": 7, "weight_decay": 0.5}})
    path = write(
        extends="middle.yaml",
        scale="own",
        recipes={"stated": {"epochs": 9}},
        methods={"lora": {"settings": {"dropout": 0.1}}},
        models={"roberta-tiny": {"targets": ["key"]}},
    )
    found, smoke = load_config(path), scale("smoke")
    expected = copy.deepcopy(smoke)
    expected["scale"] = "own"
    for name, recipe in expected["recipes"].items():  # and what the sweep makes of it
        if name.startswith("stated"):
            recipe |= {"epochs": 9, "weight_decay": 0.5}
    expected["methods"]["lora"]["settings"]["dropout"] = 0.1
    expected["models"]["roberta-tiny"]["targets"] = ["key"]  # a list is replaced, not joined
    assert found == expected
    # the shipped methods lie under those of a configuration
    settings = {"rank": 4, "lora_alpha": 4, "dropout": 0.0}
    assert smoke["methods"]["lora"] == {
        **table()["lora"],
        "settings": settings,
    }


def test_experiments_of_its_own_leave_out_what_else_the_other_runs(write: Write) -> None:
    assert {"sweeps", "simulated"} <= set(load_config(write()))
    found = load_config(write(experiments=scale("smoke")["experiments"][:1]))
    assert not {"sweeps", "simulated"} & set(found)
    own = write(experiments=scale("smoke")["experiments"][:1], simulated=True)
    assert load_config(own)["simulated"]
    assert all(scale(name)["simulated"] for name in (*SCALES, "rehearse"))


def test_only_keeps_runs_that_agree_with_every_kind() -> None:
    config = scale("smoke")
    runs = cells(config)

    def expected(**kinds: set) -> list[Cell]:
        return [r for r in runs if all(getattr(r, kind) in names for kind, names in kinds.items())]

    assert cells(config, "mrpc") == expected(task={"mrpc"})
    assert cells(config, "mrpc, cola") == expected(task={"mrpc", "cola"})
    both = cells(config, "mrpc,cola,lora-sp,seed-0")
    assert both == expected(task={"mrpc", "cola"}, method={"lora-sp"}, seed={0}) and both
    assert cells(config, "t5-tiny,mrpc") == []
    assert cells(config, "none") == expected(method={"base"})
    assert cells(config, "") == runs == sorted(runs)


@pytest.mark.parametrize("name", ["wnli", "seed-9", "0", "lora-sp-", "scratch"])
def test_only_with_an_unknown_name(name: str) -> None:
    with pytest.raises(UsageError) as raised:
        cells(scale("smoke"), f"mrpc,{name}")
    sentence = str(raised.value)
    assert sentence.startswith(f"only={name}: ") and "\n" not in sentence
    assert "task: alpaca-mmlu, cola" in sentence and "seed: seed-0, seed-1" in sentence


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "model 'bert' is unknown; known are llama-tiny, roberta-tiny, t5-tiny"),
        ({"task": "wnli"}, "task 'wnli' is unknown; known are qnli, mnli, "),
        ({"method": "doora"}, "method 'doora' is unknown; known are dora, "),
        ({"recipe": "fast"}, "recipe 'fast' is unknown; known are stated, "),
        ({"method": "base"}, "method base is not trained: its recipe is none"),
        ({"recipe": "none"}, "recipe 'none' is unknown"),
        ({"seed": -1}, "seed is -1; allowed is 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; allowed"),
    ],
)
def test_names_of_a_run(change: dict, message: str) -> None:
    names = {"model": "roberta-tiny", "task": "mrpc", "method": "lora", "recipe": "stated"}
    with pytest.raises(UsageError, match=message):
        parse_cell(scale("smoke"), {**names, "seed": 0, **change})


def test_the_more_special_value_of_a_recipe_wins() -> None:
    recipe = {
        "a": 0, "b": 0, "c": 0, "d": 0,
        "per_model": {"m": {"a": 1, "b": 1, "c": 1}},
        "per_task": {"t": {"b": 2, "c": 2}},
        "per_method": {"x": {"c": 3}},
    }  # fmt: skip
    names = {"model": "m", "task": "t", "method": "x"}
    assert pick(recipe, **names) == {"a": 1, "b": 2, "c": 3, "d": 0}
    assert pick(recipe, **names | {"method": "y"}) == {"a": 1, "b": 2, "c": 2, "d": 0}
    assert pick(recipe, model="n", task="u", method="y") == {"a": 0, "b": 0, "c": 0, "d": 0}
    nested = {"a": 0, "per_model": {"m": {"a": 1, "per_task": {"t": {"a": 2}}}}}
    assert pick(nested, **names) == {"a": 2}
    assert pick(nested, **names | {"task": "u"}) == {"a": 1}


# LoRA (arXiv 2106.09685), Table 9: batch, epochs, learning rate in units of 1e-4.
TABLE_9 = {
    "roberta-base": {
        "mnli": (16, 30, 5), "sst2": (16, 60, 5), "mrpc": (16, 30, 4), "cola": (32, 80, 4),
        "qnli": (32, 25, 4), "qqp": (16, 25, 5), "rte": (32, 80, 5), "stsb": (16, 40, 4),
    },
    "roberta-large": {
        "mnli": (4, 10, 3), "sst2": (4, 10, 4), "mrpc": (4, 20, 3), "cola": (4, 20, 2),
        "qnli": (4, 10, 2), "qqp": (4, 20, 3), "rte": (8, 20, 4), "stsb": (8, 30, 2),
    },
}  # fmt: skip


@pytest.mark.parametrize("method", ["lora", "lora-half", "lora-sp", "lora-sp-init"])
def test_the_tuned_recipe_is_table_9_of_the_lora_paper(method: str) -> None:
    config = scale("paper")
    for model, tasks in TABLE_9.items():
        for task, (batch, epochs, rate) in tasks.items():
            recipe = resolve(config, Cell("paper", model, task, method, "tuned", 0))["recipe"]
            assert recipe["batch_size"] == batch and recipe["epochs"] == epochs
            assert recipe["learning_rate"] == pytest.approx(rate * 1e-4)
            assert recipe["warmup_ratio"] == 0.06 and recipe["schedule"] == "linear"
            assert recipe["weight_decay"] == 0.1 and recipe["select"] == "best"


@pytest.mark.parametrize("method", ["ft", "lora", "lora-half", "lora-sp", "lora-sp-init"])
def test_the_stated_recipe_is_the_papers_sentence(method: str) -> None:
    config = scale("paper")
    for run in cells(config, f"stated,{method},seed-0"):
        recipe = resolve(config, run)["recipe"]
        assert (recipe["learning_rate"], recipe["epochs"]) == (2e-5, 3)
        large = run.model in ("roberta-large", "t5-large", "llama-13b")
        assert recipe["batch_size"] == (32 if large else 64)
        length = resolve(config, run)["task"]["max_length"]
        assert length == (512 if run.task == "alpaca-mmlu" else 128)
    for runs in (cells(config, "stated,ft"), cells(config, "stated,lora-sp")):
        assert len(runs) == 2 * 8 * 5 + 2 * 2 * 3


@pytest.mark.parametrize("name", SCALES)
def test_lora_half_is_lora_of_half_the_rank(name: str) -> None:
    methods = scale(name)["methods"]
    whole, half, ours = (methods[m]["settings"] for m in ("lora", "lora-half", "lora-sp"))
    assert 2 * half["rank"] == whole["rank"] == ours["rank"]
    assert half["lora_alpha"] / half["rank"] == whole["lora_alpha"] / whole["rank"]
    assert ours["lora_alpha"] == whole["lora_alpha"] and ours["density"] == 0.5


@pytest.mark.parametrize("name", SCALES)
def test_lora_sp_trains_as_many_parameters_as_lora_half(name: str) -> None:
    import transformers

    from lorasp.adapters.registry import apply_method

    config = scale(name)
    model = next(m for m, e in config["models"].items() if e["architecture"] == "encoder")
    task = next(c.task for c in cells(config) if c.model == model)

    def trained(method: str) -> tuple[int, int]:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        net = transformers.RobertaForSequenceClassification(
            transformers.RobertaConfig(vocab_size=9, intermediate_size=8, **sizes)
        )
        cell = Cell(name, model, task, method, "stated", 0)
        parameters = apply_method(net, resolve(config, cell)).named_parameters()
        counts = [(n, p.numel()) for n, p in parameters if p.requires_grad]
        adapter = sum(count for n, count in counts if "lora_" in n)
        return adapter, sum(count for _, count in counts) - adapter

    rank = config["methods"]["lora"]["settings"]["rank"]
    head = 32 * 32 + 32 + 32 * 2 + 2
    assert trained("lora") == (4 * rank * 64, head)
    for method in ("lora-half", "lora-sp", "lora-sp-init"):
        assert trained(method) == (4 * rank * 64 // 2, head)


@pytest.mark.parametrize(
    ("path", "value", "changed"),
    [
        (("methods", "lora-sp", "label"), "Ours", set()),
        (("methods", "lora-sp", "source"), "elsewhere", set()),
        (("models", "t5-tiny", "note"), "small", set()),
        (("models", "t5-tiny", "stands_for"), "t5-large", set()),
        (("tasks", "wmt16-en-ro", "note"), "small", set()),
        (("recipes", "stated", "source"), "elsewhere", set()),
        (("tasks", "wmt16-en-ro", "generation", "num_beams"), 7, {"evaluate"}),
        (("tasks", "wmt16-en-ro", "generation", "length_penalty"), 1.0, {"evaluate"}),
        (("recipes", "stated", "learning_rate"), 3e-5, {"train"}),
        (("recipes", "stated", "per_method"), {"lora-sp": {"epochs": 2}}, {"train"}),
        (("recipes", "stated", "per_method"), {"ft": {"epochs": 2}}, set()),
        (("recipes", "tuned", "learning_rate"), 3e-5, set()),
        (("methods", "lora-sp", "settings", "rank"), 2, {"train"}),
        (("methods", "lora", "settings", "rank"), 2, set()),
        (("models", "t5-tiny", "targets"), ["q"], {"train"}),
        (("runtime", "threads"), 2, {"train", "evaluate"}),
        (("runtime", "eval_batch_size"), 2, set()),
        (("runtime", "precision"), "bf16", {"train", "evaluate"}),
    ],
)
def test_what_decides_the_outcome_of_a_stage(path: tuple, value: Any, changed: set) -> None:
    config = scale("smoke")
    cell = Cell("smoke", "t5-tiny", "wmt16-en-ro", "lora-sp", "stated", 0)
    before = {stage: decisive(stage, resolve(config, cell)) for stage in ("train", "evaluate")}
    *above, last = path
    config = copy.deepcopy(config)
    entry: Any = config
    for key in above:
        entry = entry[key]
    assert entry.get(last) != value
    entry[last] = value
    after = {stage: decisive(stage, resolve(config, cell)) for stage in ("train", "evaluate")}
    assert {stage for stage in before if before[stage] != after[stage]} == changed


@pytest.mark.parametrize("key", ["table", "column"])
def test_the_place_in_a_table_decides_nothing(key: str) -> None:
    config = scale("smoke")
    resolved = resolve(config, Cell("smoke", "t5-tiny", "wmt16-en-ro", "lora-sp", "stated", 0))
    moved = {**resolved, "task": {**resolved["task"], key: "elsewhere"}}
    for stage in ("train", "evaluate"):
        assert decisive(stage, resolved) == decisive(stage, moved)


def test_code_of_a_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lorasp"
    shutil.copytree(ROOT / "lorasp", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(module, "__file__", str(package / "config.py"))
    monkeypatch.setattr(module, "METHODS", package / "adapters" / "methods")

    def found() -> dict[str, str]:
        stages = {"train": ("training", "adapters", "models"), "evaluate": ("evaluation", "models")}
        return {stage: stage_code(*names) for stage, names in stages.items()}

    def touched(file: str) -> set[str]:
        before = found()
        path = package / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{path.read_text()}\n# a note\n" if path.exists() else "# new\n")
        after = found()
        return {stage for stage in before if before[stage] != after[stage]}

    assert touched("training/train.py") == {"train"}
    assert touched("adapters/weights.py") == {"train"}
    assert touched("training/new.py") == {"train"}
    assert touched("evaluation/glue.py") == {"evaluate"}
    assert touched("models.py") == {"train", "evaluate"}
    assert touched("report/page.py") == touched("cli.py") == set()
    # what a run uses of these is in its resolved configuration
    assert touched("adapters/methods/paper.yaml") == set()
    assert touched("training/__pycache__/train.cpython-311.pyc") == set()
