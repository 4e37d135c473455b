"""Checks of printed parameter counts against the public models, on the meta device.

How many parameters an adapter has follows from its rank, the linear layers it is put on, and
whether a new classification head is counted. Where a paper leaves these open, all are tried.
"""

import functools
import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Any

from lorasp.claims import Claim, Document
from lorasp.claims.printed import Interval, Outcome, exact, interval, listed, show
from lorasp.errors import WorkError
from lorasp.methods import table
from lorasp.public_models import meta_model, public_models

RANKS = range(1, 129)
MILLIONS = {"10^6": Fraction(1), "2^20": Fraction(2**20, 10**6)}  # what an M may stand for
# The linear layers of a block by what they do: how their names end in the public models.
ROLES = {
    "query": ("query", "q", "q_proj"),
    "key": ("key", "k", "k_proj"),
    "value": ("value", "v", "v_proj"),
    "output": ("attention.output.dense", "o", "o_proj"),
    "up": ("intermediate.dense", "wi", "gate_proj", "up_proj"),
    "down": ("output.dense", "wo", "down_proj"),
}
CUSTOMARY = {
    "query and value": frozenset({"query", "value"}),
    "all linear layers": frozenset(ROLES),
}


@dataclass(frozen=True)
class Shapes:
    """What counts need of a model: its linear layers, its parts and its head.

    Args:
        linear: name in a block, such as 'attention.self.query', to (in, out) of every occurrence.
        parts: parameters of each part outside the blocks, and of each stack of blocks.
        head: parameters of a new classification head, 0 without one.
    """

    linear: dict[str, list[tuple[int, int]]]
    parts: dict[str, int]
    head: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def width(self, name: str) -> int:
        """Parameters that an adapter of rank 1 has on all layers of that name."""
        return sum(inside + outside for inside, outside in self.linear[name])


