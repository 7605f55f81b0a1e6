"""The engine of the lesson: trains learners side by side on the run axis and yields frames; shows nothing.

A frame holds plain numbers, strings and tuples only, so a view may live in another process.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from synthlm import model as transformer
from synthlm import optimizers, schedules
from synthlm.config import InputError
from synthlm.demo import turns
from synthlm.demo.turns import HELDOUT, REGULARIZED, ROTE, TRAINED, VERBS, Nouns, Turn
from synthlm.jobs import Pretrain
from synthlm.optimizers import GroupOptimizer
from synthlm.seeds import torch_generator
from synthlm.tasks import IGNORE, Exceptions, Language, build
from synthlm.tasks.language import FIRST_SYMBOL
from synthlm.training import Order

FRAMES = 80
"""Evaluations of a lesson at most: half of them log-spaced, half evenly spaced."""
SHOWN = 4
"""Words of each kind that a frame shows, the same throughout a lesson."""

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Word:
    """One item as a learner answers it, as token ids: those that count to its series.

    series: which series it counts to. prompt: what comes before. truth: the answer to be learnt. answer: the learner's.
    rule: what the rule says, where the language has a rule for it.
    """

    series: str
    prompt: tuple[int, ...]
    truth: tuple[int, ...]
    answer: tuple[int, ...]
    rule: tuple[int, ...] | None


@dataclass(frozen=True)
class Learner:
    """One learner so far. curves: series -> share of items right in every token that counts to the series, one value
    an evaluation.
    """

    name: str
    curves: dict[str, tuple[float, ...]]
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Frame:
    """A moment of the lesson. total: steps in all. steps: of the evaluations so far. turns: all so far."""

    step: int
    total: int
    steps: tuple[int, ...]
    learners: tuple[Learner, ...]
    turns: tuple[Turn, ...]


class Lesson:
    """Learners of one language that differ in their optimizer alone.

    Args:
        jobs: one a learner: what ``synthlm train`` would train; the same numbers come out here.
        names: one a learner.

    Raises:
        InputError: without a job, when jobs differ in more than the optimizer or ask for what a lesson does not know,
            or when nothing in the language counts to rote or rule.
    """

    def __init__(self, jobs: Sequence[Pretrain], names: Sequence[str], device: str = "cpu") -> None:
        if not jobs or len(jobs) != len(names):
            raise InputError("optimizers: a lesson needs at least one, and a name for each")
        first = jobs[0]
        if any(job.model_copy(update={"optimizer": first.optimizer}) != first for job in jobs):
            raise InputError("optimizers: the learners of a lesson may differ in nothing else")
        for field, value in (
            ("stop_loss", first.stop_loss),
            ("training.perturb", first.training.perturb),
            ("training.edge", first.training.edge),
        ):
            if value is not None:
                raise InputError(f"{field}: a lesson goes without it; 'synthlm train' knows it")
        self.jobs, self.names, self.device = tuple(jobs), tuple(names), device
        self.language = build(first.language, first.seed)
        self.nouns = VERBS if isinstance(first.language, Exceptions) else Nouns()
        self.counted = _counted(self.language)
        self.groups = {series: np.flatnonzero(of.any(1)) for series, of in self.counted.items()}
        if not self.groups:
            raise InputError(f"language: nothing in {first.language.name!r} counts to rote or rule")

    @cached_property
    def rule(self) -> Integers | None:
        """[item, time] what the rule says of each probe item, as ``targets``; for a language of rule and exceptions."""
        config = self.language.config
        if not isinstance(config, Exceptions):
            return None
        drawn = config.rule.draw(config.alphabet, config.generators(self.jobs[0].seed))
        said = {tuple(key): answer for key, answer in zip(drawn.keys.tolist(), drawn.answers, strict=True)}
        table = self.language.probe
        keys = table.tokens[:, 1 : 1 + drawn.keys.shape[1]] - FIRST_SYMBOL
        rule = table.targets.copy()
        rule[table.scored] = np.concatenate([said[tuple(key)] for key in keys.tolist()]) + FIRST_SYMBOL
        return rule

    @property
    def counts(self) -> dict[str, int]:
        """Series -> number of items behind each of its values."""
        counts = {series: len(items) for series, items in self.groups.items()}
        return counts if self.rule is None else counts | {REGULARIZED: counts[ROTE]}

    def play(self) -> Iterator[Frame]:
        """Train and yield a frame at each evaluation, the first before training; the last one holds the ending."""
        class_, total = _Class(self), self.jobs[0].training.steps
        half = min(FRAMES // 2, total)
        examine_at = {0, *schedules.log_spaced(half, total)} | {
            round(k * total / half) for k in range(1, half + 1)
        }
        steps: list[int] = []
        curves: list[dict[str, list[float]]] = [{} for _ in self.jobs]
        for step in range(total + 1):
            if step in examine_at:
                steps.append(step)
                yield self._frame(steps, curves, class_.answers())
            if step < total:
                class_.teach(step)

    def _frame(
        self, steps: list[int], curves: list[dict[str, list[float]]], answers: list[Integers | None]
    ) -> Frame:
        total = self.jobs[0].training.steps
        truth = self.language.probe.targets
        learners = []
        for name, own, answer in zip(self.names, curves, answers, strict=True):
            for series, items in self.groups.items():
                own.setdefault(series, []).append(_right(answer, truth, items, self.counted[series]))
            if self.rule is not None:
                over = _right(answer, self.rule, self.groups[ROTE], self.counted[ROTE])
                own.setdefault(REGULARIZED, []).append(over)
            words = () if answer is None else self._words(answer)
            learners.append(Learner(name, {series: tuple(values) for series, values in own.items()}, words))
        found = turns.find(steps, self.names, curves, self.nouns)
        if steps[-1] == total:
            found.append(turns.ending(steps, self.names, curves, self.nouns, found))
        return Frame(steps[-1], total, tuple(steps), tuple(learners), tuple(found))

    def _words(self, answer: Integers) -> tuple[Word, ...]:
        table = self.language.probe

        def tokens(row: Integers, item: int, series: str) -> tuple[int, ...]:
            return tuple(row[item][self.counted[series][item]].tolist())

        words = []
        for series, items in self.groups.items():
            shown = min(SHOWN, len(items))
            for item in items[np.arange(shown) * len(items) // shown].tolist():
                start = int(np.argmax(self.counted[series][item]))
                words.append(
                    Word(
                        series,
                        tuple(table.tokens[item, : start + 1].tolist()),
                        tokens(table.targets, item, series),
                        tokens(answer, item, series),
                        None if self.rule is None else tokens(self.rule, item, series),
                    )
                )
        return tuple(words)


class _Class:
    """The learners' weights [run, param], how they are taught and what they answer."""

    def __init__(self, lesson: Lesson) -> None:
        first = lesson.jobs[0]
        self.model, self.training, self.device = first.model, first.training, lesson.device
        runs = len(lesson.jobs)
        row = transformer.init(first.model, torch_generator(first.seed, "init"))
        self.flat = row.repeat(runs, 1).to(self.device)
        layout = first.model.layout
        self.layout = layout
        self.groups = [
            [
                (GroupOptimizer(layout, "matrix", [job.optimizer]), torch.tensor([job.optimizer.lr])),
                (GroupOptimizer(layout, "aux", [job.aux]), torch.tensor([job.aux.lr])),
            ]
            for job in lesson.jobs
        ]
        self.states = [
            [group.init(self.flat[r : r + 1]) for group, _ in own] for r, own in enumerate(self.groups)
        ]
        train, probe = lesson.language.train, lesson.language.probe
        self.order = Order([lesson.language], [first.seed], "pretrain", first.training.batch)
        # as in training: no positions after the last scored one, no logits before the first
        used = np.flatnonzero(train.scored.any(0))
        self.first_scored, length = int(used[0]), int(used[-1]) + 1
        self.tokens = torch.tensor(train.tokens[:, :length], device=self.device)
        self.targets = torch.tensor(train.targets[:, self.first_scored : length], device=self.device)
        self.probe = torch.tensor(probe.tokens, device=self.device).expand(runs, -1, -1)
        scored = probe.scored
        # a word is spoken freely where all answers are the same last positions and count as a whole; else each token
        # after the true ones
        self.start = int(np.argmax(scored.any(0)))
        whole = all((of == scored)[of.any(1)].all() for of in lesson.counted.values())
        self.free = whole and bool(scored[:, self.start :].all())
        self.scored = scored

    def teach(self, step: int) -> None:
        """One training step of every learner, on the same items."""
        index = torch.from_numpy(self.order(step)[0]).to(self.device)
        runs = len(self.groups)
        tokens = self.tokens[index].expand(runs, -1, -1)
        targets = self.targets[index].expand(runs, -1, -1)
        flat = self.flat.requires_grad_()
        views = self.layout.views(flat)
        x = transformer.hidden(self.model, views, tokens)[:, :, self.first_scored :]
        logits = transformer.unembed(self.model, views, x)
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=IGNORE, reduction="none")
        per_run = loss.view(runs, -1).sum(1) / (targets != IGNORE).flatten(1).sum(1)
        (grad,) = torch.autograd.grad(per_run.sum(), flat)
        flat.requires_grad_(False)
        if self.training.clip is not None:
            optimizers.clip_(grad, torch.full((runs,), self.training.clip, device=self.device))
        factor = schedules.factor(step, self.training.steps, self.training.schedule)
        for r, own in enumerate(self.groups):
            for (group, rate), state in zip(own, self.states[r], strict=True):
                group.step(flat[r : r + 1], grad[r : r + 1], state, rate.to(self.device) * factor)

    @torch.no_grad()
    def answers(self) -> list[Integers | None]:
        """For each learner [item, time], ``IGNORE`` where unscored; None when its numbers are no longer finite."""
        views = self.layout.views(self.flat)
        tokens = self.probe.clone()
        time = tokens.shape[2]
        said = torch.empty_like(tokens)
        finite = torch.ones(len(tokens), dtype=torch.bool, device=self.device)
        for position in range(self.start, time) if self.free else (time - 1,):
            logits = transformer.forward(self.model, views, tokens[..., : position + 1])
            finite &= torch.isfinite(logits).flatten(1).all(1)
            best = logits.argmax(-1)
            if not self.free:
                said = best
            else:
                said[..., position] = best[..., position]
                if position + 1 < time:
                    tokens[..., position + 1] = best[..., position]
        return [
            np.where(self.scored, row.cpu().numpy(), IGNORE) if ok else None
            for row, ok in zip(said, finite.tolist(), strict=True)
        ]


def _counted(language: Language) -> dict[str, Mask]:
    """Series -> [probe item, time] which positions count to it; series without any are left out."""
    goals, slices = language.goals, language.probe.slices
    rule = {name for name, goal in goals.items() if goal == "rule"}
    chosen = {
        TRAINED: {name for name in goals if name.endswith("/train") and _heldout(name) in rule},
        HELDOUT: rule,
        ROTE: {name for name, goal in goals.items() if goal == "rote"},
    }
    masks = {
        series: np.isin(slices, [i for i, name in enumerate(language.slices) if name in mine])
        for series, mine in chosen.items()
    }
    return {series: mask for series, mask in masks.items() if mask.any()}


def _heldout(name: str) -> str:
    """The slice of held-out items beside one of training items."""
    return f"{name.removesuffix('train')}heldout"


def _right(answer: Integers | None, truth: Integers, items: Integers, counted: Mask) -> float:
    """Share of the items with every counted token as in ``truth``; NaN without an answer."""
    if answer is None:
        return float("nan")
    return float(((answer == truth) | ~counted)[items].all(1).mean())
