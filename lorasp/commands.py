"""What each command does with its arguments; a stage is imported once they have been checked."""

import argparse
import json
import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml

from lorasp import gpus
from lorasp import serve as server
from lorasp.config import Cell, Config, known, load_config, parse_cell, resolve_method
from lorasp.errors import UsageError, WorkError
from lorasp.locks import exclusively
from lorasp.methods import table
from lorasp.plugins import left_out
from lorasp.results import read_json, write_json

# it warns at import of a 4-bit CPU kernel that it does without
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
# a step that cannot be simulated is told in a sentence, and not by a traceback too
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)


def prepare(options: argparse.Namespace) -> None:
    chosen = {key for key in ("dataset", "model", "task") if getattr(options, key) is not None}
    if chosen not in ({"dataset"}, {"model"}, {"model", "task"}):
        raise UsageError(
            "prepare takes --dataset NAME, or --model NAME, or --model NAME --task NAME"
        )
    from lorasp.data.prepare import prepare_dataset, prepare_model, prepare_tokens

    config = load_config(options.config)
    if options.dataset:
        done = prepare_dataset(config, options.dataset)
    elif options.task:
        server.offline()
        done = prepare_tokens(config, options.model, options.task)
    else:
        done = prepare_model(config, options.model)
    print(done)


def needs_hub(options: argparse.Namespace) -> bool:
    """Whether this `prepare` fetches from the hub."""
    if options.task or not (options.dataset or options.model):
        return False
    config = load_config(options.config)
    kind, name = ("dataset", options.dataset) if options.dataset else ("model", options.model)
    return bool(known(kind, name, config[f"{kind}s"])["source"]["kind"] == "hub")


def train(options: argparse.Namespace) -> None:
    config, cell, changed = _cell(options)
    if options.micro_batch < 0:
        raise UsageError(f"--micro-batch is {options.micro_batch}; allowed is a number from 1")
    if options.processes < 0:
        raise UsageError(f"--processes is {options.processes}; allowed is a number from 0")
    server.offline()
    micro_batch = options.micro_batch or None
    trained = config["methods"][cell.method]["family"] != "base"
    processes = options.processes if trained else 1
    # no other process trains or evaluates the run meanwhile
    alone = exclusively((options.out or cell.folder) / ".lock")
    with alone, _gpus(config, cell.model, processes):
        if processes > 1:
            from lorasp.training.launch import train_on_several

            place = (config, cell, changed, options.out, micro_batch)
            print(train_on_several(processes, *place))
            return
        from lorasp.training.train import train_cell

        print(train_cell(config, cell, changed, options.out, micro_batch))


def evaluate(options: argparse.Namespace) -> None:
    config, cell, changed = _cell(options)
    server.offline()
    folder = options.out or cell.folder
    alone = exclusively(folder / ".lock") if folder.is_dir() else nullcontext()
    with alone, _gpus(config, cell.model):
        from lorasp.evaluation.evaluate import evaluate_cell

        print(evaluate_cell(config, cell, changed, options.out))


def _gpus(config: Config, model: str, wanted: int = 1) -> AbstractContextManager[Any]:
    """The devices of a job, its own; to be taken before an import starts CUDA."""
    return gpus.claim(max(1, wanted)) if _on_gpu(config, model) else nullcontext()


def _on_gpu(config: Config, model: str | None) -> bool:
    runtime = config["runtime"]
    if model:
        runtime = runtime | known("model", model, config["models"]).get("runtime", {})
    return bool(runtime["device"] == "cuda")


def needs_gpu(options: argparse.Namespace) -> bool:
    """Whether this command computes on a GPU, or asks which there is."""
    return _on_gpu(_config_of(options), getattr(options, "model", None))


def _config_of(options: argparse.Namespace) -> Config:
    """The configuration that a command names, by its file or its scale."""
    return load_config(options.config or Path("config", f"{options.scale}.yaml"))


