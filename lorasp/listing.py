"""All methods with what they train on a model, and what a step of them costs beside LoRA's.

lorasp methods --model llama-7b --cost
"""

import os
import signal
import sys
import warnings
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from lorasp.config import Config, resolve_method
from lorasp.errors import UsageError
from lorasp.methods import GROUPS
from lorasp.profiling.simulations import ask, simulation
from lorasp.results import fingerprint

MODEL, SHAPE = "roberta-base", (16, 128)  # of the table by default, and of its step: batch, length
REFERENCE = "lora"
WORKERS = 8
DEAR = ("FROD", "ADAMSS", "SHIRA")  # families that work on the values of weights for seconds
DRAWN = 500_000_000  # parameters of the largest model whose weights are drawn only to be counted
TITLES = {
    "paper": "The paper's methods",
    "ablation": "LoRA-SP with one setting changed",
    "peer": "Its peers",
    "peft": "PEFT's",
    "own": "Your own",
}
HEAD_TOO = ", and the classification head"  # of a rule, where the model has one
KEYS = ("name", "family", "label", "source", "settings", "trainable_rule", "group")
Row = dict[str, Any]
TOTALS: dict[str, int] = {}  # parameters of models without an adapter, counted in this process


class Question(NamedTuple):
    """A method on a model; `cost`: whether its step is simulated too."""

    model: str
    method: str
    config: Config
    given: bool  # whether the configuration is somebody's, with models of its own
    cost: bool


def listing(config: Config, model: str = MODEL, cost: bool = False) -> list[Row]:
    """A row for each method of a configuration (or of the table alone), group by group.

    `parameters` are what it trains on the model: `trainable`, the `head` of it, and the `share` of
    the model without an adapter; `cost` the `peak_bytes` and `flops` of a simulated step and their
    ratios to LoRA's. Either is None where there is none, and `why` says then why.

    Raises UsageError for a model neither public nor prepared.
    """
    given = "models" in config
    ask(model, REFERENCE, SHAPE, config=config if given else None)
    names = sorted(config["methods"], key=lambda name: _group(config, name))  # a stable order
    rows = _answers([Question(model, name, config, given, cost) for name in names])
    lora = next((dict(row["cost"] or {}) for row in rows if row["name"] == REFERENCE), {})
    for row in rows:
        if row["cost"] and lora:
            row["cost"] |= {f"{key}_to_lora": row["cost"][key] / lora[key] for key in lora}
    return rows


def _group(config: Config, name: str) -> int:
    return GROUPS.index(config["methods"][name]["group"])


def _answers(questions: list[Question]) -> list[Row]:
    step = ", and simulating a step of each" if questions[0].cost else ""
    print(
        f"counting what {len(questions)} methods train on {questions[0].model}{step}: "
        f"{'a minute or more the first time' if step else 'half a minute'}",
        file=sys.stderr,
        flush=True,
    )
    workers = min(os.cpu_count() or 1, WORKERS) if sys.platform == "linux" else 1
    import lorasp.profiling.simulate  # noqa: F401  # once, before the processes fork

    def shown(rows: Any) -> Any:
        # a bar is for who looks on
        hidden = None if sys.stderr.isatty() else True
        bar = {"total": len(questions), "desc": "methods", "delay": 3, "file": sys.stderr}
        return tqdm(rows, disable=hidden, **bar)

    if workers < 2:
        return list(shown(map(_answer, questions)))
    # what takes longest begins first, so that nobody waits for it in the end
    order = sorted(range(len(questions)), key=lambda place: not _is_dear(questions[place]))
    with get_context("fork").Pool(workers, _one_thread) as pool:
        rows = list(shown(pool.imap(_answer, [questions[place] for place in order])))
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]


def _one_thread() -> None:
    """Each worker has a core of its own, and ends when the pool says so."""
    import torch

    # the command's own handler raises, and a worker that is past hearing it would never end
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def _is_dear(question: Question) -> bool:
    return question.config["methods"][question.method]["family"] in DEAR


