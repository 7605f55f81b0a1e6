"""Weights by name over one flat tensor: order, shared memory, gradients, files."""

import itertools
import secrets

import pytest
import safetensors.torch
import torch

from synthlm import weights
from synthlm.config import InputError
from synthlm.model import ModelConfig
from synthlm.weights import Entry, Layout

ENTRIES = [
    Entry("embed", (7, 3), "aux"),
    Entry("wide0", (4, 9), "matrix"),
    Entry("square0", (5, 5), "matrix"),
    Entry("gain", (6,), "aux"),
    Entry("wide1", (4, 9), "matrix"),
    Entry("tall", (9, 4), "matrix"),
    Entry("square1", (5, 5), "matrix"),
    Entry("deep", (2, 3, 4), "aux"),
]
LAYOUT = Layout(ENTRIES)
RUNS = 3


@pytest.fixture
def flat() -> torch.Tensor:
    seed = secrets.randbits(48)
    print(f"seed {seed}")
    return torch.randn(RUNS, LAYOUT.size, generator=torch.Generator().manual_seed(seed))


def test_matrices_come_first_by_shape_then_the_rest_as_given() -> None:
    names = [entry.name for entry in LAYOUT.entries]
    assert names == ["wide0", "wide1", "square0", "square1", "tall", "embed", "gain", "deep"]
    assert LAYOUT.matrix_size == 2 * 36 + 2 * 25 + 36
    assert LAYOUT.size == LAYOUT.matrix_size + 21 + 6 + 24


def test_repeated_names_and_matrices_without_two_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="repeated"):
        Layout([Entry("a", (1,), "aux"), Entry("a", (2,), "aux")])
    with pytest.raises(ValueError, match="a: a matrix needs two axes"):
        Layout([Entry("a", (1, 2, 3), "matrix")])


def test_slices_tile_the_flat_axis(flat: torch.Tensor) -> None:
    covered = torch.zeros(LAYOUT.size)
    for name, views in LAYOUT.views(flat).items():
        covered[LAYOUT.slices[name]] += 1
        assert torch.equal(flat[:, LAYOUT.slices[name]], views.reshape(RUNS, -1))
    assert (covered == 1).all()


def test_views_share_memory(flat: torch.Tensor) -> None:
    views = LAYOUT.views(flat)
    assert {name: tuple(view.shape[1:]) for name, view in views.items()} == {e.name: e.shape for e in ENTRIES}
    before = flat.clone()
    flat += 1
    for name, view in views.items():
        assert torch.equal(view, LAYOUT.views(before)[name] + 1)
        assert view.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


def test_join_undoes_views_in_any_order(flat: torch.Tensor) -> None:
    views = LAYOUT.views(flat)
    assert torch.equal(LAYOUT.join(dict(reversed(views.items()))), flat)


def test_the_gradient_of_views_lands_in_the_right_places(flat: torch.Tensor) -> None:
    factors = {entry.name: torch.randn(RUNS, *entry.shape) for entry in ENTRIES}
    flat.requires_grad_()
    total = sum((view * factors[name]).sum() for name, view in LAYOUT.views(flat).items())
    (grad,) = torch.autograd.grad(total, flat)
    for name, factor in factors.items():
        assert torch.equal(grad[:, LAYOUT.slices[name]], factor.reshape(RUNS, -1))