@functools.cache
def shapes_of(model: str) -> Shapes:
    """The shapes of a public model; WorkError with the known ones where there is no such model."""
    if model not in public_models():
        known = ", ".join(public_models())
        raise WorkError(f"the shapes of {model!r} are not in public_models.yaml; known are {known}")
    import torch

    network = meta_model(model)
    linear: dict[str, list[tuple[int, int]]] = {}
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and (name := _within_block(path)):
            linear.setdefault(name, []).append((module.in_features, module.out_features))
    parts: dict[str, int] = {}
    for path, parameter in network.named_parameters():
        stack = re.match(r".*?(?=\.\d+\.)", path)
        part = stack.group() if stack else path.rpartition(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    head = sum(size for part, size in parts.items() if part.startswith("classifier"))
    return Shapes(linear, parts, head)


def _within_block(path: str) -> str | None:
    """'model.layers.3.mlp.up_proj' → 'mlp.up_proj'; None outside the numbered blocks."""
    name = re.sub(r".*\.\d+\.", "", path)
    return name if name != path else None


def role_of(name: str) -> str:
    """The role of a linear layer; the longest matching ending decides."""
    endings = {ending: role for role, endings in ROLES.items() for ending in endings}
    fitting = [e for e in endings if name == e or name.endswith(f".{e}")]
    return endings[max(fitting, key=len)]


@dataclass(frozen=True)
class Setting:
    """One way in which an adapter of a model could have been counted."""

    rank: int
    targets: tuple[str, ...]
    layers: str  # the targets in words
    head: bool
    million: str
    count: Fraction

    @property
    def record(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "layers": self.layers,
            "head_counted": self.head,
            "M": self.million,
            "count": float(self.count),
        }

    @property
    def told(self) -> str:
        """The setting in a few words, with its exact count."""
        head = " with the head" if self.head else ""
        million = "" if self.million == "10^6" else " (M = 2^20)"
        return f"r = {self.rank} on {self.layers}{head} ({float(self.count):,.0f}{million})"

    def off(self, claim: Claim) -> float:
        """The relative difference of the count from a claim's printed one."""
        return float(self.count / exact(claim["value"]) - 1)


def subsets(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Every subset but the empty one, small ones first."""
    names = list(names)
    sizes = range(1, len(names) + 1)
    return [chosen for size in sizes for chosen in itertools.combinations(names, size)]


def target_sets(shapes: Shapes) -> dict[int, list[tuple[str, ...]]]:
    """Adapter width at rank 1 to the target sets that have it; the customary ones first."""
    found: dict[int, list[tuple[str, ...]]] = {}
    for targets in subsets(shapes.linear):
        found.setdefault(sum(map(shapes.width, targets)), []).append(targets)
    for sets in found.values():
        sets.sort(key=lambda names: not _customary(shapes, names))
    return found


def _customary(shapes: Shapes, targets: tuple[str, ...]) -> bool:
    return in_words(shapes, targets) in CUSTOMARY


def in_words(shapes: Shapes, targets: tuple[str, ...]) -> str:
    """Layers by their roles, where they are all that have them; else by their names."""
    roles = _roles(targets)
    if set(targets) != {name for name in shapes.linear if role_of(name) in roles}:
        return " + ".join(targets)
    customary = [name for name, set_ in CUSTOMARY.items() if set_ == roles]
    return customary[0] if customary else " + ".join(role for role in ROLES if role in roles)


def settings(shapes: Shapes, printed: Interval, share: Fraction) -> list[Setting]:
    """Every setting whose count rounds to the printed one: one target set stands for each width.

    `share` is the trained share of the entries of A and B; a counted head is trained whole.
    """
    found = []
    heads = (False, True) if shapes.head else (False,)
    for width, sets in target_sets(shapes).items():
        words = in_words(shapes, sets[0])
        for head, (million, scale) in itertools.product(heads, MILLIONS.items()):
            fixed = head * shapes.head
            found += [
                Setting(rank, sets[0], words, head, million, rank * width * share + fixed)
                for rank in ranks_within(printed.times(scale), width * share, fixed)
            ]
    # the plainest first: as PEFT counts, a customary target set, a rank that is a power of two
    return sorted(
        found,
        key=lambda one: (
            one.million != "10^6",
            not _customary(shapes, one.targets),
            one.rank & (one.rank - 1) > 0,
            len(one.targets),
            one.rank,
        ),
    )


def ranks_within(printed: Interval, width: Fraction | int, fixed: Fraction | int) -> Iterable[int]:
    """The ranks among RANKS at which rank * width + fixed lies in an interval."""
    lowest, highest = ceil((printed.low - fixed) / width), floor((printed.high - fixed) / width)
    return range(max(lowest, RANKS[0]), min(highest, RANKS[-1]) + 1)


@functools.cache
def trained_share(method: str) -> Fraction | None:
    """The share of the entries of A and B that a method trains; None where it trains the model."""
    known = table()
    if method not in known:
        raise WorkError(f"the method {method!r} is unknown; known are {', '.join(known)}")
    family = known[method]["family"]
    if family not in ("full", "LORA", "LORA_SP"):
        raise WorkError(f"parameters of {method!r} (family {family}) cannot be counted by shape")
    if family == "full":
        return None
    return exact(known[method]["settings"].get("density", 1))


def parameters(
    document: Document, claim: Claim, *, rank: int | None = None, targets: list[str] | None = None
) -> Outcome:
    """The printed count is that of the public model, or of an adapter on it.

    `rank` and `targets` (roles: query, key, value, output, up, down) are what the paper states;
    what it leaves open is searched.
    """
    if unknown := set(targets or ()) - set(ROLES):
        raise WorkError(f"targets are {listed(ROLES)}; found {listed(sorted(unknown))}")
    shapes, share = shapes_of(claim["model"]), trained_share(claim["method"])
    if share is None:
        return _whole_model(claim, shapes)
    if claim["quantity"] == "total":
        return _with_adapter(document, claim, shapes)
    return _adapter(claim, shapes, share, rank, targets)


def _whole_model(claim: Claim, shapes: Shapes) -> Outcome:
    printed, total = interval(claim), shapes.total
    counted = {"with its head": total, "without its head": total - shapes.head}
    counted = counted if shapes.head else {"in all": total}
    told = listed(f"{size:,} {what}" for what, size in counted.items())
    fits = any(printed.holds(size) for size in counted.values())
    off = min((float(exact(claim["value"]) / size - 1) for size in counted.values()), key=abs)
    evidence = []
    unions = [
        f"{' + '.join(union)} in {million}"
        for union in subsets(shapes.parts)
        for million, scale in MILLIONS.items()
        if printed.times(scale).holds(sum(shapes.parts[part] for part in union))
    ]
    if not fits:
        evidence.append(
            f"Some of its parts give the printed number: {'; '.join(unions[:3])}."
            if unions
            else f"None of the {len(subsets(shapes.parts))} unions of its {len(shapes.parts)} "
            "parts gives it, in 10^6 or 2^20."
        )
    rows: list[dict[str, Any]] = [
        {"part": part, "parameters": size} for part, size in shapes.parts.items()
    ]
    found = f"{claim['model']} has {told}; the printed number is {abs(off):.1%} "
    found += "more" if off > 0 else "less"
    return Outcome("reproduced" if fits else "not reproduced", found, evidence, rows)


def _with_adapter(document: Document, claim: Claim, shapes: Shapes) -> Outcome:
    """A total is the public model's count and the trainable count printed in the same row."""
    (trainable,) = [
        other
        for other in document["claims"]
        if other.get("quantity") == "trainable"
        and (other["model"], other["method"]) == (claim["model"], claim["method"])
    ]
    printed, base = interval(claim), shapes.total
    expected = interval(trainable) + Interval(Fraction(base), Fraction(base))
    middle = base + exact(trainable["value"])
    fits = printed.meets(expected)
    found = (
        f"{claim['model']} ({base:,}) and the {trainable['printed']} of this row make "
        f"{show(middle, 'parameters')}"
    )
    evidence = []
    if not fits:
        difference = exact(claim["value"]) - middle
        more = "more" if difference > 0 else "less"
        evidence.append(f"The printed total is {show(abs(difference), 'parameters')} {more}.")
    if printed.high < base:
        evidence.append("The printed total is smaller than the model without any adapter.")
    return Outcome("reproduced" if fits else "not reproduced", found, evidence)


def _adapter(
    claim: Claim, shapes: Shapes, share: Fraction, rank: int | None, targets: list[str] | None
) -> Outcome:
    fitting = settings(shapes, interval(claim), share)
    stated = [
        one
        for one in fitting
        if rank in (None, one.rank) and (targets is None or _roles(one.targets) == set(targets))
    ]
    evidence = [
        f"{len(fitting)} combinations of rank (1 to {RANKS[-1]}), layers, head and M (10^6 or "
        f"2^20) give {claim['printed']}"
        + (f"; the plainest: {fitting[0].told}." if fitting else ".")
    ]
    for name, roles in CUSTOMARY.items():
        near = nearest(shapes, claim, share, roles, [rank] if rank else RANKS)
        at = f" at r = {rank}" if rank else ""
        evidence.append(f"On {name}{at} the nearest is {near.told}, {near.off(claim):+.1%}.")
    left_open = [what for what, value in (("rank", rank), ("targets", targets)) if value is None]
    if left_open:
        evidence.append(f"The paper does not state the {listed(left_open)} for this count.")
    rows = [one.record for one in [*stated, *(one for one in fitting if one not in stated)][:12]]
    if stated and left_open:
        found = f"{stated[0].told} would give it; the paper does not state the {listed(left_open)}"
        return Outcome("not comparable", found, evidence, rows)
    if stated:
        return Outcome("reproduced", f"{stated[0].told} gives it", evidence, rows)
    if rank is None:
        return Outcome("not reproduced", f"no setting gives {claim['printed']}", evidence, rows)
    where = f" on {listed(targets)}" if targets else ", whatever the layers and the head"
    found = f"the stated r = {rank} does not give {claim['printed']}{where}"
    found += f"; {fitting[0].told} would" if fitting else ""
    return Outcome("inconsistent", found, evidence, rows)


def _roles(targets: Iterable[str]) -> set[str]:
    return {role_of(name) for name in targets}


def nearest(
    shapes: Shapes, claim: Claim, share: Fraction, roles: frozenset[str], ranks: Iterable[int]
) -> Setting:
    """The setting on all layers of some roles, M read as 10^6, that comes nearest to a claim."""
    targets = tuple(name for name in shapes.linear if role_of(name) in roles)
    width, words = sum(map(shapes.width, targets)), in_words(shapes, targets)
    heads = (False, True) if shapes.head else (False,)
    tried = [
        Setting(rank, targets, words, head, "10^6", rank * width * share + head * shapes.head)
        for rank, head in itertools.product(ranks, heads)
    ]
    return min(tried, key=lambda one: abs(one.off(claim)))
