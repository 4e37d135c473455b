"""The words of the advice: scores, differences and costs as text, and lists of methods."""

from typing import Any

from lorasp.report.charts import Row
from lorasp.report.claims_view import signed
from lorasp.report.ranking import within

ALIKE = 0.01  # costs that differ by no more are called the same
MOST = 4  # names in a list; of a longer one the first, and how many more


def size(apart: dict[str, Any]) -> str:
    """A paired difference as '+1.2 [+0.3, +2.1] points (5 pairs of seeds)'."""
    if apart["estimate"] is None:
        return "with no seed in common"
    shown = signed(apart["estimate"])
    if apart["interval"] is not None:
        shown += f" [{', '.join(signed(end) for end in apart['interval'])}]"
    single = apart["n"] == 1
    pairs = "one pair of seeds, so no interval" if single else f"{apart['n']} pairs of seeds"
    return f"{shown} points ({pairs})"


def score(row: Row) -> str:
    seeds = "one seed, so no interval" if row["n"] == 1 else f"{row['n']} seeds"
    return f"{within(row['score'], row['interval'])} ({seeds})"


def is_same(row: Row, other: Row, cost: str) -> bool:
    return bool(abs(row[cost] - other[cost]) <= ALIKE * other[cost])


def names_of(rows: list[Row]) -> str:
    return joined([row["method"] for row in rows])


def some_of(rows: list[Row]) -> str:
    return some([row["method"] for row in rows])


def some(names: list[str]) -> str:
    """All names, or where they are many the first and how many more."""
    more = len(names) - MOST
    return joined(names if more < 2 else [*names[:MOST], f"{more} more"])


def joined(names: list[str]) -> str:
    """'A, B and C'; where a name has a comma itself, 'A; B; and C'."""
    if len(names) == 1:
        return names[0]
    comma, last = ("; ", "; and ") if any("," in name for name in names) else (", ", " and ")
    return f"{comma.join(names[:-1])}{last}{names[-1]}"


def kib(row: Row) -> str:
    size = row["file"]
    return f"{size / 2**10:,.0f} KiB" if size >= 2**13 else f"{size:,.0f} bytes"


def mib(row: Row) -> str:
    return f"{row['memory'] / 2**20:,.0f} MiB"


def ms(row: Row) -> str:
    time = 1e3 * row["time"]
    return f"{time:,.0f} ms" if time >= 100 else f"{time:.3g} ms"
