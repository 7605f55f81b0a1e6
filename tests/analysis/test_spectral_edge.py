"""The streaming analyser against singular value decompositions of the stacked updates themselves."""

import math
import secrets

import numpy as np
import pytest
import torch

from synthlm.analysis.edge_statistics import FLOOR, edge_statistics, grams, normalized
from synthlm.analysis.spectral_edge import UpdateStream, parameter_sets
from synthlm.config import InputError

SIZES = {"embed.W_E": 13, "blocks.0.attn.W_Q": 29, "blocks.0.mlp.W_in": 17, "blocks.1.attn.W_O": 11}
P = sum(SIZES.values())


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def walk(rng: np.random.Generator, runs: int, steps: int, size: int = P) -> np.ndarray:
    """``[run, step, param]`` weights: correlated updates of changing size, as in training."""
    out = rng.normal(size=(runs, steps, size))
    drift = rng.normal(size=(runs, 2, size))
    for t in range(1, steps):
        out[:, t] = 0.7 * out[:, t - 1] + out[:, t] + drift[:, 0] + math.sin(t / 5) * drift[:, 1]
    scale = np.geomspace(1, 0.1, steps)[:, None]
    return np.cumsum(scale * out, axis=1)


def stream(weights: np.ndarray, window: int, sets: tuple[str, ...] = ("all",), **options) -> tuple:
    """The stream and its rows ``[run, set, record, lag]``."""
    one = UpdateStream(SIZES, weights.shape[0], window, sets, **options)
    rows = [one.push(torch.tensor(weights[:, t])) for t in range(weights.shape[1])]
    assert rows[0] is None
    return one, torch.stack(rows[1:], dim=2).numpy()


def columns(name: str) -> np.ndarray:
    """Columns of a set, found the slow way."""
    member = parameter_sets(list(SIZES), (name,))[name]
    return np.repeat(member, list(SIZES.values()))


