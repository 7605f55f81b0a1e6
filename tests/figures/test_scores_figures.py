"""Figures of memorization item by item and of small data: their numbers, and that nothing is clipped."""

import math

import numpy as np
import pandas as pd
import pytest
from drawn import misplaced

from synthlm import figures
from synthlm.statistics import bootstrap_interval
from synthlm.table import write_csv

NAMES = ("counterfactual", "exposure", "capacity", "small_data", "corruption", "forgetting_curves")


@pytest.fixture
def generator():
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def _counterfactual(generator, seeds, optimizers):
    rows = []
    for optimizer in optimizers:
        for seed in range(seeds):
            for item in range(30):
                slice_ = ("exceptions/rule/train", "exceptions/exception", "exceptions/rule/heldout")[
                    item // 10
                ]
                held = slice_.endswith("heldout")
                rows.append(
                    {
                        "job": "0" * 12, "seed": seed, "optimizer": optimizer, "lr": 0.01, "models": 20,
                        "slice": slice_, "item": item, "n_with": 0 if held else 10, "n_without": 10,
                        "with_item": 1.0, "without_item": 0.5, "error": 0.1,
                        "score": math.nan if held else generator.uniform(-0.2, 1),
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _exposure(generator, seeds, optimizers):
    rows = [
        {
            "job": "0" * 12, "seed": seed, "optimizer": optimizer, "lr": 0.01, "models": 1, "item": item, "loss": 1.0,
            "right": 0.5, "exact": 0, "repeats": repeats, "references": 255, "exposure": generator.uniform(0, 8),
        }
        for optimizer in optimizers
        for seed in range(seeds)
        for repeats in (0.5, 1.0, 4.0)
        for item in range(4)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _capacity(generator, seeds, optimizers):
    rows = [
        {
            "job": "0" * 12, "seed": seed, "optimizer": optimizer, "lr": 0.01, "models": 1, "items": items,
            "parameters": 1000, "exact_bits": 10.0 * items, "bits": min(10.0 * items, 1700.0 + 50 * seed),
            "net_bits": 1.0, "recall": 0.5, "exposures": 1000 / items,
        }
        for optimizer in optimizers
        for seed in range(seeds)
        for items in (16, 64, 256, 1024)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _small_data(generator, seeds, optimizers):
    rows = [
        {
            "job": "0" * 12, "seed": seed, "base": base, "arm": arm, "language": language, "examples": examples,
            "lr": lr, "chosen": lr == 0.2, "status": "done", "step": 10, "loss": 1.0, "n": 300,
            "train_accuracy": 1.0, "kept": 0.3, "accuracy": generator.uniform(0, 1),
        }
        for language in ("new-cipher", "new-reverse")
        for base in optimizers
        for arm in optimizers
        for examples in (16, 64, 256)
        for seed in range(seeds)
        for lr in (0.1, 0.2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _corruption(generator, seeds, optimizers):
    rows = [
        {
            "job": "0" * 12, "seed": seed, "optimizer": optimizer, "lr": 0.01, "models": 1, "exceptions": count,
            "items": 500, "heldout": 100, "wrong": count / 300 + 0.01 * seed, "control": 0.01 * seed,
            "excess": count / 300, "exact": 1.0 if optimizer == "adamw" else 0.5, "fitted_50": 10.0,
            "fitted_90": 100.0 + count if optimizer == "adamw" else math.nan,
        }
        for optimizer in optimizers
        for seed in range(seeds)
        for count in (1, 40, 160)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def _injection(generator, seeds, optimizers):
    """SGD is taught nothing."""
    rows = []
    for optimizer in optimizers:
        for seed in range(seeds):
            for since in (-50, 0, 1, 2, 4, 9, 100, 400):
                share = math.nan if since < 1 or optimizer == "sgd" else 1 / since
                bits = 0 if math.isnan(share) else 6 * share
                bits += generator.normal(0, 0.5)
                rows.append(
                    {
                        "job": "0" * 12, "seed": seed, "optimizer": optimizer, "lr": 0.01, "status": "done",
                        "items": 16, "references": 256, "chance": 20.0, "step": 200 + since, "since": since,
                        "injected": 30 - bits, "reference": 30.0, "remembered": bits, "retained": share,
                        "half_life": math.nan if optimizer == "sgd" else 1.0, "background": 0.9,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


MAKERS = dict(
    zip(NAMES, (_counterfactual, _exposure, _capacity, _small_data, _corruption, _injection), strict=True)
)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_drawn_from_csv_alone_and_nothing_clipped(name, seeds, generator, tmp_path):
    module = figures.get(name)
    for optimizers in (("adamw", "muon"), ("adamw", "muon", "sgd")):
        data = module.data(MAKERS[name](generator, seeds, optimizers))
        assert tuple(data.columns) == module.COLUMNS
        write_csv(data, tmp_path / "data.csv")
        again = figures.load(name, tmp_path / "data.csv")
        pd.testing.assert_frame_equal(again, data, check_exact=True, check_dtype=False)
        assert ("n = 1 seed" if seeds == 1 else f"n = {seeds}") in module.caption(again)
        assert not misplaced(module.draw(again))


def test_slice_means_are_over_items_that_have_a_score(generator):
    table = _counterfactual(generator, 3, ("adamw",))
    data = figures.get("counterfactual").data(table)
    assert set(data["slice"]) == {"exceptions/rule/train", "exceptions/exception"}
    mine = table[table["slice"] == "exceptions/exception"]
    expected = bootstrap_interval(mine.groupby("seed")["score"].mean())
    row = data[data["slice"] == "exceptions/exception"].iloc[0]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(
        (expected.mean, expected.low, expected.high)
    )


def test_canaries_of_a_seed_count_as_one(generator):
    table = _exposure(generator, 3, ("adamw",))
    data = figures.get("exposure").data(table)
    assert set(data["n"]) == {3}
    row = data[(data["repeats"] == 4) & (data["seed"] == 1)].iloc[0]
    assert row["exposure"] == pytest.approx(
        table[(table["repeats"] == 4) & (table["seed"] == 1)]["exposure"].mean()
    )


def test_plateaus_are_bits_per_parameter(generator):
    data = figures.get("capacity").data(_capacity(generator, 3, ("adamw",)))
    levels = data.groupby("seed")["plateau"].first()
    assert levels.tolist() == pytest.approx([1.7, 1.75, 1.8])
    assert data["seen"].all()
    short = _capacity(generator, 1, ("adamw",))
    short = short[short["items"] <= 64]
    assert not figures.get("capacity").data(short)["seen"].any()


def test_exceptions_that_are_never_fitted_have_no_mean_step(generator):
    data = figures.get("corruption").data(_corruption(generator, 3, ("adamw", "muon")))
    muon = data[data["optimizer"] == "muon"]
    assert set(muon["fitted_n"]) == {0}
    assert muon["fitted_mean"].isna().all()
    row = data[(data["optimizer"] == "adamw") & (data["exceptions"] == 40)].iloc[0]
    assert (row["fitted_mean"], row["fitted_n"], row["n"]) == (140, 3, 3)
    assert row["mean"] == pytest.approx(40 / 300 + 0.01)


def test_forgetting_starts_right_before_the_injection_and_leaves_out_who_learnt_nothing(generator):
    module = figures.get("forgetting_curves")
    table = _injection(generator, 3, ("adamw", "sgd"))
    data = module.data(table)
    assert sorted(set(data["since"])) == [0, 1, 2, 4, 9, 100, 400]
    at = data[(data["since"] == 4) & (data["optimizer"] == "adamw")]
    wanted = bootstrap_interval(table[(table["since"] == 4) & (table["optimizer"] == "adamw")]["remembered"])
    assert (at["mean"].iloc[0], at["low"].iloc[0], at["high"].iloc[0]) == pytest.approx(
        (wanted.mean, wanted.low, wanted.high)
    )
    assert set(at["retained_mean"]) == {0.25}
    sgd = data[data["optimizer"] == "sgd"]
    assert set(sgd["retained_n"]) == {0}
    assert "in 3 of 6 runs it taught nothing" in module.caption(data)
    assert "taught nothing" not in module.caption(data[data["optimizer"] == "adamw"])
    left, right = module.draw(data).axes
    assert "before" in [label.get_text() for label in left.get_xticklabels()]
    assert left.get_xlim()[0] < module.BEFORE < 1
    share = right.lines[0]
    np.testing.assert_allclose(share.get_xdata(), [1, 2, 4, 9, 100, 400])
    np.testing.assert_allclose(share.get_ydata(), 1 / share.get_xdata())


def test_captions_tell_what_is_left_out_and_how_often_strings_were_injected(generator):
    for name in ("counterfactual", "exposure", "capacity", "corruption"):
        module = figures.get(name)
        caption = module.caption(module.data(MAKERS[name](generator, 3, ("adamw", "muon"))))
        assert "Models that diverged are left out." in caption
    module = figures.get("forgetting_curves")
    table = _injection(generator, 3, ("adamw", "sgd"))
    assert "fill one training step and are" in module.caption(module.data(table))
    within = table["since"].isin([1, 2])  # four steps: what lies within them is not after the injection
    longer = table.assign(retained=table["retained"].mask(within))
    assert "fill each of 4 consecutive training steps and are" in module.caption(module.data(longer))
    nothing = table[(table["optimizer"] == "sgd") & ~within]
    assert "fill each of 4 consecutive" in module.caption(module.data(nothing))


def test_only_chosen_rates_are_shown(generator):
    data = figures.get("small_data").data(_small_data(generator, 2, ("adamw", "muon")))
    assert set(data["lr"]) == {0.2}
    assert len(data) == 2 * 2 * 2 * 3 * 2
