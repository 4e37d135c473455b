"""Checks across printed parameter counts: halves, one setting for all, and what they save."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from lorasp.claims import Claim, Document
from lorasp.claims.counts import (
    CUSTOMARY,
    MILLIONS,
    RANKS,
    ROLES,
    Shapes,
    nearest,
    ranks_within,
    role_of,
    settings,
    shapes_of,
    subsets,
    target_sets,
    trained_share,
)
from lorasp.claims.printed import Outcome, Pattern, chosen, exact, interval, listed
from lorasp.errors import WorkError

# Whether a count holds the classification head, and whether the method that trains half of the
# entries of A and B could have left half of the head untrained too.
HALVED_HEAD = "the head is counted and itself halved"
HEADS: dict[str, tuple[int, Fraction | int]] = {
    "the head is not counted": (0, 0),
    "the head is counted and trained whole": (1, 1),
    HALVED_HEAD: (1, Fraction(1, 2)),
}
NEAR = 0.1  # a relative difference from which on a setting explains nothing
STATES = 16  # bytes a trained parameter: float32 value, gradient and AdamW's two moments
FORMATS = {"float32": Fraction(4), "float16": Fraction(2), "4 bits": Fraction(1, 2)}


def _one(document: Document, of: str) -> Claim:
    claims = chosen(document, of, "parameters")
    if len(claims) != 1:
        raise WorkError(f"{of} must name one count; it matches {len(claims)}")
    return claims[0]


def halved(
    document: Document, claim: Claim, *, of: str, whole: str, rank: int | None = None
) -> Outcome:
    """One setting gives both counts: of the method that trains all entries of A and B, and of `of`.

    Tried with the head left out, counted whole in both, and halved with the rest; only the first
    two are what a method does that selects entries of A and B.
    """
    part, full = _one(document, of), _one(document, whole)
    shapes, share = shapes_of(part["model"]), trained_share(part["method"])
    if share is None:
        raise WorkError(f"{of} is a count of full fine-tuning; halved compares adapters")
    given = interval(full), interval(part)
    rows: list[dict[str, Any]] = []
    for reading in HEADS if shapes.head else ("there is no head",):
        in_full, in_part = HEADS.get(reading, (0, 0))
        ranks = [
            one
            for width, scale in itertools.product(target_sets(shapes), MILLIONS.values())
            for one in ranks_within(given[0].times(scale), width, in_full * shapes.head)
            if one in ranks_within(given[1].times(scale), width * share, in_part * shapes.head)
        ]
        rows.append(
            {
                "reading": reading,
                "settings": len(ranks),
                "ranks": ", ".join(map(str, sorted(set(ranks)))),
                "fits": rank in ranks if rank else bool(ranks),
            }
        )
    evidence = [
        f"If {row['reading']}, {row['settings']} settings give both"
        + (f", with r = {row['ranks']}." if row["settings"] else ".")
        for row in rows
    ]
    evidence += _plainest(part, full, shapes, share)
    fits = any(row["fits"] for row in rows[:2])
    found = f"{full['printed']} and {part['printed']} {'can' if fits else 'cannot'} "
    found += "be one setting's counts"
    found += f" at the stated r = {rank}" if rank else ""
    if not fits and rows[-1]["fits"]:
        found += f", unless {HALVED_HEAD}"
    return Outcome("reproduced" if fits else "inconsistent", found, evidence, rows)


def _plainest(part: Claim, full: Claim, shapes: Shapes, share: Fraction) -> list[str]:
    """What the plainest setting with a head that gives the full count makes of the other one."""
    fitting = [one for one in settings(shapes, interval(full), Fraction(1)) if one.head]
    if not fitting:
        return []
    count = (fitting[0].count - shapes.head) * share + shapes.head
    return [
        f"{fitting[0].told} gives {full['printed']}; {part['method']} then trains "
        f"{float(count):,.0f}, not {part['printed']}: the head ({shapes.head:,}) is not halved."
    ]


def one_setting(
    document: Document, claim: Claim, *, of: Pattern, rank: int | None = None
) -> Outcome:
    """One rank, one choice of layers by role, one reading of head and M give all the counts.

    `rank` is the one that the paper states, whose best choice of layers is told too.
    """
    counts = chosen(document, of, "parameters")
    tried = _tried(counts)
    printed = [interval(one) for one in counts]
    low = np.array([float(inside.low) for inside in printed])
    high = np.array([float(inside.high) for inside in printed])
    value = np.array([float(one["value"]) for one in counts])
    numbers = np.stack([one.counts for one in tried])
    fits = ((numbers >= low) & (numbers <= high)).sum(axis=1)
    worst = np.abs(numbers / value - 1).max(axis=1)

    def best(indices: Iterable[int]) -> int:
        """The setting that gives most of the counts; of several the plainest, then the nearest."""
        return max(indices, key=lambda i: (fits[i], *tried[i].plainness, -worst[i]))

    most, nearest_ = best(range(len(tried))), int(worst.argmin())
    if fits[most] == len(counts):
        found = f"{tried[most].told} gives all {len(counts)} counts"
    else:
        found = f"no single setting gives all {len(counts)} counts; "
        found += f"at most {fits[most]}: {tried[most].told}"
    evidence = [
        f"Tried: {len(tried):,} combinations of rank, layers by role, head and M.",
        f"The nearest to all is off by up to {worst[nearest_]:.1%}: {tried[nearest_].told}.",
    ]
    rows: list[dict[str, Any]] = [
        {
            "id": one["id"],
            "printed": one["printed"],
            "count": float(number),
            "off": round(float(number / one["value"] - 1), 4),
            "fits": bool(lowest <= number <= highest),
        }
        for one, number, lowest, highest in zip(counts, numbers[most], low, high, strict=True)
    ]
    evidence += [
        f"{row['id']}: {row['count']:,.0f} against {row['printed']} ({row['off']:+.1%})."
        for row in rows
        if not row["fits"]
    ]
    for name, roles in CUSTOMARY.items():
        evidence.append(_customary(name, roles, counts))
        same = [i for i, one in enumerate(tried) if one.is_plain and frozenset(one.roles) == roles]
        powers = [i for i in same if tried[i].rank & (tried[i].rank - 1) == 0]
        for what, among in (("one rank", same), ("a power of two", powers)):
            closest = min(among, key=lambda i: worst[i])
            if worst[closest] < NEAR:
                evidence.append(
                    f"On {name} with {what} for all the nearest is r = {tried[closest].rank}: "
                    f"{_against(counts, numbers[closest])}."
                )
    evidence.append(_in_common(counts))
    if rank is not None:
        at_rank = best(i for i, one in enumerate(tried) if one.rank == rank)
        told = f"at most {fits[at_rank]}: {tried[at_rank].told}" if fits[at_rank] else "none"
        evidence.append(f"The stated r = {rank} gives {told}.")
    verdict = "reproduced" if fits[most] == len(counts) else "inconsistent"
    return Outcome(verdict, found, evidence, rows)


@dataclass(frozen=True)
class Common:
    """One setting for several models, and the counts (in printed millions times 10^6) it gives."""

    rank: int
    roles: tuple[str, ...]
    head: str
    million: str
    counts: np.ndarray

    @property
    def told(self) -> str:
        return f"r = {self.rank} on {' + '.join(self.roles)}, {self.head}, M = {self.million}"

    @property
    def is_plain(self) -> bool:
        """Whether it reads M as 10^6, and the head as what all methods train whole."""
        return self.million == "10^6" and self.head != HALVED_HEAD

    @property
    def plainness(self) -> tuple[bool, bool]:
        """What makes a setting the likelier one, of several that give as many counts."""
        customary = frozenset(self.roles) in CUSTOMARY.values()
        return self.is_plain, customary


def _tried(counts: list[Claim]) -> list[Common]:
    models = [shapes_of(one["model"]) for one in counts]
    shares = [trained_share(one["method"]) for one in counts]
    if None in shares:
        raise WorkError("check one_setting counts adapters, and one is full fine-tuning")
    share = np.array([float(one or 0) for one in shares])
    tried = []
    for roles in subsets(ROLES):
        width = np.array(
            [
                sum(model.width(name) for name in model.linear if role_of(name) in roles)
                for model in models
            ]
        )
        for (head, (whole, part)), (million, scale) in itertools.product(
            HEADS.items(), MILLIONS.items()
        ):
            heads = np.where(share == 1, whole, float(part)) * [model.head for model in models]
            tried += [
                Common(rank, roles, head, million, (rank * width * share + heads) / float(scale))
                for rank in RANKS
            ]
    return tried


def _against(counts: list[Claim], numbers: np.ndarray) -> str:
    return listed(
        f"{number:,.0f} against {one['printed']} ({number / one['value'] - 1:+.1%})"
        for one, number in zip(counts, numbers, strict=True)
    )


def _in_common(counts: list[Claim]) -> str:
    """The ranks that give each count on some layers, every subset tried, and those in all."""
    ranks = [
        {
            setting.rank
            for setting in settings(
                shapes_of(one["model"]), interval(one), trained_share(one["method"]) or Fraction(1)
            )
        }
        for one in counts
    ]
    common = sorted(set.intersection(*ranks))
    told = ", ".join(map(str, common)) or "none"
    return f"Ranks that give every count on some layers, another set for each: {told}."


def _customary(name: str, roles: frozenset[str], counts: list[Claim]) -> str:
    """The nearest rank of each count on one customary choice of layers."""
    told = []
    for one in counts:
        share = trained_share(one["method"]) or Fraction(1)
        near = nearest(shapes_of(one["model"]), one, share, roles, RANKS)
        head = " and head" if near.head else ""
        told.append(f"{one['model']} {one['method']} r = {near.rank}{head} ({near.off(one):+.1%})")
    return f"On {name} the nearest are {listed(told)}."


def states(document: Document, claim: Claim, *, of: Pattern, than: Pattern) -> Outcome:
    """What one printed count can save of the bytes of weights and AdamW states against another.

    The claim's margin is the share that counts. Activations come on top of both alike, so that of
    the whole memory the share is smaller yet. Base weights are tried in float32, float16, 4 bits.
    """
    if "margin" not in claim:
        raise WorkError("check states needs the claim's margin")
    margin = document["margins"][claim["margin"]]["value"]
    small, large = chosen(document, of, "parameters"), chosen(document, than, "parameters")
    if [one["model"] for one in small] != [one["model"] for one in large]:
        raise WorkError("check states pairs counts of the same models in the same order")
    rows: list[dict[str, Any]] = []
    for ours, theirs in zip(small, large, strict=True):
        for name, width in FORMATS.items():
            bytes_ = [_bytes(one, width) for one in (ours, theirs)]
            saved = 1 - bytes_[0] / bytes_[1]
            rows.append(
                {
                    "model": ours["model"],
                    "weights": name,
                    "bytes": float(bytes_[0]),
                    "bytes_than": float(bytes_[1]),
                    "saved": round(float(saved), 4),
                }
            )
    enough = [row["saved"] >= margin for row in rows]
    verdict = "reproduced" if all(enough) else "inconclusive" if any(enough) else "not reproduced"
    low, high = (choose(row["saved"] for row in rows) for choose in (min, max))
    found = (
        f"weights and AdamW states shrink by {low:.1%} to {high:.1%}; what counts is {margin:.0%}"
    )
    evidence = [
        f"{row['model']}, weights in {row['weights']}: {row['bytes'] / 1e9:.2f} against "
        f"{row['bytes_than'] / 1e9:.2f} GB, {row['saved']:.1%} less."
        for row in sorted(rows, key=lambda row: -row["saved"])[:: max(1, len(rows) - 1)]
    ]
    evidence.append(
        f"Counted: {STATES} bytes a trained parameter, from the printed counts; the other weights "
        "by the public model. Activations are not in it."
    )
    return Outcome(verdict, found, evidence, rows)


def _bytes(one: Claim, width: Fraction) -> Fraction:
    trained, model = exact(one["value"]), shapes_of(one["model"]).total
    full = trained_share(one["method"]) is None
    return Fraction(model * STATES) if full else model * width + trained * STATES
