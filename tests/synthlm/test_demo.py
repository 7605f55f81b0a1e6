"""The lesson: what its engine trains, when turns are told, what the screen shows, that a seed fixes it all."""

import dataclasses
import io
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from synthlm import cli, options, training
from synthlm import model as transformer
from synthlm.analysis.tendency import regularized
from synthlm.config import InputError
from synthlm.demo import run, turns
from synthlm.demo.canvas import Line, draw
from synthlm.demo.lesson import Frame, Lesson, Word
from synthlm.demo.screen import (
    STYLES,
    WRONG,
    Animated,
    legend,
    screen,
    spell,
    token_style,
    view,
    word_line,
)
from synthlm.demo.turns import HELDOUT, REGULARIZED, ROTE, TRAINED, VERBS
from synthlm.optimizers import RULES
from synthlm.store import Store
from synthlm.tasks.language import FIRST_SYMBOL
from synthlm.trained import final_weights

SMALL = (
    "language.alphabet=8",
    'language.rule={ name = "cipher", length = 2, items = 40, heldout = 16 }',
    "language.exceptions=8",
    "model.width=16",
    "model.mlp=32",
    "model.heads=2",
    "model.layers=1",
    "training.batch=16",
)


def small(steps: int = 30, seed: int = 0, optimizers: str = "adamw,muon", settings=()) -> run.Plan:
    return run.plan("exceptions", optimizers, None, steps, seed, [*SMALL, *settings])


def transcript(made: run.Plan, out: Path) -> str:
    console = Console(file=io.StringIO(), width=100)
    run.teach(made, out, console, animated=False)
    return (
        console.file.getvalue().rpartition("\n")[0].rpartition("\n")[0]
    )  # without the line that tells the time


# -- the engine --------------------------------------------------------------------------------------------------------


def test_the_engine_trains_what_a_job_trains(tmp_path: Path) -> None:
    """Side by side with other optimizers, each learner ends in the numbers of its own ``synthlm train``."""
    made = small(steps=40)
    frame = list(made.lesson.play())[-1]
    store = Store(tmp_path)
    for job, learner in zip(made.lesson.jobs, frame.learners, strict=True):
        training.run_batch([job], store)
        metrics = store.load(job.key).metrics
        stored = {
            (metrics["slice"][i], metrics["step"][i]): metrics["exact"][i]
            for i in range(len(metrics["step"]))
        }
        names = {TRAINED: "rule/train", HELDOUT: "rule/heldout", ROTE: "exception"}
        compared = 0
        for series, name in names.items():
            for step, value in zip(frame.steps, learner.curves[series], strict=True):
                if (f"exceptions/{name}", step) in stored:
                    assert value == pytest.approx(stored[f"exceptions/{name}", step])
                    compared += 1
        assert compared >= 3 * 10


def test_frames_grow_and_end_with_an_ending() -> None:
    frames = list(small().lesson.play())
    assert [frame.step for frame in frames] == list(frames[-1].steps)
    assert frames[0].step == 0
    assert frames[-1].step == frames[-1].total == 30
    assert [frame.turns[-1].kind for frame in frames if frame.turns and frame.turns[-1].learner is None] == [
        "end"
    ]
    for before, after in itertools.pairwise(frames):
        assert after.turns[: len(before.turns)] == before.turns  # nothing told is ever taken back
        for a, b in zip(before.learners, after.learners, strict=True):
            assert all(b.curves[series][: len(values)] == values for series, values in a.curves.items())
    json.dumps(dataclasses.asdict(frames[-1]))  # a view may live elsewhere


