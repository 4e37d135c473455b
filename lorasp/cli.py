"""The command line, one thin command a stage: `lorasp --help`.

Exit codes: 0 done; 1 the work failed; 2 the arguments or the configuration are wrong.
"""

import argparse
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import yaml

from lorasp import __version__, serve
from lorasp.config import Cell, known, load_config, parse_cell, resolve_method
from lorasp.errors import UsageError, WorkError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # bitsandbytes compiles functions at import that no command here uses, and takes a second for it
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # it warns at import of a 4-bit CPU kernel that it does without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # an exception, so that whatever is half-written is removed on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        options = _parser().parse_args(arguments)
        if options.forwarded(options) and (code := serve.forward(arguments)) is not None:
            return code
        return options.run(options) or 0
    except UsageError as error:
        return _fail(2, str(error))
    except WorkError as error:
        return _fail(1, str(error))
    except BrokenPipeError:  # whoever reads our output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # a full disk, a missing right: the sentence is the system's own, with the file
        return _fail(
            1, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        )
    except SystemExit as error:  # argparse: --help, or a usage error that it has already told
        return int(error.code or 0)
    except Exception as error:
        # safetensors tells a full disk by an exception of its own, torch a full GPU by another
        if type(error).__name__ in ("SafetensorError", "OutOfMemoryError"):
            return _fail(1, " ".join(str(error).split()))
        traceback.print_exc()
        return _fail(1, "this is a defect of lorasp; please report it with the lines above")


def _fail(code: int, sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


def _always(options: argparse.Namespace) -> bool:
    return True


def _never(options: argparse.Namespace) -> bool:
    return False


def _without_hub(options: argparse.Namespace) -> bool:
    """Whether this `prepare` can run in a server, where the hub's clients are switched off."""
    if options.task or not (options.dataset or options.model):
        return True
    config = load_config(options.config)
    kind, name = ("dataset", options.dataset) if options.dataset else ("model", options.model)
    return bool(known(kind, name, config[f"{kind}s"])["source"]["kind"] != "hub")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lorasp", description="Reproduce LoRA-SP (arXiv 2403.08822), stage by stage."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str, forwarded: Any = _never) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, forwarded=forwarded)
        return added

    def with_config(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument("--config", type=Path, required=True, help="config/<scale>.yaml")
        return added

    def with_cell(added: argparse.ArgumentParser) -> None:
        with_config(added)
        for name in ("model", "task", "method", "recipe"):
            added.add_argument(f"--{name}", required=True)
        added.add_argument("--seed", type=int, required=True)
        added.add_argument(
            "--out", type=Path, help="folder of the run (default: its place in results/)"
        )
        added.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="a setting of the method, such as rank=8; needs --out",
        )

    prepare = with_config(
        command(
            "prepare",
            _prepare,
            "fetch or make a data set or model, or tokenise a task",
            _without_hub,
        )
    )
    prepare.add_argument("--dataset", help="a data set of the configuration")
    prepare.add_argument("--model", help="a model; with --task: tokenise that task for it")
    prepare.add_argument("--task")
    train = command("train", _train, "train one run", _always)
    with_cell(train)
    train.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        metavar="N",
        help="sequences computed at a time (default, and 0: the recipe's, else the whole batch)",
    )
    with_cell(command("evaluate", _evaluate, "evaluate one trained run", _always))
    profile = with_config(
        command("profile", _profile, "measure step time and memory of a method on a model", _always)
    )
    profile.add_argument("--model", required=True)
    profile.add_argument("--method", required=True)
    plan = command(
        "plan", _plan, "say what a scale will take before it runs: GPUs, hours, disk", _always
    )
    which = plan.add_mutually_exclusive_group(required=True)
    which.add_argument("--scale", metavar="NAME", help="the same as --config config/NAME.yaml")
    which.add_argument("--config", type=Path)
    plan.add_argument("--only", default="", metavar="NAMES", help="such as mrpc,lora-sp")
    plan.add_argument("--gpu", metavar="TYPE", help="such as h100-80gb (default: the one here)")
    plan.add_argument(
        "--utilisation",
        type=float,
        default=0.35,
        help="share of the GPU's peak that training gets (default 0.35)",
    )
    plan.add_argument("--json", action="store_true")
    plan.add_argument("--out", type=Path, help="write the plan to this file too")
    simulate = command(
        "simulate", _simulate, "memory and operations of a training step, without a GPU", _always
    )
    simulate.add_argument("--config", type=Path, help="take models, methods and runtime from here")
    simulate.add_argument("--model", required=True, help="a public model, or a prepared one")
    simulate.add_argument("--method", required=True)
    simulate.add_argument("--batch", type=int, default=1, help="sequences in a step (default 1)")
    simulate.add_argument("--length", type=int, default=512, help="tokens in each (default 512)")
    simulate.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="everything in this format (default: the runtime of --config, else the paper scale's)",
    )
    simulate.add_argument("--quantize", help="none, nf4 or int8: the frozen base weights")
    simulate.add_argument("--recompute", help="none, full or selective: the activations")
    simulate.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the method, such as rank=8; give --set again for another",
    )
    simulate.add_argument("--json", action="store_true")
    simulate.add_argument(
        "--planned",
        action="store_true",
        help="simulate what --config plans instead; write results/simulated/MODEL/METHOD.json",
    )
    report = with_config(command("report", _report, "write the report of a scale", _always))
    report.add_argument("--out", type=Path, help="folder of the report (default: reports/<scale>)")
    report.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="set two result folders side by side instead: which verdicts changed, and why",
    )
    audit = command("audit", _audit, "check the papers' numbers, equations and labels", _always)
    audit.add_argument(
        "--claims",
        nargs="+",
        default=["lora_sp_2024"],
        metavar="NAME",
        help="shipped claims files by name, others by path (default: lora_sp_2024)",
    )
    audit.add_argument("--json", action="store_true")
    audit.add_argument("--out", type=Path, help="write the findings to this file too")
    doctor = with_config(command("doctor", _doctor, "say whether a scale can run on this machine"))
    doctor.add_argument("--json", action="store_true")
    methods = command("methods", _methods, "list the methods, their sources and settings")
    methods.add_argument("--config", type=Path, help="include the methods of a configuration")
    methods.add_argument("--json", action="store_true")
    bench = command("bench", _bench, "measure the suite itself: pipeline times whole smoke runs")
    bench.add_argument("name", choices=("pipeline",))
    bench.add_argument("--repeats", type=int, default=3)
    bench.add_argument("--cores", type=int, default=2)
    bench.add_argument("--json", action="store_true")
    server = command("serve", _serve, "run a command with the imports of its lorasp jobs shared")
    server.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    return parser


