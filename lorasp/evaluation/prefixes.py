"""What to run through a model once and what together, for the fewest tokens."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np


class Group(NamedTuple):
    """Sequences (by index) whose first `length` tokens are the same."""

    length: int
    members: list[int]


def shared_prefixes(
    sequences: Sequence[tuple[int, ...]], limits: Sequence[int], overhead: int
) -> list[Group]:
    """The disjoint groups that leave the fewest tokens to run; a sequence may be in none.

    Groups to choose from are those of all sequences with a certain prefix. The prefix runs once,
    alone, and then the members without it, in passes of their own; the two cost `overhead` tokens
    each, so that short prefixes and small groups are left alone. Sorted, sequences with a common
    prefix lie side by side, and the runs of neighbours that share at least so many tokens form a
    tree; from its leaves up, a node becomes a group where that is cheaper than what was best below.

    Args:
        sequences: token ids, none of them empty.
        limits: for each sequence, the longest prefix that may be taken from it.
    """
    order = sorted(range(len(sequences)), key=lambda index: sequences[index])
    lengths = [len(sequences[index]) for index in order]
    before = [0, *accumulate(lengths)]  # tokens of all sequences before a place in `order`
    shared = [
        min(common(sequences[one], sequences[next_]), limits[one], limits[next_])
        for one, next_ in pairwise(order)
    ]

    def together(length: int, start: int, end: int) -> int:
        """Tokens to run for one group of the sequences from `start` to `end`."""
        rest = before[end] - before[start] - length * (end - start)
        return length + rest + 2 * overhead

    chosen: list[tuple[int, int, int]] = []  # length, start, end
    # Nodes that may still grow: tokens shared, where they start, how many groups were chosen
    # before them, the cost of their closed children.
    growing: list[tuple[int, int, int, int]] = []
    for place, (cost, depth) in enumerate(zip(lengths, [*shared, -1], strict=False)):
        start, mark = place, len(chosen)
        while growing and growing[-1][0] > depth:
            length, start, mark, sum_of_others = growing.pop()
            cost += sum_of_others
            if (as_one := together(length, start, place + 1)) < cost:
                chosen[mark:] = [(length, start, place + 1)]
                cost = as_one
        if growing and growing[-1][0] == depth:
            _, start, mark, sum_of_others = growing.pop()
            cost += sum_of_others
        growing.append((depth, start, mark, cost))
    return [Group(length, order[start:end]) for length, start, end in chosen]


def passes(
    lengths: Sequence[int], before: int, tokens: int, keys: int, overhead: int
) -> list[slice]:
    """The cheapest cut of descending lengths into passes, each padded to its longest.

    A pass costs its tokens with the padding and `overhead` more. It has at most so many `tokens`,
    and at most so many `keys`, which are the tokens and for each sequence the `before` that it goes
    on from, unless one sequence alone has more.
    """
    cost, begins = [0], [0]  # of the first so many sequences; where the last of their passes begins
    for end in range(1, len(lengths) + 1):
        options: list[tuple[int, int]] = []
        for start in range(end - 1, -1, -1):
            rows, longest = end - start, lengths[start]
            if options and (rows * longest > tokens or rows * (before + longest) > keys):
                break
            options.append((cost[start] + rows * longest + overhead, start))
        least, begin = min(options)
        cost.append(least)
        begins.append(begin)
    cuts, end = [], len(lengths)
    while end:
        cuts.append(slice(begins[end], end))
        end = begins[end]
    return cuts[::-1]


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common at their beginning."""
    size = min(len(one), len(other))
    differ = np.not_equal(one[:size], other[:size])
    return int(differ.argmax()) if differ.any() else size