def test_the_rule_of_an_exception_is_the_cipher_of_its_key() -> None:
    """Rebuilt from the regular items alone: each position's substitution, symbol by symbol."""
    made = run.plan("exceptions", "adamw", None, 5, 3, SMALL)
    lesson = made.lesson
    table, rule = lesson.language.probe, lesson.rule
    assert rule is not None
    keys = table.tokens[:, 1:3]
    regular = np.concatenate([lesson.groups[TRAINED], lesson.groups[HELDOUT]])
    substitution = {
        (place, keys[item, place]): table.targets[item, 3 + place] for item in regular for place in range(2)
    }
    for item in lesson.groups[ROTE]:
        said = [substitution.get((place, keys[item, place])) for place in range(2)]
        assert all(symbol in (None, right) for symbol, right in zip(said, rule[item, 3:], strict=True))
        assert (rule[item] != table.targets[item]).any()
    assert (rule[regular] == table.targets[regular]).all()
    frame = next(lesson.play())
    words = [word for word in frame.learners[0].words if word.series == ROTE]
    share = regularized([word.answer for word in words], [word.rule for word in words])
    assert set(share) <= {0.0, 1.0}


def test_another_language_has_the_series_it_has() -> None:
    facts = ["language.items=10", "language.alphabet=8", *SMALL[3:]]
    frame = list(run.plan("facts", "adamw", None, 4, 0, facts).lesson.play())[-1]
    assert set(frame.learners[0].curves) == {ROTE}
    assert frame.learners[0].words[0].rule is None
    reverse = ["language.items=10", "language.heldout=5", "language.alphabet=8", *SMALL[3:]]
    frame = list(run.plan("reverse", "sgd", None, 4, 0, reverse).lesson.play())[-1]
    assert set(frame.learners[0].curves) == {TRAINED, HELDOUT}


def test_where_a_part_of_an_item_is_the_rule_that_part_alone_counts(tmp_path: Path) -> None:
    """Dyck: forced closing brackets, as the model of ``synthlm train`` has them; free brackets count to nothing."""
    sizes = ["language.items=60", "language.heldout=20", "language.pairs=4", "language.depth=2"]
    made = run.plan("dyck", "adamw", None, 40, 0, [*sizes, "language.alphabet=8", *SMALL[3:]])
    lesson, table = made.lesson, made.lesson.language.probe
    frame = list(lesson.play())[-1]
    assert set(frame.learners[0].curves) == {TRAINED, HELDOUT}
    assert lesson.counts == {TRAINED: 60, HELDOUT: 20}
    store = Store(tmp_path)
    training.run_batch([lesson.jobs[0]], store)
    flat = final_weights(lesson.jobs[0], store)[None]
    model = lesson.jobs[0].model
    logits = transformer.forward(model, model.layout.views(flat), torch.tensor(table.tokens)[None])
    answer = logits.argmax(-1)[0].numpy()  # each token after the true ones
    for series, name in {TRAINED: "dyck/rule/train", HELDOUT: "dyck/rule/heldout"}.items():
        index = lesson.language.slices.index(name)
        right = [
            all(answer[i, t] == table.targets[i, t] for t in np.flatnonzero(table.slices[i] == index))
            for i in range(len(answer))
            if index in table.slices[i]
        ]
        assert frame.learners[0].curves[series][-1] == pytest.approx(sum(right) / len(right))
        assert 0 < sum(right) < len(right)
    forced = table.slices == lesson.language.slices.index("dyck/rule/heldout")
    word = next(word for word in frame.learners[0].words if word.series == HELDOUT)
    item = lesson.groups[HELDOUT][0]
    assert word.truth == tuple(table.targets[item][forced[item]].tolist())
    assert word.prompt == tuple(table.tokens[item, : np.argmax(forced[item]) + 1].tolist())
    assert "of the rule items it never saw" in frame.turns[-1].second


def test_a_diverged_learner_is_told_and_leaves_the_other_alone() -> None:
    made = run.plan("exceptions", "adamw,sgd", "0.003,1e30", 20, 0, SMALL)
    frame = list(made.lesson.play())[-1]
    assert [turn.learner for turn in frame.turns if turn.kind == "diverged"] == [1]
    alone = list(run.plan("exceptions", "adamw", "0.003", 20, 0, SMALL).lesson.play())[-1]
    assert frame.learners[0].curves == alone.learners[0].curves
    assert math.isnan(frame.learners[1].curves[ROTE][-1])
    assert "unknown" in frame.turns[-1].text


