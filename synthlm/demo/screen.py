"""Frames on a terminal: live curves and coloured words; turns of events as lines. Trains nothing."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from synthlm.demo.canvas import Line, draw
from synthlm.demo.lesson import Frame, Learner, Word
from synthlm.demo.turns import HELDOUT, REGULARIZED, ROTE, TRAINED, Nouns, Turn
from synthlm.tasks.language import FIRST_SYMBOL

STYLES = {TRAINED: "#56B4E9", HELDOUT: "#2BB673", ROTE: "#E58FC3", REGULARIZED: "#E69F00"}
WRONG = "bold #FF5050"
ROWS = (5, 12)
"""Fewest and most characters of a plot's height."""
OTHER_LINES = 20
"""Lines of a screen besides the plot."""
NARROW = 60
"""Panels narrower than this leave out the right answer beside a wrong one."""
LETTERS = 26
"""Languages of so few symbols are written with letters."""


def legend(nouns: Nouns, series: Sequence[str]) -> Text:
    """What the colours mean, of the series there are."""
    text = Text("curves: ")
    told = {
        TRAINED: f"{nouns.trained}",
        HELDOUT: f"{nouns.heldout}",
        ROTE: f"{nouns.rote}",
        REGULARIZED: f"{nouns.rote} answered as the rule would",
    }
    for index, name in enumerate(series):
        text.append(" · " if index else "")
        text.append(told[name], STYLES[name])
    words = [
        ("right, by the rule", STYLES[HELDOUT], HELDOUT in series),
        ("right, trained on", STYLES[TRAINED], TRAINED in series),
        ("right, by rote", STYLES[ROTE], ROTE in series),
        ("wrong, but as the rule says", STYLES[REGULARIZED], REGULARIZED in series),
        ("wrong", WRONG, True),
    ]
    text.append("\nwords:  ")
    for index, (label, style) in enumerate((label, style) for label, style, there in words if there):
        text.append(" · " if index else "")
        text.append(label, style)
    return text


def spell(tokens: Sequence[int], alphabet: int) -> str:
    """Symbols as letters where there are at most 26, else as numbers; special tokens are left out."""
    symbols = [token - FIRST_SYMBOL for token in tokens if token >= FIRST_SYMBOL]
    if alphabet <= LETTERS:
        return "".join(chr(ord("a") + symbol) for symbol in symbols)
    return " ".join(map(str, symbols))


def word_line(word: Word, alphabet: int, short: bool = False) -> Text:
    """``key → answer``, each token coloured by how it came about, and the right answer where it was missed."""
    text = Text(f"{spell(word.prompt, alphabet)} → ")
    gap = "" if alphabet <= LETTERS else " "
    for place, (said, true) in enumerate(zip(word.answer, word.truth, strict=True)):
        text.append(spell([said], alphabet) or "?", token_style(word, place))
        text.append(gap if said != true or place + 1 < len(word.truth) else "")
    if word.answer == word.truth:
        text.append(" ✓", "dim")
    else:
        text.append(" ✗" if short else f" ✗ {spell(word.truth, alphabet)}", "dim")
    return text


def token_style(word: Word, place: int) -> str:
    """The colour of one token of an answer. Right tokens are said to come from the rule in words never seen alone; in
    words trained on that follow it, rule and rote cannot be told apart.
    """
    said, true = word.answer[place], word.truth[place]
    if said == true:
        by_rote = word.series == ROTE and (word.rule is None or word.rule[place] != true)
        return STYLES[ROTE if by_rote else HELDOUT if word.series == HELDOUT else TRAINED]
    return STYLES[REGULARIZED] if word.rule is not None and said == word.rule[place] else WRONG