class Reference:
    """One window of one run, from its updates and those of the window before it, by their own decompositions."""

    def __init__(self, updates: np.ndarray, before: np.ndarray, lr: float) -> None:
        self.x, self.before, self.lr = updates, before, lr
        self.sigma = np.linalg.svd(updates, compute_uv=False)

    def rotation(self, count: int) -> float:
        basis = [np.linalg.svd(x, full_matrices=False)[2][:count] for x in (self.before, self.x)]
        cosines = np.linalg.svd(basis[0] @ basis[1].T, compute_uv=False)
        return math.degrees(math.acos(min(1.0, cosines[-1])))

    def statistics(self) -> dict[str, float]:
        s, w = self.sigma, len(self.sigma)
        score = [s[j] / s[j + 1] for j in range(w - 1)]
        k = int(np.argmax(score)) + 1
        mass = int(np.argmax([s[j] / s.sum() * score[j] for j in range(w - 1)])) + 1
        edge = (s[w // 2 :] ** 2).mean() * (1 + math.sqrt(w / self.x.shape[1])) ** 2
        above = [score[j] if s[j] ** 2 > edge else 0.0 for j in range(w - 1)]
        c = np.linalg.norm(self.x.T @ self.x - self.before.T @ self.before)
        near = [min(abs(s[j] ** 2 - s[i] ** 2) for i in range(w) if i != j) for j in range(3)]
        g, g_lambda = s[k - 1] - s[k], s[k - 1] ** 2 - s[k] ** 2
        gram = self.x @ self.x.T - self.before @ self.before.T
        return {
            "k_ratio": k, "k_mass": mass, "k_bulk": int(np.argmax(above)) + 1 if max(above) else 0,
            "ratio": score[k - 1], "gap": g, "gap_lambda": g_lambda, "g23": s[1] ** 2 - s[2] ** 2,
            "g23_share": (s[1] ** 2 - s[2] ** 2) / (s**2).sum(), "share": s[0] ** 2 / (s**2).sum(),
            "ratio_12": score[0], "ratio_23": score[1],
            "change": c, "gram_change": np.linalg.norm(gram), "turning": c / g_lambda,
            "adiabatic_sigma": c / (self.lr * g**2), "adiabatic_lambda": c / (self.lr * g_lambda**2),
            "drift": np.linalg.norm(self.x.mean(0)), "norm": np.linalg.norm(self.x[-1]),
            "lag_1": np.mean([
                a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(self.x, self.x[1:], strict=False)
            ]),
            **{f"stability_{j + 1}": max(0.0, 1 - c**2 / near[j] ** 2) for j in range(3)},
            **{f"rotation_{j + 1}": self.rotation(j + 1) for j in range(3)},
        }  # fmt: skip


@pytest.mark.parametrize("window", [3, 4, 10])
def test_every_statistic_is_that_of_the_stacked_updates(rng: np.random.Generator, window: int) -> None:
    weights = walk(rng, runs=2, steps=26)
    names = ("all", "attention", "mlp", "embed*")
    one, rows = stream(weights, window, names)
    lr = rng.uniform(0.5, 2.0, size=25)
    assert one.dimensions == {name: columns(name).sum() for name in names}
    for r in range(2):
        for i, name in enumerate(names):
            updates = np.diff(weights[r], axis=0)[:, columns(name)]
            found = edge_statistics(rows[r, i], one.dimensions[name], lr)
            assert len(found["share"]) == 25 - window + 1
            for at, end in enumerate(range(window, 26)):
                now, before = updates[end - window : end], updates[end - window - 1 : end - 1]
                s = np.linalg.svd(now, compute_uv=False)
                np.testing.assert_allclose(found["sigma"][at], s, rtol=0, atol=FLOOR * s[0])
                if at == 0 or s[-1] < 1e-3 * s[0]:  # an update in the span of the others: ratios are rounding
                    continue
                for key, value in Reference(now, before, lr[end - 1]).statistics().items():
                    assert found[key][at] == pytest.approx(value, rel=1e-6, abs=1e-5), (key, name, at)
    for key in ("change", "turning", "rotation_1", "stability_2"):
        assert np.isnan(edge_statistics(rows[0, 0], P)[key][0])


def test_first_rows_hold_nan_where_there_is_no_earlier_update(rng: np.random.Generator) -> None:
    _, rows = stream(walk(rng, 1, 7), 4)
    missing = np.isnan(rows[0, 0])
    assert np.array_equal(missing, np.arange(5)[None, :] > np.arange(6)[:, None])


def test_grams_need_a_full_window(rng: np.random.Generator) -> None:
    _, rows = stream(walk(rng, 1, 4), 4)
    with pytest.raises(ValueError, match="3 updates"):
        grams(rows[0, 0])
    _, rows = stream(walk(rng, 1, 5), 4)
    assert edge_statistics(rows[0, 0], P)["share"].shape == (1,)


def test_long_streams_do_not_drift(rng: np.random.Generator) -> None:
    one = UpdateStream({"w": 40}, 1, 5)
    flat = torch.tensor(rng.normal(size=(1, 40)) * 1e3, dtype=torch.float32)
    kept, last = [], None
    for _ in range(6000):
        one.push(flat)
        kept = [*kept[-5:], flat.double().numpy()[0]]
        flat = flat + torch.tensor(rng.normal(size=(1, 40)), dtype=torch.float32) * float(rng.uniform(0.1, 9))
    last = one.push(flat)
    kept.append(flat.double().numpy()[0])
    updates = np.diff(np.stack(kept), axis=0)
    expected = updates[::-1] @ updates[-1]
    np.testing.assert_allclose(last[0, 0].numpy(), expected, rtol=1e-12, atol=1e-12 * expected[0])


@pytest.mark.parametrize("sketch", [None, 8])
def test_a_run_does_not_depend_on_the_runs_beside_it(rng: np.random.Generator, sketch: int | None) -> None:
    weights = walk(rng, runs=3, steps=9)
    weights[1, 5:] = np.nan  # a run that diverged
    together = stream(weights, 4, ("attention", "all"), sketch=sketch)[1]
    for r in (0, 2):
        alone = stream(weights[r : r + 1], 4, ("attention", "all"), sketch=sketch)[1]
        assert np.array_equal(alone[0], together[r], equal_nan=True)
    found = edge_statistics(together[1, 1], P)
    assert np.isfinite(found["share"][0])
    assert np.isnan(found["share"][2:]).all()
    assert not found["k_ratio"][2:].any()


def test_a_stream_goes_on_from_its_state(rng: np.random.Generator) -> None:
    weights = walk(rng, runs=2, steps=13).astype(np.float32)
    whole = stream(weights, 4)[1]
    for stop in (0, 1, 3, 9):
        first = UpdateStream(SIZES, 2, 4)
        for t in range(stop):
            first.push(torch.tensor(weights[:, t]))
        second = UpdateStream(SIZES, 2, 4)
        second.restore([first.state(0), first.state(1)])
        rows = [second.push(torch.tensor(weights[:, t])) for t in range(stop, 13)]
        got = torch.stack([row for row in rows if row is not None], dim=2).numpy()
        assert np.array_equal(got, whole[:, :, max(0, stop - 1) :], equal_nan=True)


def test_modes_are_the_right_singular_vectors(rng: np.random.Generator) -> None:
    weights = walk(rng, runs=2, steps=9)
    one, _ = stream(weights, 6, ("all", "attention"))
    for name in ("all", "attention"):
        for r in range(2):
            vectors, sigmas = one.modes(name, 3, r)
            updates = np.where(columns(name), np.diff(weights[r], axis=0)[-6:], 0.0)
            _, s, v = np.linalg.svd(updates, full_matrices=False)
            np.testing.assert_allclose(sigmas, s[:3], rtol=1e-7)
            np.testing.assert_allclose(abs((vectors.numpy() * v[:3]).sum(1)), 1.0, rtol=1e-6)
            assert not vectors.numpy()[:, ~columns(name)].any()
    with pytest.raises(ValueError, match="mlp"):
        one.modes("mlp", 1)
    with pytest.raises(ValueError, match="not full"):
        UpdateStream(SIZES, 1, 5).modes("all", 1)


def test_sketched_dot_products_are_unbiased_with_the_stated_error() -> None:
    """Over many hashes the mean error is within its standard error, and its spread within the stated bound."""
    rng = np.random.default_rng(secrets.randbits(60))
    size, buckets, hashes = 400, 32, 400
    weights = np.cumsum(walk(rng, 1, 3, size), axis=1)
    updates = np.diff(weights[0], axis=0)
    exact = np.array([updates[1] @ updates[1], updates[1] @ updates[0]])
    scale = np.array(
        [updates[1] @ updates[1], np.sqrt((updates[0] @ updates[0]) * (updates[1] @ updates[1]))]
    )
    errors = []
    for seed in range(hashes):
        one = UpdateStream({"w": size}, 1, 3, sketch=buckets, seed=seed)
        for t in range(3):
            row = one.push(torch.tensor(weights[:, t]))
        errors.append((row[0, 0, :2].numpy() - exact) / scale)
    errors = np.array(errors)
    bound = math.sqrt(2 / buckets)
    assert (errors.std(0) < 1.15 * bound).all()
    assert (errors.std(0) > 0.2 * bound).any()
    assert (abs(errors.mean(0)) < 4.5 * bound / math.sqrt(hashes)).all()


def test_a_sketch_that_is_wider_than_its_parameters_is_exact(rng: np.random.Generator) -> None:
    weights = walk(rng, 1, 8)
    exact, sketched = stream(weights, 4, ("all", "mlp"))[1], stream(weights, 4, ("all", "mlp"), sketch=64)[1]
    np.testing.assert_allclose(sketched, exact, rtol=1e-12)


def test_normalized_updates_have_unit_norm(rng: np.random.Generator) -> None:
    weights = walk(rng, 1, 12)
    updates = np.diff(weights[0], axis=0)
    unit = updates / np.linalg.norm(updates, axis=1, keepdims=True)
    rows = normalized(stream(weights, 4)[1][0, 0])
    expected = stream(np.concatenate([np.zeros((1, P)), np.cumsum(unit, axis=0)])[None], 4)[1][0, 0]
    np.testing.assert_allclose(rows, expected, rtol=1e-9, atol=1e-12)


def test_equal_updates_have_one_mode_and_no_turn() -> None:
    flat = torch.linspace(0, 1, P).double()
    weights = np.stack([(t * flat).numpy() for t in range(8)])[None]
    found = edge_statistics(stream(weights, 4)[1][0, 0], P, lr=1.0)
    assert (found["k_ratio"] == 1).all()
    np.testing.assert_allclose(found["share"], 1.0)
    np.testing.assert_allclose(found["ratio"], 1 / FLOOR)
    np.testing.assert_allclose(found["change"][1:], 0, atol=1e-5)
    np.testing.assert_allclose(found["rotation_1"][1:], 0, atol=1e-3)
    np.testing.assert_allclose(found["lag_1"], 1.0)


def test_a_run_that_stands_still_has_no_gap() -> None:
    found = edge_statistics(stream(np.ones((1, 7, P)), 4)[1][0, 0], P, lr=1.0)
    assert not found["k_ratio"].any()
    assert not found["k_mass"].any()
    assert np.isnan(found["ratio"]).all()


def test_parameter_sets() -> None:
    names = [*SIZES, "h.3.attn.c_attn.weight", "h.3.mlp.c_fc.weight", "lm_head.weight"]
    layers = parameter_sets(names, ("layers",))
    assert list(layers) == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "h.3.attn", "h.3.mlp"]
    assert layers["h.3.attn"] == (False, False, False, False, True, False, False)
    found = parameter_sets(names, ("all", "embedding", "*W_?"))
    assert found["all"] == (True,) * 7
    assert found["embedding"] == (True, False, False, False, False, False, True)
    assert found["*W_?"] == (True, True, False, True, False, False, False)
    assert list(parameter_sets(["a.attn.w"], ("mlp", "attention"))) == ["attention"]
    with pytest.raises(InputError, match=r"sets: 'atention' is neither .* \(did you mean 'attention'\?\)"):
        parameter_sets(names, ("atention",))
    with pytest.raises(InputError, match="no parameter belongs to mlp"):
        parameter_sets(["a.attn.w"], ("mlp",))


def test_unusable_streams_are_refused() -> None:
    with pytest.raises(InputError, match="window: 2"):
        UpdateStream(SIZES, window=2)
    with pytest.raises(InputError, match="sketch: 4"):
        UpdateStream(SIZES, window=5, sketch=4)
    with pytest.raises(ValueError, match="shape"):
        UpdateStream(SIZES).push(torch.zeros(2, P))
