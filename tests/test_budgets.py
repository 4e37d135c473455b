"""Fair budgets: what is fitted is the nearest there is, and an old answer is not used."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from report.fakes import write_profile, write_run

from lorasp import budgets
from lorasp.bench.pipeline import copy_checkout
from lorasp.budget_steps import stretched, token_rows
from lorasp.budget_words import as_text, off_text
from lorasp.cli import main
from lorasp.config import Cell, load_config, resolve, resolve_method, resolve_model
from lorasp.data.prepare import prepare_dataset, prepare_model
from lorasp.errors import UsageError, WorkError
from lorasp.planning.plan import make_plan
from lorasp.profiling.measure import resolve_profile
from lorasp.profiling.simulations import simulation
from lorasp.report.collect import collect
from lorasp.results import write_json

ROOT = Path(__file__).parents[1]
TINY = "roberta-tiny"
CELL = Cell("smoke", TINY, "mrpc", "own", "stated", 0)
Make = Callable[..., dict[str, Any]]
# LoRA of rank 4 on query and value of both layers, 32 x 32
LORA = 2 * 2 * 4 * (32 + 32)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the tiny RoBERTa in it, and a cache of simulated steps."""
    project = tmp_path_factory.mktemp("project")
    (project / "config").mkdir()
    shutil.copy(ROOT / "config" / "smoke.yaml", project / "config")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        config = load_config(Path("config/smoke.yaml"))
        for name in set(config["datasets"]):
            prepare_dataset(config, name)
        prepare_model(config, TINY)
    return project


