"""What the command line takes: every command with its arguments, and nothing imported for it."""

import argparse
from pathlib import Path

from lorasp import __version__
from lorasp.bench import BENCHES

QUANTIZE = ("none", "nf4", "int8", "nf4-residual", "int8-residual")
RECOMPUTE = ("none", "full", "selective")


def parser() -> argparse.ArgumentParser:
    """The parser; `stage` is the name of the command in what it parses."""
    made = argparse.ArgumentParser(
        prog="lorasp", description="Reproduce LoRA-SP (arXiv 2403.08822), stage by stage."
    )
    made.add_argument("--version", action="version", version=__version__)
    commands = made.add_subparsers(dest="stage", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    _prepare(command("prepare", "fetch or make a data set or model, or tokenise a task"))
    _train(command("train", "train one run"))
    _cell(command("evaluate", "evaluate one trained run"))
    _profile(command("profile", "measure step time and memory of a method on a model"))
    _budget(
        command("budget", "give a method as many parameters, as much memory or time as another")
    )
    _plan(command("plan", "say what a scale will take before it runs: GPUs, hours, disk"))
    _simulate(command("simulate", "memory and operations of a training step, without a GPU"))
    _report(command("report", "write the report of a scale"))
    _audit(command("audit", "check the papers' numbers, equations and labels"))
    _doctor(command("doctor", "say what this machine can run, what is missing, and what mends it"))
    _methods(command("methods", "list the methods and what each trains; check or begin one"))
    _bench(command("bench", "measure the suite beside what people use today, side by side"))
    rehearsal = command("rehearse", "run a command with a stand-in for the Hugging Face hub")
    rehearsal.add_argument("--config", type=Path, default=Path("config/rehearse.yaml"))
    rehearsal.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    server = command("serve", "run a command with the imports of its lorasp jobs shared")
    server.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND …")
    return made


def _config(added: argparse.ArgumentParser) -> None:
    added.add_argument("--config", type=Path, required=True, help="config/<scale>.yaml")


def _json(added: argparse.ArgumentParser) -> None:
    added.add_argument("--json", action="store_true", help="print the answer as JSON, alone")


def _set(added: argparse.ArgumentParser, text: str) -> None:
    added.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def _cell(added: argparse.ArgumentParser) -> None:
    _config(added)
    for name in ("model", "task", "method", "recipe"):
        added.add_argument(f"--{name}", required=True)
    added.add_argument("--seed", type=int, required=True)
    added.add_argument(
        "--out", type=Path, help="folder of the run (default: its place in results/)"
    )
    _set(added, "a setting of the method, such as rank=8; needs --out")


def _prepare(added: argparse.ArgumentParser) -> None:
    _config(added)
    added.add_argument("--dataset", help="a data set of the configuration")
    added.add_argument("--model", help="a model; with --task: tokenise that task for it")
    added.add_argument("--task")


def _train(added: argparse.ArgumentParser) -> None:
    _cell(added)
    added.add_argument(
        "--micro-batch",
        type=int,
        default=0,
        metavar="N",
        help="sequences computed at a time (default, and 0: the recipe's, else the whole batch)",
    )
    added.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="devices that share the rows of each step, and the weights (default 1)",
    )


def _profile(added: argparse.ArgumentParser, which: str = "a method of the configuration") -> None:
    _config(added)
    added.add_argument("--model", required=True, help="a model of the configuration")
    added.add_argument("--method", required=True, help=which)


def _budget(added: argparse.ArgumentParser) -> None:
    _profile(added, "a method that says, by match, what it is to have as much of, and as which")
    added.add_argument(
        "--out",
        type=Path,
        help="the file (default: results/<scale>/budget/<model>/<method>.json)",
    )
    _json(added)