def _answer(question: Question) -> Row:
    method = resolve_method(question.config, question.method)
    row: Row = {key: method[key] for key in KEYS}
    row |= {
        "applies_to": method.get("applies_to", ["encoder", "seq2seq", "causal"]),
        "because": method.get("because"),
        "interpretation": method.get("interpretation"),
        "model": question.model,
        "parameters": None,
        "cost": None,
        "why": None,
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of what a method cannot do: no news in a list
            resolved, folder = _resolved(question, method)
            row["parameters"] = counted(resolved, folder)
            if question.cost and method["family"] != "base":
                step = simulation(resolved, folder)
                row["cost"] = {key: step[key] for key in ("peak_bytes", "flops")}
    except UsageError as error:
        row["why"] = str(error)
    return row


def _resolved(question: Question, method: dict[str, Any]) -> tuple[dict[str, Any], Path | None]:
    config = question.config if question.given else None
    resolved, folder = ask(question.model, REFERENCE, SHAPE, config=config)
    return {**resolved, "method": method}, folder


def counted(resolved: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """What a method trains of a model: `trainable`, its `head`, the `share` of the model.

    Args:
        resolved: as for `simulate`.
        folder: of a prepared model, None for a public one.
    """
    from lorasp.adapters.registry import apply_method, count_parameters
    from lorasp.profiling.simulate import VALUES_WANTED, adapted, without_residual
    from lorasp.profiling.step import optimizer_of

    resolved = without_residual(resolved)
    total = total_of(resolved, folder)
    try:
        network = adapted(resolved, folder)
    except VALUES_WANTED as error:
        name = resolved["method"]["name"]
        if total > DRAWN:
            raise UsageError(
                f"method {name} looks at the values of weights, which nobody draws for a model of "
                f"{total:,} parameters to count it: what it trains is {rule_of(resolved)}"
            ) from error
        network = apply_method(_with_values(resolved, folder), resolved)
    if resolved["method"]["family"] not in ("base", "full"):
        optimizer_of(network, resolved, fused=False)  # LoRA-FA's freezes what it does not move
    trained = [
        (name, weight) for name, weight in network.named_parameters() if weight.requires_grad
    ]
    found = count_parameters(network)["trainable"]
    head = sum(weight.numel() for name, weight in trained if "classifier." in name)
    return {"trainable": found, "head": head, "share": found / total}


def rule_of(resolved: dict[str, Any]) -> str:
    return str(resolved["method"]["trainable_rule"])


def total_of(resolved: dict[str, Any], folder: Path | None) -> int:
    """The parameters of the model without an adapter; counted once a process."""
    from lorasp.adapters.registry import count_parameters, quantize_of
    from lorasp.profiling.simulate import skeleton

    asked = {key: resolved[key] for key in ("model", "runtime")}
    key = fingerprint({**asked, "quantize": quantize_of(resolved), "folder": str(folder)})
    if key not in TOTALS:
        TOTALS[key] = count_parameters(skeleton(resolved, folder))["total"]
    return TOTALS[key]


def _with_values(resolved: dict[str, Any], folder: Path | None) -> Any:
    """The model with random weights where the method adapts it, and zeros elsewhere."""
    import torch
    from peft.tuners.tuners_utils import check_target_module_exists

    from lorasp.adapters.configure import peft_config
    from lorasp.profiling.simulate import skeleton

    generator = torch.Generator().manual_seed(0)
    config = peft_config(resolved)
    network: Any = skeleton(resolved, folder).to_empty(device="cpu")
    for name, weight in network.named_parameters():
        weight.data = torch.zeros_like(weight)  # takes no memory until it is looked at
        if check_target_module_exists(config, name.rpartition(".")[0]):
            weight.data.normal_(0, 0.02, generator=generator)
    return network


def as_text(rows: list[Row]) -> str:
    """The table for a terminal: a line of numbers for each method, and below it what it is."""
    width = max(len(row["name"]) for row in rows)
    cost = any(row["cost"] for row in rows)
    lines = [_heading(rows[0]["model"], width, cost)]
    for group in GROUPS:
        chosen = [row for row in rows if row["group"] == group]
        if chosen:
            lines += ["", f"{TITLES[group]} ({len(chosen)})"]
        for row in chosen:
            lines += _lines(row, width, cost)
    return "\n".join(lines)


def _heading(model: str, width: int, cost: bool) -> str:
    dear = "   memory  operations" if cost else ""
    beside = ", a step beside LoRA's" if cost else ""
    return (
        f"What each method trains on {model}, of it the head's, its share of the model{beside}\n\n"
        f"{'':{width}}  {'trained':>13}{'head':>12}{'share':>10}{dear}"
    )


def _lines(row: Row, width: int, cost: bool) -> list[str]:
    numbers = f"{'-':>13}{'-':>12}{'-':>10}"
    if found := row["parameters"]:
        numbers = f"{found['trainable']:13,}{found['head']:12,}{found['share']:10.3%}"
    if cost and row["cost"] and "flops_to_lora" in row["cost"]:
        numbers += f"{row['cost']['peak_bytes_to_lora']:9.2f}{row['cost']['flops_to_lora']:12.2f}"
    elif cost:
        numbers += f"{'-':>9}{'-':>12}"
    elsewhere = f"{', '.join(row['applies_to'])} alone: {row['because']}" if row["because"] else ""
    rule = row["trainable_rule"]
    if found and not found["head"]:
        rule = rule.replace(HEAD_TOO, "")
    settings = " ".join(f"{key}={value}" for key, value in row["settings"].items())
    told = [
        f"{row['label']}: {row['source']}",
        f"trains {rule}",
        settings,
        elsewhere,
        row["interpretation"] and f"an interpretation: {row['interpretation']}",
        "" if elsewhere else row["why"],
    ]
    return [
        f"{row['name']:{width}}  {numbers}",
        *(f"{'':{width}}  {text}" for text in told if text),
    ]
