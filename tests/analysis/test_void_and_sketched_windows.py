"""Windows whose nulls are easily wrong: of sketched updates, and those that hold an update of norm zero."""

import secrets

import numpy as np
import pytest
import torch

from synthlm.analysis.edge_statistics import edge_statistics, normalized
from synthlm.analysis.nulls import edge_p_values, null_statistics, p_values, window_nulls
from synthlm.analysis.spectral_edge import UpdateStream, effective_dimensions, parameter_sets
from synthlm.config import InputError

WINDOW = 8
GROUPS = {
    "one group": ({"w": 4000}, 48),
    "one group, barely sketched": ({"w": 300}, 200),
    "unequal groups": ({"a": 300, "b.attn.w": 3000, "c": 40, "d.attn.w": 700}, 48),
}


@pytest.fixture
def rng() -> np.random.Generator:
    seed = secrets.randbits(60)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def noise(
    rng: np.random.Generator, sizes: dict[str, int], sketch: int, windows: int
) -> tuple[UpdateStream, np.ndarray]:
    """Rows ``[set, window, record, lag]`` of independent updates, of windows that share none."""
    stream = UpdateStream(sizes, 1, WINDOW, ("all", "attention"), sketch, seed=int(rng.integers(2**31)))
    flat = torch.zeros(1, stream.size, dtype=torch.float64)
    rows = []
    for _ in range(windows * WINDOW + 1):
        row = stream.push(flat)
        flat = flat + torch.from_numpy(rng.standard_normal((1, stream.size)) * rng.uniform(0.2, 2))
        if row is not None:
            rows.append(row[0].numpy())
    return stream, np.stack(rows, 1).reshape(len(stream.sets), windows, WINDOW, WINDOW + 1)


@pytest.mark.parametrize("kind", list(GROUPS))
def test_sketched_noise_has_an_edge_at_the_stated_rate_only(rng: np.random.Generator, kind: str) -> None:
    """And independent updates meet as in the effective dimension: the mean squared cosine is its inverse."""
    sizes, sketch = GROUPS[kind]
    windows = 400
    stream, rows = noise(rng, sizes, sketch, windows)
    assert stream.effective == effective_dimensions(sizes, WINDOW, ("all", "attention"), sketch)
    for name, of_set in zip(stream.sets, rows, strict=True):
        unit = normalized(of_set)
        cosines = np.concatenate([unit[:, lag:, lag].ravel() for lag in range(1, WINDOW)])
        error = (
            3.0 * np.sqrt(2 / len(cosines)) * stream.effective[name]
        )  # fourth moments are those of a normal, nearly
        placing = 0.06 * stream.effective[name]  # of one hash about the mean of all
        assert abs(1 / np.mean(cosines**2) - stream.effective[name]) < 2 * error + placing
        p = edge_p_values(of_set, stream.effective[name], 99, rng)[:, 0]
        for level in (0.05, 0.5):
            assert abs((p <= level).mean() - level) < 5 * np.sqrt(level * (1 - level) / windows)
    if kind != "one group, barely sketched":
        found = edge_p_values(rows[0], stream.dimensions["all"], 99, rng)
        assert (found <= 0.05).mean() > 0.2  # what the number of parameters would say


def test_effective_dimensions(rng: np.random.Generator) -> None:
    sizes = {"a": 300, "b.attn.w": 3000, "c": 40, "d.attn.w": 700}
    for name, members in parameter_sets(list(sizes), ("all", "attention")).items():
        kept = [n for n, member in zip(sizes.values(), members, strict=True) if member]
        total = sum(kept)
        # groups of this order: each parameter lies beside one of another set
        inverse = 1 / total + sum((n / total) ** 2 * (1 - 1 / n) / 48 for n in kept if n > 48)
        found = effective_dimensions(sizes, 8, ("all", "attention"), 48)
        assert found[name] == pytest.approx(1 / inverse)
        assert effective_dimensions(sizes, 8, ("all", "attention"))[name] == total
    with pytest.raises(
        InputError, match="window: 10 updates need as many parameters, but the set 'all' has 7"
    ):
        UpdateStream({"w": 7}, 1, 10)
    with pytest.raises(InputError, match=r"sketch: 10 numbers .* leave 9\.9 dimensions to the set 'all'"):
        UpdateStream({"w": 1000}, 1, 10, sketch=10)


