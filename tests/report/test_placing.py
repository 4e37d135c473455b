"""Names in a plot: none meets another, a mark or the edge, and none is lost that has room."""

import random

import pytest

from lorasp.report.placing import LETTER, LINE, MARK, Box, place

SIZE = (500, 290)


def boxes(marks: list[tuple[float, float]], names: list[str], lines: list[Box]) -> list[Box | None]:
    return [
        None
        if at is None
        else (
            at[0] - LETTER * len(name) / 2, at[1] - LINE / 2,
            at[0] + LETTER * len(name) / 2, at[1] + LINE / 2,
        )
        for at, name in zip(place(marks, names, SIZE, lines), names, strict=True)
    ]  # fmt: skip


def overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


@pytest.mark.parametrize("count", [1, 8, 30, 80])
def test_no_name_meets_anything(count: int) -> None:
    drawn = random.Random(count)
    marks = [(drawn.uniform(0, SIZE[0]), drawn.uniform(0, SIZE[1])) for _ in range(count)]
    names = ["n" * drawn.randint(2, 24) for _ in marks]
    line: Box = (100, 140, 500, 142)
    placed = [box for box in boxes(marks, names, [line]) if box is not None]
    assert len(placed) >= min(count, 20) * 0.9
    for k, box in enumerate(placed):
        assert min(box) >= 0 and box[2] <= SIZE[0] and box[3] <= SIZE[1]
        assert overlap(box, line) < 1e-9
        assert all(overlap(box, other) < 1e-9 for other in placed[:k])
        for x, y in marks:
            assert overlap(box, (x - MARK, y - MARK, x + MARK, y + MARK)) < 1e-9


def test_the_first_is_served_first_and_a_crowd_leaves_names_out() -> None:
    marks = [(250.0, 145.0)] * 60
    found = place(marks, ["a long name of a method"] * 60, SIZE)
    assert found[0] is not None and found[0][1] == pytest.approx(145)  # on the mark's own line
    assert found[-1] is None
