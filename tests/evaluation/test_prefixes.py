"""Which prefixes are shared, and how passes are cut: against all ways that there are."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from lorasp.evaluation.prefixes import passes, shared_prefixes

token_lists = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), max_size=6)


def cost(sequences: list[tuple[int, ...]], groups: list, overhead: int) -> int:
    """Tokens to run, as the docstring counts them."""
    grouped = {index for _, members in groups for index in members}
    total = sum(len(s) for index, s in enumerate(sequences) if index not in grouped)
    for length, members in groups:
        total += length + 2 * overhead + sum(len(sequences[index]) - length for index in members)
    return total


@settings(max_examples=60, deadline=None)
@given(lists=token_lists, overhead=st.integers(0, 2))
def test_groups_are_the_cheapest_of_all_groups(lists: list[list[int]], overhead: int) -> None:
    sequences = [tuple(tokens) for tokens in dict.fromkeys(map(tuple, lists))]
    limits = [len(tokens) - 1 for tokens in sequences]
    found = shared_prefixes(sequences, limits, overhead)
    for length, members in found:
        assert length > 0 and len(members) > 1
        assert all(length <= limits[index] for index in members)
        assert len({sequences[index][:length] for index in members}) == 1
    members = [index for group in found for index in group.members]
    assert len(members) == len(set(members))

    prefixes = {tokens[:size] for tokens in sequences for size in range(1, len(tokens))}
    every = [
        (len(prefix), [n for n, s in enumerate(sequences) if s[:-1][: len(prefix)] == prefix])
        for prefix in prefixes
    ]
    possible = [
        groups
        for count in range(4)  # of groups of two or more among six
        for groups in itertools.combinations([group for group in every if len(group[1]) > 1], count)
        if len({n for _, part in groups for n in part}) == sum(len(part) for _, part in groups)
    ]
    assert cost(sequences, found, overhead) == min(
        cost(sequences, list(groups), overhead) for groups in possible
    )


@given(
    lengths=st.lists(st.integers(1, 30), max_size=8).map(lambda x: sorted(x, reverse=True)),
    before=st.integers(0, 30),
    tokens=st.integers(1, 90),
    keys=st.integers(1, 200),
    overhead=st.integers(0, 20),
)
def test_passes_are_the_cheapest_within_the_budget(
    lengths: list[int], before: int, tokens: int, keys: int, overhead: int
) -> None:
    def price(cuts: list[slice]) -> int:
        return sum(overhead + len(lengths[cut]) * lengths[cut][0] for cut in cuts)

    def allowed(cuts: list[slice]) -> bool:
        parts = [lengths[cut] for cut in cuts]
        return all(
            len(part) == 1
            or (len(part) * part[0] <= tokens and len(part) * (before + part[0]) <= keys)
            for part in parts
        )

    every = []
    for places in itertools.product([False, True], repeat=max(0, len(lengths) - 1)):
        ends = [n for n, cut in enumerate(places, 1) if cut]
        bounds = [0, *ends, len(lengths)] if lengths else []
        every.append([slice(*pair) for pair in itertools.pairwise(bounds)])
    found = passes(lengths, before, tokens, keys, overhead)
    assert [length for cut in found for length in lengths[cut]] == lengths
    assert allowed(found)
    assert price(found) == min(price(cuts) for cuts in every if allowed(cuts))