@pytest.fixture
def make(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The smoke scale with one run, of methods of one's own, in the project."""
    monkeypatch.chdir(prepared)
    shutil.rmtree(prepared / "results" / "smoke", ignore_errors=True)

    def load(keys: dict[str, Any] | None = None, **methods: dict[str, Any]) -> dict[str, Any]:
        run = {"models": [TINY], "tasks": ["mrpc"], "recipes": ["stated"], "seeds": [0]}
        experiments = [run | {"methods": sorted(methods)}]
        own = {"extends": "smoke.yaml", "methods": methods, "experiments": experiments}
        Path("config/own.yaml").write_text(yaml.safe_dump(own | (keys or {})))
        return load_config(Path("config/own.yaml"))

    return load


def like(origin: str, budget: str, reference: str, **settings: Any) -> dict[str, Any]:
    return {"like": origin, "match": {budget: reference}, "settings": settings}


@pytest.mark.parametrize(
    ("method", "rank", "alpha", "achieved"),
    [
        (like("lora", "trainable", "lora", rank=20, lora_alpha=10), 4, 2, LORA),
        (like("lora", "trainable", "lora-half"), 2, 2, LORA // 2),
        # half of the entries, so twice the rank; a quarter of them
        (like("lora-sp", "trainable", "lora"), 8, 8, LORA),
        (like("lora-sp", "trainable", "lora", density=0.25), 16, 16, LORA),
        # r (a + b) with a = b = r in 32 x 32: 4 x 2 r^2, of which 968 is nearest to 1,024
        (like("lora-mini", "trainable", "lora", inner_in=None, inner_out=None), 11, 11, 8 * 11**2),
        # the base's format changes no count
        (like("lora", "trainable", "lora-half", quantize="nf4"), 2, 2, LORA // 2),
    ],
)
def test_ranks_of_closed_form(
    make: Make, method: Any, rank: int, alpha: int, achieved: int
) -> None:
    config = make(own=method)
    budget = budgets.fit(config, TINY, "own")
    settings = config["methods"]["own"]["settings"] | budget["settings"]
    assert (settings["rank"], settings["lora_alpha"]) == (rank, alpha)
    assert (budget["asked"], budget["achieved"]) == (
        LORA // 2 if method["match"]["trainable"] == "lora-half" else LORA,
        achieved,
    )
    assert budget["off"] == pytest.approx(achieved / budget["asked"] - 1)
    assert budget["note"] is None and budget["steps"] == 1


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_shares_of_closed_form(make: Make, rank: int) -> None:
    """Of rank 8, whose matrices have 8 x 32 entries each, LoRA of rank r has r / 8."""
    own = {**like("lora-sp", "trainable", "other", rank=8, density=0.9), "size": "density"}
    config = make(other={"like": "lora", "settings": {"rank": rank}}, own=own)
    budget = budgets.fit(config, TINY, "own")
    assert budget["settings"]["density"] == pytest.approx(rank / 8, abs=0.5 / 256)
    assert budget["achieved"] == budget["asked"] == LORA * rank // 4


def test_what_cannot_be_reached_is_told(make: Make) -> None:
    """No rank of a 32 x 32 matrix has as many entries as the model, with or without a head."""
    config = make(own=like("lora", "trainable", "ft"))
    budget = budgets.fit(config, TINY, "own")
    assert budget["settings"] == {"rank": 32, "lora_alpha": 32}
    assert budget["achieved"] == 8 * LORA < budget["asked"]
    assert "within 10%" in budget["note"] and "rank 32" in budget["note"]
    # every parameter but those of the head: two layers, 32 to 32 and 32 to 2
    head = 32 * 32 + 32 + 32 * 2 + 2
    counted = simulation(resolved_of(config, "ft"), model_folder())["parameters"]["trainable"]
    assert budget["asked"] == counted - head


def model_folder() -> Path:
    return Path("data/smoke/models") / TINY


def resolved_of(config: dict[str, Any], method: str, **settings: Any) -> dict[str, Any]:
    return {
        "model": resolve_model(config, TINY),
        "method": resolve_method(config, method, settings),
        "runtime": config["runtime"],
        "profile": {"batch": 8, "length": 32},
    }


@pytest.mark.parametrize(("origin", "reference"), [("lora-sp", "lora"), ("lora", "lora-sp-init")])
def test_no_other_rank_has_a_nearer_peak(make: Make, origin: str, reference: str) -> None:
    config = make(own=like(origin, "memory", reference))
    budget = budgets.fit(config, TINY, "own")

    def peak(method: str, **settings: Any) -> float:
        return simulation(resolved_of(config, method, **settings), model_folder())["peak_bytes"]

    asked = peak(reference)
    peaks = {rank: peak("own", rank=rank, lora_alpha=rank) for rank in range(1, 33)}
    assert sorted(peaks.values()) == list(peaks.values())
    nearest = min(peaks, key=lambda rank: abs(peaks[rank] - asked))
    assert budget["settings"]["rank"] == nearest
    assert (budget["asked"], budget["achieved"]) == (asked, peaks[nearest])


@pytest.mark.parametrize("start", [1, 5, 40, 1000])
@pytest.mark.parametrize(
    "achieved",
    [
        lambda n: 7 * n,
        lambda n: n * n // 9,
        lambda n: 100 + n // 3,
        lambda n: math.inf if n > 60 else n,
    ],
)
@pytest.mark.parametrize("asked", [1, 29, 400, 10**6])
def test_the_search_finds_what_trying_all_finds(achieved: Any, asked: int, start: int) -> None:
    if math.isinf(achieved(start)):
        start = 60
    top = 1000
    found = budgets.nearest(achieved, asked, start, top)
    assert abs(achieved(found) - asked) == min(abs(achieved(n) - asked) for n in range(1, top + 1))


def test_time_is_the_ratio_of_measured_steps(make: Make) -> None:
    config = make(own=like("lora-sp", "time", "lora"))
    measure = f"lorasp profile --config config/smoke.yaml --model {TINY} --method lora"
    both = rf"no .*lora\.json and no .*lora-sp\.json: run `{measure} && {measure}-sp` first"
    with pytest.raises(WorkError, match=both):
        budgets.write_budget(config, TINY, "own")
    write_profile(config, TINY, "lora", 0.03, 1000)
    write_profile(config, TINY, "lora-sp", 0.02, 1000)
    budgets.write_budget(config, TINY, "own")
    resolved = resolve(config, CELL)
    assert resolved["recipe"]["epochs"] == pytest.approx(1.5)
    plain = resolve(config, CELL, fitted=False)
    assert resolved["method"]["settings"] == plain["method"]["settings"]
    assert resolved["recipe"] == {**plain["recipe"], "epochs": resolved["recipe"]["epochs"]}
    assert stretched({"epochs": 3, "max_steps": 5}, 0.1) == {"epochs": 0.3, "max_steps": 1}
    # another measurement is another budget
    write_profile(config, TINY, "lora", 0.04, 1000)
    with pytest.raises(WorkError, match="other profiles than there are now"):
        resolve(config, CELL)


def test_a_run_needs_a_budget_that_holds(make: Make) -> None:
    config = make(own=like("lora-sp", "trainable", "lora"))
    mend = f"lorasp budget --config config/smoke.yaml --model {TINY} --method own"
    with pytest.raises(WorkError, match=f"not fitted to its budget .* yet: run `{mend}` first"):
        resolve(config, CELL)
    with pytest.raises(WorkError, match="not fitted"):
        resolve_profile(config | {"profile": profile_of(config, "own")}, TINY, "own")
    assert not budgets.holds(config, TINY, "own") and budgets.holds(config, TINY, "lora")
    assert resolve(config, CELL, fitted=False)["method"]["settings"]["rank"] == 4

    budgets.write_budget(config, TINY, "own")
    resolved = resolve(config, CELL)
    assert resolved["method"]["settings"]["rank"] == 8
    assert resolved["method"]["budget"]["reference"] == "lora"
    assert resolve(config, CELL, {"rank": 3})["method"]["settings"]["rank"] == 3
    profiled = resolve_profile(config | {"profile": profile_of(config, "own")}, TINY, "own")
    assert profiled["method"]["settings"]["rank"] == 8

    # what is told of a method changes nothing; what it is, or is compared with, does
    entry = {**like("lora-sp", "trainable", "lora"), "label": "Another"}
    assert budgets.holds(make(own=entry), TINY, "own")
    for changed in (
        make(own=like("lora-sp", "trainable", "lora", density=0.25)),
        make(own=like("lora-sp", "trainable", "lora-half")),
        make(own=entry, lora={"settings": {"rank": 5}}),
        make({"models": {TINY: {"targets": ["query"]}}}, own=entry),
    ):
        path = budgets.path_of(changed, TINY, "own")
        path.parent.mkdir(parents=True, exist_ok=True)
        budgets.write_budget(config, TINY, "own")
        with pytest.raises(WorkError, match=r"own\.json was fitted from another .*run `"):
            resolve(changed, CELL)


def profile_of(config: dict[str, Any], method: str) -> dict[str, Any]:
    cell = {"model": TINY, "methods": [method], "batch": 8, "length": 32}
    return config["profile"] | {"cells": [cell]}


def test_the_same_answer_is_the_same_file(make: Make) -> None:
    """Snakemake compares what small files hold: then nothing is trained again."""
    config = make(own=like("lora-sp", "trainable", "lora"))
    path = budgets.write_budget(config, TINY, "own")
    before = path.read_bytes()
    path.unlink()
    assert budgets.write_budget(config, TINY, "own").read_bytes() == before


def test_plan_and_report_do_without_a_budget(make: Make) -> None:
    config = make(own=like("lora-sp", "memory", "lora"), lora={})
    jobs = make_plan(config)["jobs"]
    assert {job["method"] for job in jobs if job["stage"] == "train"} == {"own", "lora"}
    for name in ("own", "lora"):
        write_run(config, Cell("smoke", TINY, "mrpc", name, "stated", 0), 50.0)
    # made with its own size, and then the budget says otherwise
    assert set(collect(config).runs["status"]) == {"done"}
    budgets.write_budget(config, TINY, "own")
    runs = collect(config).runs.set_index("method")
    assert runs["status"].to_dict() == {"lora": "done", "own": "outdated"}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (like("lora", "trainable", "loar"), ["methods.own.match", "loar", "lora"]),
        (like("lora", "trainable", "base"), ["methods.own.match.trainable", "trains nothing"]),
        (like("ft", "memory", "lora"), ["methods.own.match.memory", "size", "nothing"]),
        ({**like("lora", "memory", "ft"), "size": "rnk"}, ["methods.own", "size rnk"]),
        (like("lora", "trainable", "lora-sp-time"), ["lora-sp-time", "itself fitted"]),
        ({"like": "lora", "match": {"speed": "lora"}}, ["methods.own.match", "speed", "memory"]),
    ],
)
def test_refusals_of_a_configuration(make: Make, entry: Any, words: list[str]) -> None:
    with pytest.raises(UsageError) as raised:
        make(own=entry)
    assert [word for word in words if word not in str(raised.value)] == [], raised.value


def test_what_a_fresh_clone_is_told_to_run(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The commands in the order in which they work, with the configuration that is meant."""
    methods = {kind: like("lora-sp", kind, "lora") for kind in ("trainable", "memory", "time")}
    config = make(**methods)
    monkeypatch.chdir(tmp_path)
    prepare = f"lorasp prepare --config config/smoke.yaml --model {TINY}"
    for kind in ("trainable", "memory"):
        with pytest.raises(WorkError, match=f"{TINY} is not prepared.*: run `{prepare}` first"):
            budgets.fit(config, TINY, kind)
    with pytest.raises(WorkError, match=rf"lora-sp\.json: run `{prepare} && lorasp profile"):
        budgets.fit(config, TINY, "time")


@pytest.mark.parametrize(
    ("kind", "asked", "achieved", "told"),
    [
        ("trainable", 12345678, 12345678, "gives 12,345,678, lora has 12,345,678 (equal; "),
        ("trainable", 10**6, 10**6 - 1, "gives 999,999, lora has 1,000,000 (under 0.01 % less; "),
        ("memory", 3 * 2**30, 3 * 2**20, "gives 3.00 MiB, lora has 3,072.00 MiB (-99.90 %; peak"),
        ("time", 0.02, 0.03, "gives 30.00 ms, lora has 20.00 ms (+50.00 %; a measured"),
    ],
)
def test_numbers_are_told_in_full(kind: str, asked: float, achieved: float, told: str) -> None:
    budget = {
        **{"method": "own", "model": TINY, "budget": kind, "reference": "lora", "note": None},
        **{"settings": {"density": 0.012345, "rank": 1048576}, "steps": 1.0},
        **{"asked": asked, "achieved": achieved, "off": achieved / asked - 1},
    }
    words = as_text(budget)
    assert words.startswith(f"own on {TINY}: density 0.012345, rank 1048576 {told}")


@pytest.mark.parametrize(
    ("off", "told"),
    [
        (0.0, "equal"),
        (1e-9, "under 0.01 % more"),
        (-9.9e-5, "under 0.01 % less"),
        (1e-4, "+0.01 %"),
        (-0.104, "-10.40 %"),
    ],
)
def test_only_what_is_equal_is_called_so(off: float, told: str) -> None:
    assert off_text(off) == told


def test_refusals_of_a_fit(make: Make) -> None:
    with pytest.raises(UsageError, match=r"methods\.lora has no match"):
        budgets.fit(make(own={"like": "lora"}), TINY, "lora")
    with pytest.raises(UsageError, match=r"needs a profile of own, or .* add it to profile\.cells"):
        make(own=like("lora", "time", "lora-sp", rank=3))
    with pytest.raises(UsageError, match=rf"batch and a length for {TINY}: add the model to"):
        make({"profile": {"cells": []}}, own=like("lora", "memory", "lora-sp"))
    # a method that nothing runs needs no profile
    run = {"models": [TINY], "tasks": ["mrpc"], "recipes": ["stated"], "seeds": [0]}
    keys = {"profile": {"cells": []}, "experiments": [run | {"methods": ["lora"]}]}
    make(keys, own=like("lora", "memory", "lora-sp"))


def test_a_size_with_which_less_is_achieved_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FRoD's sparsity: here trained parameters that fall with the rank stand for it."""
    config = make(own=like("lora", "trainable", "lora-sp", rank=8))
    fitted = budgets.fit(config, TINY, "own")
    plain = budgets.trained_parameters

    def falls(resolved: dict[str, Any], folder: Path) -> int:
        return 10**6 - plain(resolved, folder)

    monkeypatch.setattr(budgets, "trained_parameters", falls)
    with pytest.raises(UsageError, match=r"methods\.own\.size is rank, .* from 8 to 16 .* falls"):
        budgets.fit(config, TINY, "own")
    # the double of 32 is refused by the matrix: half of it is looked at
    with pytest.raises(UsageError, match="from 16 to 32 of it"):
        budgets.fit(make(own=like("lora", "trainable", "lora-sp", rank=32)), TINY, "own")
    assert fitted["settings"]["rank"] == 2


@pytest.mark.parametrize(
    ("recipe", "own", "ratio"),
    [
        # 2 steps an epoch, 3 epochs: 6 steps; 1.7 times as many are 10.2, and 11 are taken
        ({"epochs": 3, "batch_size": 16}, 1 / 1.7, 11 / 6),
        # one of 5 steps in place of 2.5
        ({"epochs": 3, "max_steps": 5, "batch_size": 16}, 2.0, 2 / 5),
    ],
)
def test_the_time_is_that_of_whole_steps(
    make: Make, recipe: dict[str, Any], own: float, ratio: float
) -> None:
    config = make({"recipes": {"stated": recipe}}, own=like("lora-sp", "time", "lora"))
    write_profile(config, TINY, "lora", 0.03, 1000)
    write_profile(config, TINY, "lora-sp", 0.03 * own, 1000)
    folder = Path(f"data/smoke/tokens/{TINY}/mrpc")
    shutil.rmtree(folder, ignore_errors=True)
    before = budgets.fit(config, TINY, "own")
    known = "max_steps" in recipe
    assert (before["achieved"] is None, before["off"] is None) == (not known, not known)
    told = as_text(before)
    step = f"whose step takes 30.00 ms and its own {30 * own:.2f} ms; "
    assert ("gives" in told, step in told) == (known, not known)
    rows = {"train/a.arrow": 20, "train/b.arrow": 12, "validation/a.arrow": 99}
    write_manifest(folder, rows)
    budget = budgets.fit(config, TINY, "own")
    assert token_rows(config, TINY, "mrpc") == 32
    assert budget["achieved"] == pytest.approx(0.03 * own * ratio)
    assert budget["off"] == pytest.approx(own * ratio - 1)
    assert (budget["note"] is None) == (abs(budget["off"]) <= 0.1)
    shutil.rmtree(folder)


def write_manifest(folder: Path, rows: dict[str, int]) -> None:
    files = {name: {"bytes": 1, "sha256": 64 * "0", "rows": count} for name, count in rows.items()}
    inputs = {"dataset": 64 * "0", "model": 64 * "0", "task": {}}
    manifest = {"files": files, "inputs": inputs, "fingerprint": 64 * "0", "revision": 64 * "0"}
    source = {"kind": "tokens", "model": TINY, "task": "mrpc"}
    write_json(folder / "manifest.json", manifest | {"source": source}, "manifest")


def test_the_command(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(own=like("lora-sp", "trainable", "lora"))
    command = ["budget", "--config", "config/own.yaml", "--model", TINY, "--method", "own"]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path(f"results/smoke/budget/{TINY}/own.json").read_text())
    assert main([*command, "--out", "elsewhere.json"]) == 0
    assert "lora_alpha 8, rank 8 gives 1,024, lora has 1,024 (equal; tr" in capsys.readouterr().out
    assert json.loads(Path("elsewhere.json").read_text()) == found
    assert main([*command[:-1], "lora"]) == 2
    assert "has no match" in capsys.readouterr().err


def test_the_examples_of_the_page_are_those_that_ship() -> None:
    page = (ROOT / "docs/budgets.md").read_text()
    blocks = [textwrap.dedent(block) for block in re.findall(r"\n\n((?: {4}.*\n)+)", page)]
    methods, _, sweeps = (yaml.safe_load(b) if "lorasp" not in b else b for b in blocks)
    mini = yaml.safe_load((ROOT / "config/mini.yaml").read_text())
    assert mini["methods"] | methods["methods"] == mini["methods"]
    assert sweeps["sweeps"] == mini["sweeps"][:1]


@pytest.mark.slow
def test_one_run_of_each_budget_and_of_a_sweep(tmp_path: Path) -> None:
    """From nothing to scores by the workflow; then nothing is left to do, until profiles change."""
    copy_checkout(ROOT, tmp_path)
    methods = ["lora-sp-equal", "lora-sp-memory", "lora-sp-time"]
    run = {"models": [TINY], "tasks": ["mrpc"], "recipes": ["stated"], "seeds": [0]}
    over = {"rank": [2], "learning_rate": [1e-3]}
    sweep = {"models": [TINY], "tasks": ["mrpc"], "recipe": "stated", "seeds": [0], "over": over}
    own = {
        "extends": "smoke.yaml",
        "scale": "own",
        "experiments": [run | {"methods": methods}],
        "sweeps": [sweep | {"name": "one", "method": "lora-sp"}],
    }
    (tmp_path / "config/own.yaml").write_text(yaml.safe_dump(own))
    folder = f"results/own/{TINY}/mrpc"
    names = [f"{method}/stated" for method in methods]
    swept = "lora-sp.rank-2/stated.learning_rate-0.001"
    targets = [f"{folder}/{name}/seed-0/metrics.json" for name in (*names, swept)]

    def snakemake(*arguments: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "snakemake", "--cores", "1", *arguments),
                *("--config", "scale=own", "--", *targets),
            ],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    snakemake()
    for target in targets:
        train = json.loads((tmp_path / target).with_name("train.json").read_text())
        resolved = train["config"]
        if "match" not in resolved["method"]:
            assert resolved["method"]["settings"]["rank"] == 2
            continue
        budget = json.loads(
            (tmp_path / "results/own/budget" / TINY / f"{train['cell']['method']}.json").read_text()
        )
        assert resolved["method"]["settings"].items() >= budget["settings"].items()
        assert resolved["recipe"]["epochs"] == pytest.approx(budget["steps"])
    assert "Nothing to be done" in snakemake("--dry-run")
    profile = tmp_path / "results/own/profile" / TINY / "lora.json"
    measured = json.loads(profile.read_text())
    measured["seconds"]["step"]["median"] *= 2
    profile.write_text(json.dumps(measured))
    planned = re.findall(r"wildcards: .*method=([\w.-]+)", snakemake("--dry-run"))
    assert set(planned) == {"lora-sp-time"}
