"""Curves as text: two by four dots a character (Unicode braille), the last curve drawn on top."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Bits of U+2800 by column and row of the dot."""
BLANK = 0x2800


@dataclass(frozen=True)
class Line:
    """One curve: (x, y) points with y in 0..1, x in 0..1; NaN breaks it. style: how rich colours it."""

    points: Sequence[tuple[float, float]]
    style: str


def draw(lines: Sequence[Line], columns: int, rows: int) -> list[Text]:
    """The curves on a field of ``columns`` x ``rows`` characters, top row first."""
    bits = [[0] * columns for _ in range(rows)]
    styles = [[""] * columns for _ in range(rows)]
    for line in lines:
        for x, y in _dots(line.points, columns * 2, rows * 4):
            column, row = x // 2, rows - 1 - y // 4
            bits[row][column] |= DOTS[x % 2][3 - y % 4]
            styles[row][column] = line.style
    out = []
    for row in range(rows):
        text = Text()
        for mask, style in zip(bits[row], styles[row], strict=True):
            text.append(chr(BLANK + mask) if mask else " ", style)
        out.append(text)
    return out


def _dots(points: Sequence[tuple[float, float]], width: int, height: int) -> set[tuple[int, int]]:
    """Dots (x, y), y upwards, of straight lines between neighbouring points."""
    found: set[tuple[int, int]] = set()
    before: tuple[float, float] | None = None
    for x, y in points:
        if not math.isfinite(y):
            before = None
            continue
        now = (min(max(x, 0.0), 1.0) * (width - 1), min(max(y, 0.0), 1.0) * (height - 1))
        start = now if before is None else before
        count = max(1, math.ceil(max(abs(now[0] - start[0]), abs(now[1] - start[1]))))
        for k in range(count + 1):
            share = k / count
            found.add(
                (
                    round(start[0] + share * (now[0] - start[0])),
                    round(start[1] + share * (now[1] - start[1])),
                )
            )
        before = now
    return found