def test_learners_that_differ_in_more_than_the_optimizer_are_refused() -> None:
    first, second = small().lesson.jobs
    with pytest.raises(InputError, match="differ in nothing else"):
        Lesson([first, second.model_copy(update={"seed": 1})], ["a", "b"])


# -- turns -------------------------------------------------------------------------------------------------------------

STEPS = [0, 1, 2, 4, 8, 16, 32]


def told(**curves: list[float]) -> list[tuple[int, str]]:
    names = {"trained": TRAINED, "heldout": HELDOUT, "rote": ROTE, "over": REGULARIZED}
    other = {names[k]: [0.0] * len(v) for k, v in curves.items()}
    mine = {names[k]: v for k, v in curves.items()}
    found = turns.find(STEPS[: len(next(iter(curves.values())))], ["A", "B"], [mine, other], VERBS)
    assert all(turn.learner == 0 for turn in found)
    assert all(turn.first.startswith("A ") for turn in found)
    return [(turn.step, turn.kind) for turn in found]


def test_the_rule_is_learnt_when_held_out_words_are() -> None:
    assert told(heldout=[0, 0.89, 0.9, 0.95]) == [(2, "rule")]
    assert told(heldout=[0, 0.5, 0.8, 0.89]) == []


def test_rote_first_needs_a_gap() -> None:
    assert told(trained=[0, 0.4, 0.6, 1], heldout=[0, 0, 0.2, 0.2]) == [(2, "rote")]
    assert told(trained=[0, 0.4, 0.6, 0.8], heldout=[0, 0.2, 0.4, 0.6]) == []


def test_a_u_shaped_curve_is_told_in_its_order() -> None:
    found = told(
        heldout=[0, 0.1, 0.5, 0.95, 0.96, 0.97, 0.97],
        rote=[0, 0.3, 0.25, 0.1, 0.4, 0.95, 1],
        over=[0, 0.1, 0.3, 0.8, 0.5, 0.0, 0.0],
    )
    assert found == [(4, "rule"), (4, "regularized"), (4, "dip"), (16, "fitted")]


def test_a_fall_of_the_irregular_without_the_rule_is_no_dip() -> None:
    assert told(rote=[0, 0.5, 0.1, 0.1], over=[0.2, 0.1, 0.1, 0.1]) == []


def test_spoiling_and_healing_follow_the_rule() -> None:
    assert told(heldout=[0.95, 0.97, 0.93, 0.91, 0.9, 0.97, 0.8]) == [
        (0, "rule"),
        (4, "spoilt"),
        (16, "healed"),
    ]
    assert told(heldout=[0.8, 0.2, 0.8]) == []  # it was not learnt
    found = turns.find([0, 1], ["A"], [{HELDOUT: [1.0, 0.9], ROTE: [0.2, 0.7]}], VERBS)
    assert "from 20% to 70%" in found[-1].second


def test_the_ending_says_who_was_first() -> None:
    curves = [{HELDOUT: [0, 0.5], ROTE: [0, 0.95]}, {HELDOUT: [0, 0.92], ROTE: [0, 1.0]}]
    found = turns.find([0, 7], ["A", "B"], curves, VERBS)
    end = turns.ending([0, 7], ["A", "B"], curves, VERBS, found)
    assert "90% of the regular words it never saw right: B at step 7, A not in 7 steps" in end.first
    assert "A has 50% of the regular words it never saw and 95% of the irregular words" in end.second


def test_the_ending_makes_sense_whatever_there_is() -> None:
    only = [{TRAINED: [0, 0.5]}, {TRAINED: [0, 0.7]}]
    end = turns.ending([0, 7], ["A", "B"], only, VERBS, [])
    assert end.first == "Nothing here counts to a rule or to rote."
    assert "A has 50% of the regular words it trains on; B has 70% of" in end.second
    assert turns.ending([0, 7], ["A"], [{}], VERBS, []).second == "The lesson is over."


# -- the view ----------------------------------------------------------------------------------------------------------