def _prepare(options: argparse.Namespace) -> None:
    chosen = {key for key in ("dataset", "model", "task") if getattr(options, key) is not None}
    if chosen not in ({"dataset"}, {"model"}, {"model", "task"}):
        raise UsageError(
            "prepare takes --dataset NAME, or --model NAME, or --model NAME --task NAME"
        )
    from lorasp.data import prepare

    config = load_config(options.config)
    if options.dataset:
        done = prepare.prepare_dataset(config, options.dataset)
    elif options.task:
        serve.offline()
        done = prepare.prepare_tokens(config, options.model, options.task)
    else:
        done = prepare.prepare_model(config, options.model)
    print(done)


def _cell(options: argparse.Namespace) -> tuple[dict[str, Any], Cell, dict[str, Any]]:
    config = load_config(options.config)
    if options.set and not options.out:
        raise UsageError("--set makes another method than the one named: give --out FOLDER too")
    out = options.out
    if out and out.exists() and any(out.iterdir()) and not (out / "train.json").exists():
        raise UsageError(f"--out {out} holds files of something else; name a new folder")
    return config, parse_cell(config, vars(options)), _settings(options.set)


def _settings(pairs: list[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {pair!r}: write KEY=VALUE, for instance --set rank=8")
        try:
            settings[key] = value.split(",") if key == "targets" else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {pair!r}: the value is not YAML") from error
    return settings


def _train(options: argparse.Namespace) -> None:
    config, cell, settings = _cell(options)
    if options.micro_batch < 0:
        raise UsageError(f"--micro-batch is {options.micro_batch}; allowed is a number from 1")
    serve.offline()
    from lorasp.training.train import train_cell

    print(train_cell(config, cell, settings, options.out, options.micro_batch or None))


def _evaluate(options: argparse.Namespace) -> None:
    config, cell, settings = _cell(options)
    serve.offline()
    from lorasp.evaluation.evaluate import evaluate_cell

    print(evaluate_cell(config, cell, settings, options.out))


def _profile(options: argparse.Namespace) -> None:
    config = load_config(options.config)
    serve.offline()
    from lorasp.profiling.measure import profile_cell

    print(profile_cell(config, options.model, options.method))


def _plan(options: argparse.Namespace) -> None:
    config = load_config(options.config or Path("config", f"{options.scale}.yaml"))
    serve.offline()
    from lorasp.planning.plan import make_plan, write_plan
    from lorasp.planning.text import as_text

    plan = make_plan(config, options.only, options.gpu, options.utilisation)
    if options.out:
        write_plan(options.out, plan)
    print(json.dumps(plan, indent=1) if options.json else as_text(plan))


def _simulate(options: argparse.Namespace) -> None:
    config = load_config(options.config) if options.config else None
    if min(options.batch, options.length) < 1:
        raise UsageError("--batch and --length must be at least 1")
    serve.offline()
    from lorasp.profiling import simulations

    if options.planned:
        if config is None:
            raise UsageError("--planned needs --config, such as config/simulated.yaml")
        print(simulations.simulate_cells(config, options.model, options.method))
        return
    held = {key: getattr(options, key) for key in ("quantize", "recompute")}
    settings = _settings(options.set) | {key: value for key, value in held.items() if value}
    shape = (options.batch, options.length)
    resolved, folder = simulations.ask(
        options.model, options.method, shape, options.dtype, settings, config
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


def _report(options: argparse.Namespace) -> None:
    config = load_config(options.config)
    if options.compare:
        from lorasp.report.compare import write_comparison

        print(write_comparison(config, tuple(options.compare), options.out))
        return
    from lorasp.report import write_report

    print(write_report(config, options.out))


def _audit(options: argparse.Namespace) -> None:
    serve.offline()
    from lorasp.claims.audit import as_text, audit, write_audit

    findings = audit(options.claims)
    if options.out:
        write_audit(options.out, options.claims, findings)
    print(json.dumps(findings, indent=1) if options.json else as_text(findings))


def _doctor(options: argparse.Namespace) -> None:
    from lorasp.doctor import examine, refusal

    config = load_config(options.config)
    findings = examine(config)
    if options.json:
        print(json.dumps(findings, indent=1))
    else:
        for finding in findings:
            state = "ok     " if finding["met"] else "missing"
            print(f"{state} {finding['what']}: {finding['found']}")
    if sentence := refusal(config, findings):
        raise WorkError(sentence)


def _methods(options: argparse.Namespace) -> None:
    config = load_config(options.config) if options.config else None
    if config is None:
        from lorasp.config import METHODS

        config = {"methods": yaml.safe_load(METHODS.read_text())}
    listed = [resolve_method(config, name) for name in config["methods"]]
    if options.json:
        keys = ("name", "family", "label", "source", "settings", "trainable_rule")
        print(json.dumps([{key: method[key] for key in keys} for method in listed], indent=1))
        return
    for method in listed:
        settings = " ".join(f"{key}={value}" for key, value in method["settings"].items())
        print(f"{method['name']:16} {method['family']:8} {method['trainable_rule']}")
        print(f"{'':16} {method['source']}" + (f"\n{'':16} {settings}" if settings else ""))


def _bench(options: argparse.Namespace) -> None:
    if options.repeats < 1 or options.cores < 1:
        raise UsageError("--repeats and --cores must be at least 1")
    from lorasp.bench import pipeline

    figures = pipeline(options.repeats, options.cores)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"{figures['what']}: median {figures['median_seconds']:.0f} s")
    for rule, seconds in figures["seconds_in_jobs"].items():
        print(f"{seconds:8.1f} s in {rule}")


def _serve(options: argparse.Namespace) -> int:
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError("serve needs a command: lorasp serve -- snakemake --cores all")
    return serve.serve(command, main)
