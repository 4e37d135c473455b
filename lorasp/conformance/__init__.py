"""The tests that every method goes through, on a tiny model of each architecture.

lorasp methods check lora-sp
"""

import warnings
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from lorasp.adapters.configure import refuse_architecture
from lorasp.errors import UsageError
from lorasp.plugins import told_of

from . import keeping, learning, start
from .subject import SHAPES, Failed, NotApplicable, Subject

Outcome = dict[str, str]
ARCHITECTURES = tuple(SHAPES)
# In the order of a method's life. Each returns what it has seen, or raises Failed or NotApplicable.
CHECKS: dict[str, Callable[[Subject], str]] = {
    check.__name__.replace("_", " "): check
    for check in (
        *(start.builds, start.runs, start.refuses_unknown, start.starts_at_base, start.is_seeded),
        *(learning.leaves_the_base, learning.trains_all, learning.lowers_the_loss),
        *(learning.works_in_bf16, learning.takes_any_batch, learning.recomputes),
        *(keeping.saves_and_loads, keeping.is_compact, keeping.disables, keeping.merges),
        *(keeping.resumes, start.counts, start.grows, start.has_costs),
    )
}
# Where one of these fails, the later ones would fail of the same.
ENDS = {"builds": "it cannot be built", "runs": "it does not run"}


def check(method: dict[str, Any], architecture: str) -> list[Outcome]:
    """Put a resolved method through every check on the tiny model of an architecture.

    Args:
        method: as `config.resolve_method` returns it.
        architecture: encoder, seq2seq or causal.

    Returns:
        For each check: its name, the architecture, the outcome (passed, failed, excused or not
        applicable) and because: what was seen, or for a failure also what was expected and what to
        do. A method that cannot be built, or does not run, fails in that alone. Excused is a
        failure of a check that the entry's `limits` names; an error of the method's code only if it
        has the words that `limits` says under `raises`.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # faster on models of this size, and the same sums everywhere
    try:
        # Asked for logits, bitsandbytes would from then on hold 4-bit weights as some CPUs multiply
        # them best, and no gradient would come through.
        plain = patch("bitsandbytes.nn.modules.has_avx512bf16", bool)
        with torch.random.fork_rng(), plain, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's, of what is asked of it here on purpose
            return _outcomes(method, architecture)
    finally:
        torch.set_num_threads(threads)


def _outcomes(method: dict[str, Any], architecture: str) -> list[Outcome]:
    found: list[Outcome] = []
    try:
        refuse_architecture(method, architecture)
        refused = ""
    except UsageError:
        refused = method["because"]
    subject = None if refused else Subject(method, architecture)
    for name, one in CHECKS.items():
        if subject is None:
            outcome, because = "not applicable", refused
        else:
            outcome, because = _run(one, subject, method.get("limits", {}).get(name))
        found.append(
            {"check": name, "architecture": architecture, "outcome": outcome, "because": because}
        )
        if name in ENDS and outcome == "failed":
            subject, refused = None, ENDS[name]
    return found


def _run(
    one: Callable[[Subject], str], subject: Subject, limit: str | dict[str, str] | None
) -> tuple[str, str]:
    """The outcome of one check, and because; `limit` is what the entry says of it, if anything."""
    excuse, raised = (
        (limit["because"], limit["raises"]) if isinstance(limit, dict) else (limit, None)
    )
    try:
        return "passed", one(subject)
    except NotApplicable as reason:
        return "not applicable", str(reason)
    except Failed as failure:
        return ("excused", f"{excuse}: {failure}") if excuse else ("failed", str(failure))
    except UsageError as error:
        return "failed", f"refused: {error}"
    except Exception as error:  # of the method's own code: the author has to see where
        told = f"raised {told_of(subject.method, error)}"
        declared = raised is not None and raised in told
        return ("excused", f"{excuse}: {told}") if declared else ("failed", told)