def test_a_curve_is_drawn_where_it_is() -> None:
    rows = [row.plain for row in draw([Line([(0, 0), (0.5, math.nan), (1, 1)], "red")], 6, 3)]
    assert rows[0] == "     ⠈"
    assert rows[2][0] == "⡀"
    assert rows[1].strip() == ""
    full = draw([Line([(0, 0.5), (1, 0.5)], "red"), Line([(0, 0.5), (1, 0.5)], "blue")], 6, 3)
    assert {str(span.style) for row in full for span in row.spans if row.plain.strip()} <= {"blue", ""}


def test_tokens_are_coloured_by_how_they_came_about() -> None:
    word = Word(ROTE, (4, 20), truth=(21, 22, 23, 24), answer=(21, 30, 23, 40), rule=(21, 30, 31, 32))
    colours = [token_style(word, place) for place in range(4)]
    assert colours == [STYLES[TRAINED], STYLES[REGULARIZED], STYLES[ROTE], WRONG]
    regular = Word(HELDOUT, (4, 20), truth=(21, 22), answer=(21, 23), rule=(21, 22))
    assert [token_style(regular, place) for place in range(2)] == [STYLES[HELDOUT], WRONG]


def test_only_words_never_seen_are_right_by_the_rule() -> None:
    """A regular word that was trained on may be known by rote: its colour does not say how."""
    word = Word(TRAINED, (4, 20), truth=(21, 22), answer=(21, 22), rule=(21, 22))
    assert {token_style(word, place) for place in range(2)} == {STYLES[TRAINED]}
    assert token_style(dataclasses.replace(word, series=HELDOUT), 0) == STYLES[HELDOUT]
    whole = legend(VERBS, [TRAINED, HELDOUT, ROTE, REGULARIZED])
    told = {whole.plain[span.start : span.end]: span.style for span in whole.spans}
    assert told["right, trained on"] == STYLES[TRAINED]
    assert told["right, by the rule"] == STYLES[HELDOUT]
    assert "by the rule" not in legend(VERBS, [ROTE]).plain


def test_letters_where_they_suffice() -> None:
    assert spell([4, FIRST_SYMBOL, FIRST_SYMBOL + 25], 26) == "az"
    assert spell([FIRST_SYMBOL, FIRST_SYMBOL + 30], 64) == "0 30"


def test_a_wrong_word_shows_the_right_one_where_there_is_room() -> None:
    word = Word(ROTE, (4, 16, 17), truth=(18, 19), answer=(18, 20), rule=(18, 20))
    assert word_line(word, 26).plain == "ab → ce ✗ cd"
    assert word_line(word, 26, short=True).plain == "ab → ce ✗"
    assert word_line(dataclasses.replace(word, answer=(18, 19)), 64).plain == "0 1 → 2 3 ✓"


def test_the_screen_fits_its_width(tmp_path: Path) -> None:
    made = small(steps=3)
    for frame in made.lesson.play():
        for width in (80, 120, 200):
            console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
            console.print(screen(frame, made.title, VERBS, made.alphabet, width))
            lines = console.file.getvalue().splitlines()
            assert max(map(len, lines)) <= width
            assert any("irregular words" in line for line in lines)


def test_a_terminal_gets_a_live_screen() -> None:
    made = small(steps=2)
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with view(console, made.title, VERBS, made.alphabet, animated=True) as shown:
        assert isinstance(shown, Animated)
        for frame in made.lesson.play():
            shown.show(frame)
    assert "step 2 of 2" in console.file.getvalue()


# -- the command -------------------------------------------------------------------------------------------------------