def screen(frame: Frame, title: str, nouns: Nouns, alphabet: int, width: int, height: int = 36) -> Group:
    """One frame as something rich draws, ``width`` characters wide and, unless that is too few, ``height`` high."""
    rows = min(max(height - OTHER_LINES, ROWS[0]), ROWS[1])
    each = max(30, (width - 1) // max(1, len(frame.learners)) - 1)
    table = Table.grid(padding=(0, 1))
    for _ in frame.learners:
        table.add_column(width=each)
    table.add_row(*(_learner(frame, learner, nouns, alphabet, each, rows) for learner in frame.learners))
    series = list(frame.learners[0].curves)
    done = Text(f"{title}   step {frame.step} of {frame.total}", "bold")
    parts: list[RenderableType] = [done, table, legend(nouns, series)]
    if frame.turns:
        latest = [turn for turn in frame.turns if turn.step == frame.turns[-1].step][-2:]
        told = Text("\n").join(turn_line(turn) for turn in latest)
        parts.append(Panel(told, title="the latest turn of events", title_align="left", width=width))
    return Group(*parts)


def turn_line(turn: Turn) -> Text:
    """A turn on one line, its step first."""
    return Text.assemble((f"step {turn.step:>5}  ", "bold"), turn.text)


def _learner(
    frame: Frame, learner: Learner, nouns: Nouns, alphabet: int, width: int, rows: int
) -> RenderableType:
    axis = 5
    inside = width - 4 - axis
    longest = math.log1p(frame.total)
    lines = [
        Line(
            [(math.log1p(step) / longest, value) for step, value in zip(frame.steps, values, strict=True)],
            STYLES[series],
        )
        for series, values in sorted(learner.curves.items(), key=lambda item: list(STYLES).index(item[0]))
    ]
    plot = Text()
    for index, row in enumerate(draw(lines, inside, rows)):
        label = {0: "100%", rows // 2: " 50%", rows - 1: "  0%"}.get(index, "")
        plot.append(f"{label:>4}│", "dim")
        plot.append_text(row)
        plot.append("\n")
    plot.append(" " * 4 + "└" + _axis(frame.total, inside), "dim")
    numbers = Text()
    for series, values in learner.curves.items():
        numbers.append(f"{values[-1]:4.0%} " if math.isfinite(values[-1]) else "   ? ", STYLES[series])
        numbers.append(_label(series, nouns) + "\n", "dim")
    words = Table.grid(padding=(0, 1))
    by_series = [[word for word in learner.words if word.series == series] for series in learner.curves]
    shown = [group for group in by_series if group]
    for _ in shown:
        words.add_column(width=(width - 4) // len(shown) - 1, no_wrap=True, overflow="crop")
    for place in range(max((len(group) for group in shown), default=0)):
        cells = [group[place] if place < len(group) else None for group in shown]
        words.add_row(*(word_line(word, alphabet, width < NARROW) if word else "" for word in cells))
    return Panel(Group(plot, Text(), numbers, words), title=learner.name, title_align="left", width=width)


def _label(series: str, nouns: Nouns) -> str:
    return f"{nouns.rote}, as the rule" if series == REGULARIZED else str(getattr(nouns, series))


def _axis(total: int, width: int) -> str:
    """Steps 0, 1, 10, 100, ... at their places on ln(1 + step)."""
    marks = ["─"] * width
    step = 0
    free = 0
    while step <= total:
        place = round(math.log1p(step) / math.log1p(total) * (width - 1))
        text = str(step)
        if place >= free and place + len(text) <= width:
            marks[place : place + len(text)] = text
            free = place + len(text) + 1
        step = 10 * step if step else 1
    return "".join(marks)


class Plain:
    """Turns as lines, for pipes and files."""

    def __init__(self, console: Console) -> None:
        self._console, self._told = console, 0

    def show(self, frame: Frame) -> None:
        for turn in frame.turns[self._told :]:
            self._console.print(turn_line(turn), soft_wrap=True)
        self._told = len(frame.turns)


class Animated:
    """A screen that redraws itself; turns stay above it."""

    def __init__(self, console: Console, live: Live, title: str, nouns: Nouns, alphabet: int) -> None:
        self._console, self._live = console, live
        self._plain = Plain(console)
        self._fixed = (title, nouns, alphabet)

    def show(self, frame: Frame) -> None:
        self._plain.show(frame)
        size = self._console.size
        self._live.update(screen(frame, *self._fixed, size.width, size.height), refresh=True)


@contextmanager
def view(
    console: Console, title: str, nouns: Nouns, alphabet: int, animated: bool
) -> Iterator[Plain | Animated]:
    """A live screen on a terminal, lines elsewhere."""
    if not animated:
        console.print(Text(title, "bold"))
        yield Plain(console)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        yield Animated(console, live, title, nouns, alphabet)
