"""Turns of events: moments of a lesson found by fixed rules in its curves, each told in two sentences.

A turn depends on nothing after its step. Sentences state numbers; what follows from them is said only where it does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Curves = Mapping[str, Sequence[float]]
"""Series name -> one value an evaluation, each the share of items answered right in every token."""

TRAINED, HELDOUT, ROTE, REGULARIZED = "trained", "heldout", "rote", "regularized"
"""Series: rule items trained on; rule items held out; items to memorize; of those, answered as the rule would."""

FITTED = 0.9
"""A rule is learnt, and rote items are fitted, at this share."""
ROTE_GAP = 0.3
"""Training items ahead of held-out ones by this much: known by rote."""
HALF = 0.5
DIP = 0.1
"""Rote items lost again by this much, while more of them are answered by the rule."""
SPOILT = 0.05
"""Held-out items lost by this much after the rule was learnt."""
HEALED = 0.01
"""Held-out items count as back within this much of their best."""


@dataclass(frozen=True)
class Nouns:
    """What the items of each series are called in the language of the lesson."""

    trained: str = "rule items it trains on"
    heldout: str = "rule items it never saw"
    rote: str = "rote items"


VERBS = Nouns("regular words it trains on", "regular words it never saw", "irregular words")


@dataclass(frozen=True)
class Turn:
    """One turn of events. learner: its place in the lesson, None for the end, which is about all of them."""

    step: int
    learner: int | None
    kind: str
    first: str
    second: str

    @property
    def text(self) -> str:
        return f"{self.first} {self.second}"


def find(steps: Sequence[int], names: Sequence[str], curves: Sequence[Curves], nouns: Nouns) -> list[Turn]:
    """Every turn so far, in order of steps.

    Args:
        steps: of the evaluations, rising.
        names: of the learners.
        curves: of each learner, as long as ``steps``; a language without rote items, say, lacks that series. NaN from
            the step at which a learner diverged.
    """
    turns = [
        turn
        for learner, name in enumerate(names)
        for turn in _of_one(_Story(steps, names, curves, nouns, learner, name))
    ]
    return sorted(turns, key=lambda turn: turn.step)


def ending(
    steps: Sequence[int], names: Sequence[str], curves: Sequence[Curves], nouns: Nouns, found: Sequence[Turn]
) -> Turn:
    """The last turn: who got where first, and where all stand."""
    counting = [series for series in (HELDOUT, ROTE) if series in curves[0]]
    shown = counting or list(curves[0])
    parts = []
    for kind, series in (("rule", HELDOUT), ("fitted", ROTE)):
        if series not in counting:
            continue
        reached = sorted((t.step, t.learner) for t in found if t.kind == kind and t.learner is not None)
        told = [f"{names[learner]} at step {step}" for step, learner in reached]
        told += [
            f"{n} not in {steps[-1]} steps" for i, n in enumerate(names) if i not in {r[1] for r in reached}
        ]
        parts.append(f"{FITTED:.0%} of the {getattr(nouns, series)} right: {', '.join(told)}")
    stand = [
        f"{name} has " + " and ".join(_share(nouns, series, c[series][-1]) for series in shown)
        for name, c in zip(names, curves, strict=True)
    ]
    return Turn(
        steps[-1],
        None,
        "end",
        f"{'; '.join(parts) or 'Nothing here counts to a rule or to rote'}.",
        f"At the end {'; '.join(stand)}." if shown else "The lesson is over.",
    )


@dataclass(frozen=True)
class _Story:
    """One learner's curves among the others', and words for their values."""

    steps: Sequence[int]
    names: Sequence[str]
    curves: Sequence[Curves]
    nouns: Nouns
    learner: int
    name: str

    @property
    def own(self) -> Curves:
        return self.curves[self.learner]

    def turn(self, at: int, kind: str, first: str, second: str) -> Turn:
        return Turn(self.steps[at], self.learner, kind, first, second)

    def share(self, series: str, at: int) -> str:
        return _share(self.nouns, series, self.own[series][at])

    def others(self, series: str, at: int) -> str:
        """``Muon has 40% there`` for each of the other learners."""
        told = [
            f"{name} has {_percent(c[series][at])}"
            for i, (name, c) in enumerate(zip(self.names, self.curves, strict=True))
            if i != self.learner
        ]
        return f"At this step {' and '.join(told)} of them right." if told else "It learns alone."


def _of_one(story: _Story) -> Iterator[Turn]:
    own, steps = story.own, story.steps
    length = range(len(steps))
    diverged = next((i for i in length if any(value[i] != value[i] for value in own.values())), None)
    if diverged is not None:
        yield story.turn(
            diverged,
            "diverged",
            f"{story.name} has diverged: its loss is no longer a number.",
            "A smaller learning rate may help.",
        )
    if TRAINED in own and HELDOUT in own:
        yield from _rote_first(story)
    if HELDOUT in own:
        at = _first(own[HELDOUT], FITTED)
        if at is not None:
            first = f"{story.name} has learnt the rule: {story.share(HELDOUT, at)}."
            yield story.turn(at, "rule", first, story.others(HELDOUT, at))
    if REGULARIZED in own:
        yield from _regularization(story)
    if ROTE in own:
        at = _first(own[ROTE], FITTED)
        if at is not None:
            first = f"{story.name} has fitted the {story.nouns.rote}: {_percent(own[ROTE][at])} right."
            second = story.others(ROTE, at)
            if HELDOUT in own:
                second = f"It has {story.share(HELDOUT, at)}."
            yield story.turn(at, "fitted", first, second)
    if HELDOUT in own:
        yield from _spoilt(story)


def _rote_first(story: _Story) -> Iterator[Turn]:
    trained, heldout = story.own[TRAINED], story.own[HELDOUT]
    for i, (seen, unseen) in enumerate(zip(trained, heldout, strict=True)):
        if seen >= HALF and seen - unseen >= ROTE_GAP:
            yield story.turn(
                i,
                "rote",
                f"{story.name} has {story.share(TRAINED, i)}, and {story.share(HELDOUT, i)}.",
                f"The {100 * (seen - unseen):.0f} points between the two are known by rote, not by the rule.",
            )
            return


def _regularization(story: _Story) -> Iterator[Turn]:
    over, rote = story.own[REGULARIZED], story.own[ROTE]
    at = _first(over, HALF)
    if at is not None:
        yield story.turn(
            at,
            "regularized",
            f"{story.name} over-regularizes: it answers {_percent(over[at])} of the {story.nouns.rote} as the rule "
            "would, like 'goed' for 'went'.",
            f"It has {_percent(rote[at])} of them right.",
        )
    best = 0
    for i in range(1, len(rote)):
        if rote[i] > rote[best]:
            best = i
        if rote[best] - rote[i] >= DIP and over[i] > over[best]:
            yield story.turn(
                i,
                "dip",
                f"{story.name} loses {story.nouns.rote} it had: {_percent(rote[best])} right at step "
                f"{story.steps[best]}, {_percent(rote[i])} now.",
                f"Meanwhile those answered as the rule would went from {_percent(over[best])} to {_percent(over[i])}.",
            )
            return


def _spoilt(story: _Story) -> Iterator[Turn]:
    heldout = story.own[HELDOUT]
    start = _first(heldout, FITTED)
    if start is None:
        return
    best, lost = start, None
    for i in range(start + 1, len(heldout)):
        if lost is None and heldout[i] > heldout[best]:
            best = i
        if lost is None and heldout[best] - heldout[i] >= SPOILT:
            lost = i
            second = story.others(HELDOUT, i)
            if ROTE in story.own:
                rote = story.own[ROTE]
                second = (
                    f"In the same time its {story.nouns.rote} went from {_percent(rote[best])} to "
                    f"{_percent(rote[i])} right."
                )
            yield story.turn(
                i,
                "spoilt",
                f"{story.name} spoils {story.nouns.heldout}: {_percent(heldout[best])} right at step "
                f"{story.steps[best]}, {_percent(heldout[i])} now.",
                second,
            )
        elif lost is not None and heldout[i] >= heldout[best] - HEALED:
            yield story.turn(
                i,
                "healed",
                f"{story.name} is back at {story.share(HELDOUT, i)}.",
                f"It took {story.steps[i] - story.steps[lost]} steps from {_percent(heldout[lost])}.",
            )
            return


def _first(values: Sequence[float], level: float) -> int | None:
    return next((i for i, value in enumerate(values) if value >= level), None)


def _percent(value: float) -> str:
    return "an unknown share" if value != value else f"{value:.0%}"


def _share(nouns: Nouns, series: str, value: float) -> str:
    return f"{_percent(value)} of the {getattr(nouns, series)}"