def _cell(options: argparse.Namespace) -> tuple[Config, Cell, dict[str, Any]]:
    config = load_config(options.config)
    if options.set and not options.out:
        raise UsageError("--set makes another method than the one named: give --out FOLDER too")
    out = options.out
    ours = out and ((out / "train.json").exists() or (out / ".lock").exists())
    if out and any(out.glob("[!.]*")) and not ours:
        raise UsageError(f"--out {out} holds files of something else; name a new folder")
    return config, parse_cell(config, vars(options)), settings(options.set)


def settings(pairs: list[str]) -> dict[str, Any]:
    """What --set gives, each value as YAML reads it; UsageError for what is no KEY=VALUE."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {pair!r}: write KEY=VALUE, for instance --set rank=8")
        try:
            found[key] = value.split(",") if key == "targets" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {pair!r}: the value is not YAML") from error
    return found


def profile(options: argparse.Namespace) -> None:
    config = load_config(options.config)
    server.offline()
    with _gpus(config, options.model):
        from lorasp.profiling.measure import profile_cell

        print(profile_cell(config, options.model, options.method))


def budget(options: argparse.Namespace) -> None:
    config = load_config(options.config)
    server.offline()
    from lorasp.budget_words import as_text
    from lorasp.budgets import write_budget

    path = write_budget(config, options.model, options.method, options.out)
    found = read_json(path, "budget")
    print(json.dumps(found, indent=1) if options.json else f"{path}\n{as_text(found)}")


def plan(options: argparse.Namespace) -> None:
    config = _config_of(options)
    server.offline()
    from lorasp.planning.plan import make_plan, write_plan
    from lorasp.planning.text import as_text

    made = make_plan(config, options.only, options.gpu, options.utilisation)
    if options.out:
        write_plan(options.out, made)
    print(json.dumps(made, indent=1) if options.json else as_text(made))


def simulate(options: argparse.Namespace) -> None:
    if min(options.batch, options.length) < 1:
        raise UsageError("--batch and --length must be at least 1")
    if options.planned and not options.config:
        raise UsageError("--planned needs --config, such as config/simulated.yaml")
    config = load_config(options.config) if options.config else None
    held = {key: getattr(options, key) for key in ("quantize", "recompute")}
    changed = settings(options.set) | {key: value for key, value in held.items() if value}
    server.offline()
    from lorasp.profiling import simulations

    if config and options.planned:
        print(simulations.simulate_cells(config, options.model, options.method))
        return
    shape = (options.batch, options.length)
    resolved, folder = simulations.ask(
        options.model, options.method, shape, options.dtype, changed, config
    )
    step = simulations.simulation(resolved, folder)
    if not options.json:
        print(simulations.as_text(resolved, step))
        return
    counts = {f"{name}_parameters": n for name, n in step["parameters"].items()}
    asked = {"model": options.model, "method": options.method, **resolved["profile"]}
    asked |= {"settings": resolved["method"]["settings"], "runtime": resolved["runtime"]}
    found = {key: value for key, value in step.items() if key != "parameters"}
    print(json.dumps(asked | found | counts, indent=1))


def report(options: argparse.Namespace) -> None:
    config = load_config(options.config)
    if options.compare:
        from lorasp.report.compare import write_comparison

        print(write_comparison(config, tuple(options.compare), options.out))
        return
    from lorasp.report import write_report

    print(write_report(config, options.out))


def audit(options: argparse.Namespace) -> None:
    server.offline()
    from lorasp.claims import audit as stage

    findings = stage.audit(options.claims)
    if options.out:
        stage.write_audit(options.out, options.claims, findings)
    print(json.dumps(findings, indent=1) if options.json else stage.as_text(findings))


def doctor(options: argparse.Namespace) -> None:
    from lorasp import survey
    from lorasp.doctor import examine, refusal

    if options.config is None:
        found = survey.survey(options.gpu)
        print(json.dumps(found, indent=1) if options.json else survey.as_text(found))
        return
    config = load_config(options.config)
    findings = examine(config)
    if options.json:
        print(json.dumps(findings, indent=1))
    else:
        for finding in findings:
            state = "ok     " if finding["met"] else "missing"
            print(f"{state} {finding['what']}: {finding['found']}")
            if not finding["met"]:
                print(f"mend    {finding['mend']}")
    if sentence := refusal(config, findings):
        raise WorkError(sentence)


def methods(options: argparse.Namespace) -> None:
    config = load_config(options.config) if options.config else None
    if config is None:
        config = {"methods": table()}
    if options.word == "check":
        _check_methods(config, options)
        return
    if options.word == "new":
        from lorasp.new_method import write_project

        name = options.name or options.folder.resolve().name
        print(*write_project(options.folder, name, config["methods"]), sep="\n")
        return
    server.offline()
    from lorasp import listing

    for sentence in left_out(config["methods"]):
        print(sentence, file=sys.stderr)
    rows = listing.listing(config, options.model, options.cost)
    print(json.dumps(rows, indent=1) if options.json else listing.as_text(rows))


def _check_methods(config: Config, options: argparse.Namespace) -> None:
    """Print how the methods do in each check; WorkError where one of them failed.

    Of all methods those that pass have a line each, the others a table, and the last lines sum up.
    """
    whole = options.names == ["all"]
    every = list(config["methods"]) if whole else options.names
    for name in every:
        try:
            known("method", name, config["methods"])
        except UsageError as error:
            hint = "" if options.config else "; a configuration's own are found with --config FILE"
            raise UsageError(f"{error}{hint}") from error
    server.offline()
    from lorasp.conformance.run import as_text, check_everywhere, line, summary

    found: list[dict[str, str]] = []
    for name in every:
        outcomes = check_everywhere(resolve_method(config, name))
        found += outcomes
        if options.json:
            continue
        if whole and {one["outcome"] for one in outcomes} <= {"passed", "not applicable"}:
            print(line(name, outcomes), flush=True)
        else:
            print(as_text(f"{name}: {config['methods'][name]['label']}", outcomes), end="\n\n")
    if options.json:
        print(json.dumps(found, indent=1))
    elif whole:
        print(summary(found))
    if failed := sorted({one["method"] for one in found if one["outcome"] == "failed"}):
        raise WorkError(f"{len(failed)} of {len(every)} methods failed: {', '.join(failed)}")


def bench(options: argparse.Namespace) -> None:
    for name in ("rounds", "cores"):
        if (number := getattr(options, name)) is not None and number < 1:
            raise UsageError(f"--{name} is {number}; allowed is a whole number from 1")
    out, every = options.out, options.name == "all"
    if out and (out.is_file() if every else out.is_dir()):
        needed = (
            "the folder of all answers" if every else f"a file, such as {out / options.name}.json"
        )
        raise UsageError(f"--out {out} is a {'file' if every else 'folder'}; name {needed}")
    server.offline()
    from lorasp.bench.measure import as_text
    from lorasp.bench.run import refuse_broken, run, run_all

    if every:
        run_all(options.rounds, options.cores, options.json, out)
        return
    found = run(options.name, options.rounds, options.cores)
    print(json.dumps(found, indent=1) if options.json else as_text(found))
    refuse_broken(found, out)
    if out:
        write_json(out, found, "bench")


def serve(options: argparse.Namespace) -> int:
    command = _command(options)
    from lorasp.cli import main

    return server.serve(command, main)


def rehearse(options: argparse.Namespace) -> int:
    command, config = _command(options), load_config(options.config)
    from lorasp.rehearsal.run import rehearse as run

    return run(command, config)


def _command(options: argparse.Namespace) -> list[str]:
    """What stands behind `--`; UsageError where nothing does."""
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError(
            f"{options.stage} needs a command: lorasp {options.stage} -- snakemake --cores all"
        )
    return command


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    command.__name__: command
    for command in (
        *(prepare, train, evaluate, profile, budget, plan, simulate),
        *(report, audit, doctor, methods, bench, rehearse, serve),
    )
}