@pytest.mark.parametrize("broken", ["zero", "not finite"])
def test_windows_with_a_void_update_have_no_edge(rng: np.random.Generator, broken: str) -> None:
    flat = rng.normal(size=(30, 60)).cumsum(0)
    at = int(rng.integers(10, 16))
    flat[at] = flat[at - 1] if broken == "zero" else np.nan
    stream = UpdateStream({"w": 60}, 1, 5)
    pushed = [stream.push(torch.from_numpy(each[None])) for each in flat]
    rows = np.stack([row[0, 0].numpy() for row in pushed if row is not None])
    void = np.zeros(25, dtype=bool)
    void[at - 5 : at + (broken == "not finite")] = True
    found = edge_statistics(rows, 60)
    for rule in ("k_ratio", "k_mass"):
        np.testing.assert_array_equal(found[rule] == 0, void)
    assert not found["k_bulk"][void].any()
    for key in ("ratio", "gap", "gap_lambda", "g23", "share", "stability_1"):
        bad = void | (np.arange(25) == 0) if key == "stability_1" else void
        assert np.isnan(found[key][bad]).all()
    assert np.isfinite(found["ratio"][~void]).all()
    assert found["ratio"][~void].max() < 100
    np.testing.assert_array_equal(np.isnan(edge_p_values(rows, 60, 19, rng)), void)
    for gram in window_nulls(rows, 60, 19, rng).values():
        np.testing.assert_array_equal(np.isnan(null_statistics(gram, 60)["ratio"]).all(0), void)


def test_p_is_not_known_where_the_null_is_not(rng: np.random.Generator) -> None:
    null = rng.normal(size=(19, 3))
    null[:, 1] = np.nan
    null[3, 2] = np.nan
    assert np.isnan(p_values(rng.normal(size=3), null)).tolist() == [False, True, True]


NAMES = {  # name -> whether it is of attention
    "gpt2": {"wte.weight": 0, "h.0.ln_1.weight": 0, "h.0.attn.c_attn.weight": 1, "h.0.attn.c_proj.bias": 1,
             "h.0.mlp.c_fc.weight": 0},
    "llama": {"model.layers.0.self_attn.q_proj.weight": 1, "model.layers.0.input_layernorm.weight": 0,
              "model.layers.0.post_attention_layernorm.weight": 0, "model.layers.0.mlp.gate_proj.weight": 0,
              "lm_head.weight": 0},
    "t5": {"shared.weight": 0, "encoder.block.0.layer.0.SelfAttention.q.weight": 1,
           "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": 1,
           "encoder.block.0.layer.0.layer_norm.weight": 0, "decoder.block.0.layer.1.EncDecAttention.k.weight": 1,
           "decoder.block.0.layer.2.DenseReluDense.wi.weight": 0},
    "nanogpt": {"transformer.wpe.weight": 0, "transformer.h.11.attn.c_attn.weight": 1,
                "transformer.h.11.ln_2.weight": 0, "transformer.h.11.mlp.c_proj.weight": 0},
    "this one": {"embed.W_E": 0, "blocks.0.attn.W_Q": 1, "blocks.0.attn.W_O": 1, "blocks.0.mlp.W_in": 0},
    "others": {"layers.0.attention_norm.weight": 0, "layers.0.attention.wq.weight": 1, "h.0.ln_attn.weight": 0,
               "bert.encoder.layer.0.attention.self.query.weight": 1, "layers.0.ffn_norm.weight": 0},
}  # fmt: skip


@pytest.mark.parametrize("model", list(NAMES))
def test_attention_is_the_module_and_not_its_neighbours(model: str) -> None:
    names = NAMES[model]
    assert parameter_sets(list(names), ("attention",))["attention"] == tuple(map(bool, names.values()))
    fed = parameter_sets(list(names), ("all", "mlp")).get("mlp", (False,) * len(names))
    expected = [any(part in name for part in ("mlp.", "DenseReluDense")) for name in names]
    assert list(fed) == expected