def _plan(added: argparse.ArgumentParser) -> None:
    which = added.add_mutually_exclusive_group(required=True)
    which.add_argument("--scale", metavar="NAME", help="the same as --config config/NAME.yaml")
    which.add_argument("--config", type=Path)
    added.add_argument("--only", default="", metavar="NAMES", help="such as mrpc,lora-sp")
    added.add_argument("--gpu", metavar="TYPE", help="such as h100-80gb (default: the one here)")
    added.add_argument(
        "--utilisation",
        type=float,
        default=0.35,
        help="share of the GPU's peak that training gets (default 0.35)",
    )
    _json(added)
    added.add_argument("--out", type=Path, help="write the plan to this file too")


def _simulate(added: argparse.ArgumentParser) -> None:
    added.add_argument("--config", type=Path, help="take models, methods and runtime from here")
    added.add_argument("--model", required=True, help="a public model, or a prepared one")
    added.add_argument("--method", required=True)
    added.add_argument("--batch", type=int, default=1, help="sequences in a step (default 1)")
    added.add_argument("--length", type=int, default=512, help="tokens in each (default 512)")
    added.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="everything in this format (default: the runtime of --config, else the paper scale's)",
    )
    added.add_argument("--quantize", choices=QUANTIZE, help="the frozen base weights")
    added.add_argument("--recompute", choices=RECOMPUTE, help="the activations")
    _set(added, "a setting of the method, such as rank=8; give --set again for another")
    _json(added)
    added.add_argument(
        "--planned",
        action="store_true",
        help="simulate what --config plans instead; write results/simulated/MODEL/METHOD.json",
    )


def _report(added: argparse.ArgumentParser) -> None:
    _config(added)
    added.add_argument("--out", type=Path, help="folder of the report (default: reports/<scale>)")
    added.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("A", "B"),
        help="set two result folders side by side instead: which verdicts changed, and why",
    )


def _audit(added: argparse.ArgumentParser) -> None:
    added.add_argument(
        "--claims",
        nargs="+",
        default=["lora_sp_2024"],
        metavar="NAME",
        help="shipped claims files by name, others by path (default: lora_sp_2024)",
    )
    _json(added)
    added.add_argument("--out", type=Path, help="write the findings to this file too")


def _doctor(added: argparse.ArgumentParser) -> None:
    which = added.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, help="one scale alone; exit code 1 if it cannot run")
    which.add_argument("--gpu", metavar="TYPE", help="such as h100-80gb (default: the one here)")
    _json(added)


def _methods(added: argparse.ArgumentParser) -> None:
    added.add_argument("--config", type=Path, help="its methods too, such as config/own.yaml")
    added.add_argument("--model", default="roberta-base", help="to count on (default roberta-base)")
    added.add_argument(
        "--cost", action="store_true", help="simulate a step of each too: a minute, once"
    )
    _json(added)
    words = added.add_subparsers(dest="word", metavar="check | new")
    text = "put methods through the tests of conformance, on tiny models; exit code 1 if one fails"
    check = words.add_parser("check", help=text, description=text)
    check.add_argument("names", nargs="+", metavar="NAME", help="a method, or all for every one")
    # left out here, what was given before the word holds
    check.add_argument(
        "--config",
        type=Path,
        default=argparse.SUPPRESS,
        help="its methods too, such as config/own.yaml",
    )
    check.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS,
        help="print outcomes as JSON alone",
    )
    text = "write a small project with a method of your own, to begin from"
    new = words.add_parser("new", help=text, description=text)
    new.add_argument("folder", type=Path, metavar="FOLDER", help="a new one, for the project")
    new.add_argument("--name", help="the method's name (default: the folder's)")


def _bench(added: argparse.ArgumentParser) -> None:
    added.add_argument("name", choices=(*BENCHES, "all"), help="which, or all of them in turn")
    added.add_argument("--rounds", type=int, metavar="N", help="default: the bench's own")
    added.add_argument(
        "--cores", type=int, default=2, metavar="N", help="threads or jobs (default 2)"
    )
    _json(added)
    added.add_argument(
        "--out",
        type=Path,
        help="write the answer to this file too; of all: to files in this folder",
    )