def test_same_seed_same_lesson(tmp_path: Path) -> None:
    first, again = (transcript(small(seed=5), tmp_path / name) for name in "ab")
    assert first == again
    assert first.count("step") >= 1
    for name in ("demo.csv", "demo.png", "demo.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert transcript(small(seed=6), tmp_path / "c") != first


def test_the_order_of_learners_changes_nothing_but_the_order() -> None:
    one, two = (list(small(optimizers=o).lesson.play())[-1] for o in ("adamw,muon", "muon,adamw"))
    assert one.learners[0].curves == two.learners[1].curves
    assert one.learners[1].curves == two.learners[0].curves


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["synthlm", "demo", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code or 0


def test_the_command_prints_turns_and_keeps_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for setting in SMALL for word in ("--set", setting)]
    out = tmp_path / "kept"
    assert command(monkeypatch, "--steps", "4", "--device", "cpu", "--out", str(out), *settings) == 0
    shown = capsys.readouterr().out
    assert "AdamW (lr 0.003) and Muon (lr 0.02) on exceptions, seed 0" in shown
    assert "step     4" in shown
    assert sorted(path.name for path in out.iterdir()) == ["demo.csv", "demo.pdf", "demo.png"]
    assert (out / "demo.csv").read_text().startswith("learner,series,step,share,n\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optimizers", "adamw,muom"], "did you mean 'muon'"),
        (["--optimizers", ","], "allowed: 1 to 4"),
        (["--optimizers", "adamw,muon", "--lrs", "0.1"], "1 given for 2 optimizers"),
        (["--optimizers", "adamw", "--lrs", "fast"], "should be numbers"),
        (["--optimizers", "adamw", "--lrs", "-1"], "lrs: -1 should be a number of at least 0"),
        (["--set", "language.name=facts", "--set", "language.itms=3"], "language: itms: unknown field"),
        (["--set", "training.batch=0"], "demo: training.batch: 0"),
        (["--language", "exeptions"], "did you mean 'exceptions'"),
        (["--set", "language.exceptions=5000"], "exceptions: 5000"),
        (["--set", "language.colour=3"], "unknown field"),
        (["--set", "stop_loss=0.1"], "stop_loss: a lesson goes without it"),
        (["--set", "model.width=15"], "heads: 4 must divide width 15"),
        (["--steps", "0"], "steps: 0"),
    ],
)
def test_bad_input_is_named_before_anything_trains(
    words: list[str], message: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command(monkeypatch, "--out", str(tmp_path / "x"), *words) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert not (tmp_path / "x").exists()


def test_one_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(monkeypatch, "--optimizers", "adamw,foo") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("synthlm: optimizers: 'foo' is not one of adamw, sgd")
    assert command(monkeypatch, "--set", "language.name=facts", "--set", "language.itms=3") == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_optimizer_has_a_learning_rate() -> None:
    """None diverges at it."""
    for names in ("adamw,sgd,muon,signsgd", "lion,shampoo,soap"):
        made = small(steps=20, optimizers=names)
        frame = list(made.lesson.play())[-1]
        assert not [turn for turn in frame.turns if turn.kind == "diverged"]
        assert all(job.optimizer.lr > 0 for job in made.lesson.jobs)
    assert set(options.LEARNING_RATES) == set(RULES)


def test_another_language_or_rule_leaves_the_defaults_of_the_verbs_behind() -> None:
    sizes = ["language.name=facts", "language.items=10", "language.alphabet=8", *SMALL[3:]]
    assert run.plan("exceptions", "adamw", None, 4, 0, sizes).lesson.language.config.name == "facts"
    modular = ["language.rule.name=modular", "language.rule.modulus=17", *SMALL[3:]]
    config = run.plan("exceptions", "adamw", None, 4, 0, modular).lesson.language.config
    assert (config.rule.name, config.rule.modulus, config.exceptions) == ("modular", 17, 60)
    again = run.plan("facts", "adamw", None, 4, 0, ["language.name=exceptions", *SMALL[3:]])
    assert again.lesson.language.config.exceptions == 60


def test_a_folder_that_cannot_be_written_is_refused_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(Lesson, "play", lambda self: pytest.fail("it trained"))
    assert command(monkeypatch, "--out", str(tmp_path / "file"), "--device", "cpu") == 2


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    frames: list[Frame] = [run.teach(small(steps=1), tmp_path, Console(file=io.StringIO()), False)]
    assert frames[0].step == 1
    assert torch.get_num_threads() == before
