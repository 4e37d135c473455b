"""Sweeps: what they unfold to, by what names, and that what is swept wins."""

import itertools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lorasp.bench.pipeline import copy_checkout
from lorasp.config import Cell, cells, load_config, resolve
from lorasp.errors import UsageError
from lorasp.sweeps import points, resized

ROOT = Path(__file__).parents[1]
RUN = {"models": ["roberta-tiny"], "tasks": ["mrpc"], "methods": ["lora-sp"], "recipes": ["stated"]}
SWEEP = {
    "name": "own",
    "models": ["roberta-tiny"],
    "tasks": ["mrpc", "rte"],
    "method": "lora-sp",
    "recipe": "stated",
    "over": {"rank": [2, 4, 8], "density": [0.25, 0.5], "learning_rate": [2e-5, 1e-3]},
    "seeds": [3, 4],
}
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A configuration of one run, with sweeps, on top of the smoke scale."""
    text = (ROOT / "config" / "smoke.yaml").read_text()
    (tmp_path / "smoke.yaml").write_text(text)

    def load(*sweeps: dict[str, Any], **keys: Any) -> dict[str, Any]:
        path = tmp_path / "own.yaml"
        own = {"extends": "smoke.yaml", "experiments": [{**RUN, "seeds": [3]}], **keys}
        path.write_text(yaml.safe_dump({**own, "sweeps": list(sweeps)} if sweeps else own))
        return load_config(path)

    return load


def test_expansion_is_the_plain_enumeration(make: Make) -> None:
    config = make(SWEEP)
    over: dict[str, list[Any]] = SWEEP["over"]  # type: ignore[assignment]
    found = points(config)
    combinations = list(itertools.product(*over.values()))
    expected = [
        (task, dict(zip(over, chosen, strict=True)), seed)
        for task in SWEEP["tasks"]
        for chosen in combinations
        for seed in SWEEP["seeds"]
    ]
    key = str
    assert sorted(((p["task"], p["values"], p["cell"].seed) for p in found), key=key) == sorted(
        ((task, dict(sorted(values.items())), seed) for task, values, seed in expected), key=key
    )
    assert {p["cell"] for p in found} <= set(cells(config))
    # the plain run of the experiment is a point of it
    assert len(cells(config)) == len(expected)
    for point in found:
        run, values = resolve(config, point["cell"]), point["values"]
        settings = run["method"]["settings"]
        assert (settings["rank"], settings["density"]) == (values["rank"], values["density"])
        assert settings["lora_alpha"] == values["rank"]  # the factor of the smoke scale is 1
        assert run["recipe"]["learning_rate"] == values["learning_rate"]
        # nothing else is changed
        plain = resolve(
            config, Cell("smoke", "roberta-tiny", point["task"], "lora-sp", "stated", 3)
        )
        swept = {"rank", "lora_alpha", "density"}
        assert {k: v for k, v in settings.items() if k not in swept} == {
            k: v for k, v in plain["method"]["settings"].items() if k not in swept
        }
        assert {**run["recipe"], "learning_rate": 0, "source": ""} == {
            **plain["recipe"],
            "learning_rate": 0,
            "source": "",
        }
        assert run["method"]["group"] == plain["method"]["group"]


def test_names_are_safe_unique_and_plain_where_nothing_is_changed(make: Make) -> None:
    config = make(SWEEP)
    named: dict[tuple[str, str, str], tuple[Any, ...]] = {}
    for point in points(config):
        cell = point["cell"]
        values = (*point["values"].items(),)
        assert named.setdefault((cell.task, cell.method, cell.recipe), values) == values
        for name in (cell.method, cell.recipe):
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name)
    assert len(named) == 2 * 3 * 2 * 2
    plain = ("rank", 4), ("density", 0.5), ("learning_rate", 2e-5)
    assert dict(named["mrpc", "lora-sp", "stated"]) == dict(plain)
    small = dict(named["mrpc", "lora-sp.density-0.25.rank-2", "stated.learning_rate-0.001"])
    assert small == {"rank": 2, "density": 0.25, "learning_rate": 1e-3}
    label = config["methods"]["lora-sp.density-0.25.rank-2"]["label"]
    assert label == "LoRA-SP, density 0.25, rank 2"


def test_sweeps_share_what_they_have_in_common(make: Make) -> None:
    common = {**SWEEP, "tasks": ["mrpc"], "seeds": [0]}
    ranks = {**common, "name": "ranks", "over": {"rank": [2, 4], "learning_rate": [2e-5, 1e-3]}}
    shares = {
        **common,
        "name": "shares",
        "over": {"learning_rate": [1e-3, 2e-5], "density": [0.5, 1]},
    }
    found = {
        name: {point["cell"] for point in points(make(ranks, shares)) if point["sweep"] == name}
        for name in ("ranks", "shares")
    }
    # rank 4 at density 0.5, at both rates
    assert len(found["ranks"] & found["shares"]) == 2
    assert len(found["ranks"] | found["shares"]) == 6


@pytest.mark.parametrize("level", ["per_model", "per_task", "per_method", "nested"])
def test_what_is_swept_wins_over_exceptions(make: Make, level: str) -> None:
    """An exception for the method holds for what is swept of it, but for what is swept itself."""
    special = {"learning_rate": 7e-4, "epochs": 5}
    exceptions = {
        "per_model": {"per_model": {"roberta-tiny": special}},
        "per_task": {"per_task": {"mrpc": special}},
        "per_method": {"per_method": {"lora-sp": special}},
        "nested": {"per_model": {"roberta-tiny": {"per_method": {"lora-sp": special}}}},
    }
    over = {"rank": [2, 4], "learning_rate": [7e-4, 1e-3]}
    sweep = {**SWEEP, "tasks": ["mrpc"], "over": over}
    config = make(sweep, recipes={"stated": exceptions[level]})
    for point in points(config):
        recipe = resolve(config, point["cell"])["recipe"]
        assert (recipe["learning_rate"], recipe["epochs"]) == (point["values"]["learning_rate"], 5)
        plain = point["values"]["learning_rate"] == 7e-4
        assert point["cell"].recipe == ("stated" if plain else "stated.learning_rate-0.001")


def test_alpha_follows_the_rank_unless_it_is_swept() -> None:
    settings = {"rank": 8, "lora_alpha": 16, "dropout": 0.1}
    assert resized(settings, {"rank": 4}) == {"rank": 4, "lora_alpha": 8, "dropout": 0.1}
    assert resized(settings, {"rank": 3})["lora_alpha"] == 6
    assert resized(settings, {"rank": 4, "lora_alpha": 16})["lora_alpha"] == 16
    assert resized({"rank": 3, "lora_alpha": 1}, {"rank": 1})["lora_alpha"] == pytest.approx(1 / 3)
    assert resized(settings, {"dropout": 0.0}) == {**settings, "dropout": 0.0}


def test_a_file_with_its_own_experiments_leaves_the_sweeps_of_another_aside(make: Make) -> None:
    assert load_config(ROOT / "config" / "smoke.yaml")["sweeps"]
    config = make()
    assert "sweeps" not in config and len(cells(config)) == 1 and points(config) == []


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"over": {"rnk": [2]}}, ["sweeps.0.over", "rnk", "rank", "learning_rate"]),
        ({"over": {}}, ["sweeps.0.over"]),
        ({"over": {"rank": []}}, ["sweeps.0.over.rank"]),
        ({"over": {"rank": [2, 2]}}, ["sweeps.0.over.rank"]),
        ({"over": {"density": [2]}}, ["a sweep makes", "density-2", "maximum of 1"]),
        ({"over": {"learning_rate": [-1]}}, ["a sweep makes", "learning_rate"]),
        ({"over": {"selection": ["a/b"]}}, ["a sweep makes", "a/b"]),
        ({"models": ["bert"]}, ["sweeps.0.models", "bert", "roberta-tiny"]),
        ({"tasks": ["wnli"]}, ["sweeps.0.tasks", "wnli", "mrpc"]),
        ({"method": "lora-pp"}, ["sweeps.0.method", "lora-pp", "lora-sp"]),
        ({"recipe": "fast"}, ["sweeps.0.recipe", "fast", "stated"]),
        ({"method": "base"}, ["sweeps.0.method", "base", "trains nothing"]),
        ({"seeds": []}, ["sweeps.0.seeds"]),
        ({"extra": 1}, ["sweeps.0", "extra", "over"]),
    ],
)
def test_refusals(make: Make, keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make({**SWEEP, **keys})
    sentence = str(raised.value)
    assert "own.yaml: " in sentence and "\n" not in sentence
    assert [word for word in words if word not in sentence] == [], sentence


def test_a_name_that_is_taken(make: Make) -> None:
    taken = {"lora-sp.rank-2.density-0.25": {"like": "lora"}, "lora-sp.density-0.25.rank-2": {}}
    taken["lora-sp.density-0.25.rank-2"] = {"like": "lora"}
    with pytest.raises(
        UsageError, match=r"makes 'lora-sp\.density-0\.25\.rank-2', and there is an"
    ):
        make(SWEEP, methods=taken)


def test_snakemake_plans_each_run_once(tmp_path: Path) -> None:
    copy_checkout(ROOT, tmp_path)
    sweep = {**SWEEP, "tasks": ["mrpc"], "seeds": [3]}
    own = {"extends": "smoke.yaml", "scale": "own", "experiments": [{**RUN, "seeds": [3]}]}
    (tmp_path / "config" / "own.yaml").write_text(yaml.safe_dump({**own, "sweeps": [sweep]}))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--cores", "1", "--dry-run", "--config", "scale=own"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    counts = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout, re.MULTILINE))
    assert (counts["train"], counts["evaluate"]) == ("12", "12")
