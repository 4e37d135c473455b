"""Places for the names of marks in a plot, so that no two names meet."""

import math
from collections.abc import Sequence

LETTER, LINE = 6.2, 12.0  # pixels of an average letter and of a line, at 10 pixels of type
MARK = 6.0  # half the side of a mark, with a little air
RADII = (13, 22, 34, 48, 66)
ANGLES = tuple(math.radians(turn) for turn in (0, 180, 270, 90, 315, 225, 45, 135))

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, top, right, bottom


def place(
    marks: Sequence[Point],
    names: Sequence[str],
    size: tuple[int, int],
    lines: Sequence[Box] = (),
) -> list[Point | None]:
    """The middle of each name in pixels, from the top left; None where no free place is near.

    `marks` are the points that are named, the first of them served first; no name covers a mark or
    one of `lines`, meets another name or leaves the plot, which is `size` (width, height).
    """
    taken = [*lines, *((x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks)]
    found: list[Point | None] = []
    for mark, name in zip(marks, names, strict=True):
        half = (LETTER * len(name) / 2, LINE / 2)
        middle = next((m for m in _near(mark, half) if _is_free(_box(m, half), taken, size)), None)
        if middle is not None:
            taken.append(_box(middle, half))
        found.append(middle)
    return found


def _near(mark: Point, half: Point) -> list[Point]:
    """Middles around a mark, the nearest first: the name's edge keeps off it by the radius."""
    return [
        (
            mark[0] + math.cos(angle) * (radius + half[0]),
            mark[1] + math.sin(angle) * (radius + half[1] / 2),
        )
        for radius in RADII
        for angle in ANGLES
    ]


def _box(middle: Point, half: Point) -> Box:
    return (
        middle[0] - half[0],
        middle[1] - half[1],
        middle[0] + half[0],
        middle[1] + half[1],
    )


def _is_free(box: Box, taken: Sequence[Box], size: tuple[int, int]) -> bool:
    left, top, right, bottom = box
    if left < 0 or top < 0 or right > size[0] or bottom > size[1]:
        return False
    return all(
        right <= other[0] or left >= other[2] or bottom <= other[1] or top >= other[3]
        for other in taken
    )