def test_blocks_are_stacks_of_equal_matrices_and_cover_the_matrix_part(flat: torch.Tensor) -> None:
    blocks = LAYOUT.blocks()
    assert [(block.count, block.shape) for block in blocks] == [(2, (4, 9)), (2, (5, 5)), (1, (9, 4))]
    edges = [(block.start, block.stop) for block in blocks]
    assert edges[0][0] == 0
    assert edges[-1][1] == LAYOUT.matrix_size
    assert all(a[1] == b[0] for a, b in itertools.pairwise(edges))
    views = LAYOUT.views(flat)
    for block, names in zip(blocks, (["wide0", "wide1"], ["square0", "square1"], ["tall"]), strict=True):
        stack = block.view(flat)
        assert stack.shape == (RUNS, block.count, *block.shape)
        assert stack.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
        for place, name in enumerate(names):
            assert torch.equal(stack[:, place], views[name])


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_a_models_hidden_matrices_are_all_in_blocks(activation: str) -> None:
    config = ModelConfig(
        vocab=20, length=6, width=8, layers=3, heads=2, mlp=24, activation=activation, tied=False
    )
    layout = config.layout
    hidden = {e.name for e in layout.entries if ".attn.W_" in e.name or ".mlp.W_" in e.name}
    assert {e.name for e in layout.entries if e.group == "matrix"} == hidden
    assert len(hidden) == 3 * (7 if activation == "swiglu" else 6)
    assert sum(block.count for block in layout.blocks()) == len(hidden)
    assert layout.blocks()[-1].stop == layout.matrix_size


def test_the_layout_of_one_group() -> None:
    assert [entry.name for entry in LAYOUT.only("aux").entries] == ["embed", "gain", "deep"]
    assert LAYOUT.only("matrix").size == LAYOUT.matrix_size
    assert LAYOUT.only("aux").matrix_size == 0
    assert LAYOUT.only("aux").blocks() == []
    assert Layout(reversed(ENTRIES)) != LAYOUT
    assert Layout(list(ENTRIES)) == LAYOUT
    assert hash(Layout(list(ENTRIES))) == hash(LAYOUT)


def test_a_file_holds_the_same_bits(flat: torch.Tensor, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    row = flat[1].clone()
    row[:4] = torch.tensor([torch.nan, torch.inf, -0.0, 1e-42])
    weights.save(path, row, LAYOUT, {"step": "7"})
    assert torch.equal(weights.load(path, LAYOUT).view(torch.int32), row.view(torch.int32))
    named = safetensors.torch.load_file(path)
    assert torch.equal(named["deep"], LAYOUT.views(row[None])["deep"][0])
    with safetensors.safe_open(path, framework="pt") as file:
        assert file.metadata() == {"step": "7"}


def test_equal_weights_give_equal_files(flat: torch.Tensor, tmp_path) -> None:
    for name in "ab":
        weights.save(tmp_path / name, flat[0], LAYOUT)
    weights.save(tmp_path / "c", flat[1], LAYOUT)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "header", "folder", "text"])
def test_a_damaged_file_is_refused(flat: torch.Tensor, tmp_path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(path, flat[0], LAYOUT)
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        damaged = {"empty": b"", "truncated": data[:-8], "header": b"\xff" * 16 + data[16:], "text": b"hello"}
        path.write_bytes(damaged[damage])
    with pytest.raises(InputError, match=r"checkpoint .*w\.safetensors"):
        weights.load(path, LAYOUT)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ([*ENTRIES, Entry("more", (2,), "aux")], "more"),
        (ENTRIES[1:], "embed"),
        ([Entry("embed", (3, 7), "aux"), *ENTRIES[1:]], "embed"),
        ([Entry("other", (7, 3), "aux"), *ENTRIES[1:]], "embed"),
    ],
    ids=["lacks-one", "has-one-more", "another-shape", "another-name"],
)
def test_weights_of_another_model_are_refused(flat: torch.Tensor, tmp_path, other, named: str) -> None:
    path = tmp_path / "w.safetensors"
    weights.save(path, flat[0], LAYOUT)
    with pytest.raises(InputError, match=rf"does not fit the model.*{named}"):
        weights.load(path, Layout(other))


def test_weights_of_another_type_are_refused(flat: torch.Tensor, tmp_path) -> None:
    path = tmp_path / "w.safetensors"
    views = LAYOUT.views(flat)
    half = {name: view[0].to(torch.bfloat16).contiguous() for name, view in views.items()}
    safetensors.torch.save_file(half, path)
    with pytest.raises(InputError, match=r"torch\.bfloat16; allowed: torch\.float32"):
        weights.load(path, LAYOUT)
