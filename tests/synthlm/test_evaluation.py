"""Evaluation against loops over items and positions, and its silence about runs that broke."""

import math
import secrets

import numpy as np
import pytest
import torch

from synthlm import model
from synthlm.evaluation import Probe, evaluate, log_probabilities
from synthlm.model import ModelConfig
from synthlm.tasks import IGNORE, Cipher, Exceptions, Facts, Language, Mixture

CONFIG = Mixture(
    parts=(
        Facts(tag=0, alphabet=8, items=20, key_length=2, value_length=2, frequency="zipf", tail=0.4),
        Cipher(tag=1, alphabet=8, length=3, items=30, heldout=9, probe=12),
        Exceptions(
            tag=2, alphabet=8, rule={"name": "cipher", "length": 2, "items": 15, "heldout": 6}, exceptions=5
        ),
    ),
    weights=(1.0, 2.0, 0.5),
)
MODEL = ModelConfig(vocab=24, length=8, width=8, layers=1, heads=2, mlp=12)
SEEDS = [3, 11, 400]


@pytest.fixture(scope="module")
def languages() -> list[Language]:
    return [CONFIG.build(seed) for seed in SEEDS]


@pytest.fixture
def generator() -> torch.Generator:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.Generator().manual_seed(seed)


def draw_log_p(probe: Probe, generator: torch.Generator) -> torch.Tensor:
    """Random predictions that are right about half of the time."""
    shape = (*probe.target.shape, MODEL.vocab)
    logits = torch.randn(shape, generator=generator)
    lift = 6 * (torch.rand(probe.target.shape, generator=generator) < 0.6).float()
    return logits.scatter_add(-1, probe.target[..., None], lift[..., None]).log_softmax(-1)


def by_loops(language: Language, log_p: np.ndarray, base: np.ndarray) -> dict[str, dict[str, float]]:
    """Slice -> numbers, from one run's log probabilities [position, vocab] in order of item and time."""
    table = language.probe
    out: dict[str, dict[str, float]] = {}
    place = -1
    sums: dict[str, dict[str, list]] = {}
    for item in range(len(table.tokens)):
        right = []
        name = None
        for t in range(language.length):
            if table.targets[item, t] == IGNORE:
                continue
            place += 1
            target = table.targets[item, t]
            name = language.slices[table.slices[item, t]]
            row = sums.setdefault(name, {"loss": [], "accuracy": [], "exact": [], "kl": [], "floor": []})
            row["loss"].append(-float(log_p[place, target]))
            row["floor"].append(table.floor[item, t])
            right.append(int(np.argmax(log_p[place])) == target)
            row["accuracy"].append(right[-1])
            terms = (
                math.exp(b) * (float(b) - float(p)) for b, p in zip(base[place], log_p[place], strict=True)
            )
            row["kl"].append(sum(terms))
        sums[name]["exact"].append(all(right))
    assert place + 1 == len(log_p)
    for name, row in sums.items():
        out[name] = {key: float(np.mean(values)) for key, values in row.items()} | {"n": len(row["loss"])}
    return out


def test_every_number_is_that_of_loops_over_items(
    languages: list[Language], generator: torch.Generator
) -> None:
    probe = Probe(languages, "cpu")
    log_p, base = draw_log_p(probe, generator), draw_log_p(probe, generator)
    rows = evaluate(probe, log_p, base)
    assert len(rows) == len(SEEDS)
    accuracies = set()
    for r, language in enumerate(languages):
        wanted = by_loops(language, log_p[r].numpy(), base[r].numpy())
        assert rows[r]["slice"] == list(language.slices)
        assert rows[r]["goal"] == [language.goals[name] for name in language.slices]
        for s, name in enumerate(language.slices):
            for column, value in wanted[name].items():
                assert rows[r][column][s] == pytest.approx(value, rel=1e-5, abs=1e-7), (name, column)
            accuracies.add(rows[r]["accuracy"][s])
            assert rows[r]["exact"][s] <= rows[r]["accuracy"][s]
    assert len(accuracies) > 5


def test_floors_are_averaged_over_a_slices_scored_tokens(languages: list[Language]) -> None:
    language = languages[0]
    scored = language.probe.scored
    floor = np.where(scored, np.random.default_rng().random(scored.shape), 0.0)
    table = type(language.probe)(**(vars(language.probe) | {"floor": floor}))
    changed = type(language)(**(vars(language) | {"probe": table}))
    probe = Probe([changed, language], "cpu")
    for s in range(len(language.slices)):
        assert probe.floor[0, s].item() == pytest.approx(floor[table.slices == s].mean())
    assert not probe.floor[1].any()


def test_without_a_base_there_is_no_kl_and_from_itself_it_is_zero(
    languages: list[Language], generator: torch.Generator
) -> None:
    probe = Probe(languages, "cpu")
    log_p = draw_log_p(probe, generator)
    assert all(set(row["kl"]) == {None} for row in evaluate(probe, log_p))
    assert all(set(row["kl"]) == {0.0} for row in evaluate(probe, log_p, log_p))


def test_log_probabilities_are_the_models_at_the_scored_positions(
    languages: list[Language], generator: torch.Generator
) -> None:
    probe = Probe(languages, "cpu")
    flat = torch.stack([model.init(MODEL, generator) for _ in SEEDS])
    views = MODEL.layout.views(flat)
    found = log_probabilities(MODEL, views, probe)
    for r, language in enumerate(languages):
        tokens = torch.tensor(language.probe.tokens)
        one = {name: view[r : r + 1] for name, view in views.items()}
        logits = model.forward(MODEL, one, tokens[None])[0]
        wanted = logits.log_softmax(-1)[torch.tensor(language.probe.targets) != IGNORE]
        torch.testing.assert_close(found[r], wanted, rtol=1e-5, atol=1e-6)


def test_a_runs_numbers_do_not_depend_on_the_runs_beside_it(
    languages: list[Language], generator: torch.Generator
) -> None:
    flat = torch.stack([model.init(MODEL, generator) for _ in SEEDS])
    base = torch.stack([model.init(MODEL, generator) for _ in SEEDS])
    flat[2] = torch.nan

    def rows(which: list[int]) -> list[dict]:
        probe = Probe([languages[r] for r in which], "cpu")
        log_p = log_probabilities(MODEL, MODEL.layout.views(flat[which]), probe)
        return evaluate(probe, log_p, log_probabilities(MODEL, MODEL.layout.views(base[which]), probe))

    together = rows([0, 1, 2])
    for r in (0, 1, 2):
        assert rows([r]) == [together[r]]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_run_gives_none_and_leaves_the_others(
    languages: list[Language], generator: torch.Generator, broken: float
) -> None:
    probe = Probe(languages, "cpu")
    log_p, base = draw_log_p(probe, generator), draw_log_p(probe, generator)
    sound = evaluate(probe, log_p, base)
    damaged = log_p.clone()
    damaged[1] = broken
    rows = evaluate(probe, damaged, base)
    assert rows[0] == sound[0]
    assert rows[2] == sound[2]
    for column in ("loss", "accuracy", "exact", "kl"):
        assert rows[1][column] == [None] * len(probe.slices)
    assert rows[1]["n"] == sound[1]["n"]
    assert rows[1]["floor"] == sound[1]["floor"]
