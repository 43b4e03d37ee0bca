"""Halves, canaries and candidates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dim_hf.audit.candidates import draw_candidates, half, smallest_half, unite
from dim_hf.data import ImageData


def images(count, offset, classes=3):
    pixels = (torch.arange(count) + offset).to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return ImageData(pixels, torch.arange(count) % classes, tuple("abc"[:classes]), f"f{offset}")


@pytest.fixture
def union():
    return unite(images(90, 0), images(60, 100), seed=0)


def test_canaries_are_held_out_images_and_no_longer_among_them(union):
    # A twentieth of 60 of each kind.
    assert (union.num_train, union.num_held_out, union.canaries) == (90, 54, ("mislabelled",) * 3 + ("rare",) * 3)
    values = union.data.images[:, 0, 0, 0].long()
    labels = union.data.labels
    assert values[:90].tolist() == list(range(90)) and labels[:90].tolist() == [i % 3 for i in range(90)]
    mislabelled, rare = union.of_kind("mislabelled"), union.of_kind("rare")
    assert all(
        label != (value - 100) % 3 for value, label in zip(values[mislabelled], labels[mislabelled], strict=True)
    )
    assert all(label == (155 - value) % 3 for value, label in zip(values[rare], labels[rare], strict=True))
    used = {*values[mislabelled].tolist(), *(255 - values[rare]).tolist()}
    assert used | {*values[90:144].tolist()} == {*range(100, 160)} and len(used) == 6


def test_too_few_images_have_no_canaries():
    union = unite(images(30, 0), images(19, 100), seed=0)
    assert union.canaries == () and union.num_held_out == 19
    one_class = unite(images(30, 0, 1), images(60, 100, 1), seed=0)
    assert one_class.canaries == ()


def test_pairs_of_halves_are_complementary_and_stratified(union):
    for pair in range(3):
        one, other = (half(union, 2 * pair + i, seed=5) for i in (0, 1))
        assert sorted([*one.tolist(), *other.tolist()]) == list(range(150))
        for part in (one, other):
            assert torch.equal(part, part.sort().values)
            assert torch.bincount(union.data.labels[part[part < 90]]).tolist() == [15, 15, 15]
            assert torch.bincount(union.data.labels[part[(part >= 90) & (part < 144)]]).tolist() == [9, 9, 9]
    assert not torch.equal(half(union, 0, 5), half(union, 2, 5))
    assert not torch.equal(half(union, 0, 5), half(union, 0, 6))
    assert torch.equal(half(union, 3, 5), half(union, 3, 5))


def test_copies_of_an_image_are_in_the_same_half():
    # Of class 0, ten images three times each; the other classes have 30 different ones.
    train = images(90, 0)
    train.stored[train.labels == 0] = train.stored[train.labels == 0][torch.arange(30) // 3].clone()
    union = unite(train, images(60, 100), seed=0)
    copied = torch.nonzero(train.labels == 0).squeeze(1).view(10, 3)
    for shadow in range(6):
        within = torch.isin(copied, half(union, shadow, 0))
        assert torch.equal(within.any(dim=1), within.all(dim=1)) and within.sum() == 15
        assert torch.isin(half(union, shadow, 0), torch.nonzero(train.labels == 1)).sum() == 15


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(0, 50))
def test_the_smallest_half_is_that_of_no_run_undercut(values, seed):
    pixels = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    train = ImageData(pixels, torch.zeros(len(values), dtype=torch.int64), ("a",), "f")
    union = unite(train, images(3, 100, 1), seed=0)
    sizes = [len(half(union, shadow, seed + shadow)) for shadow in range(8)]
    assert int(smallest_half(union)) <= min(sizes)
    if len(set(values)) == len(values):
        assert int(smallest_half(union)) == len(values) // 2 + 1


def test_canaries_are_in_some_halves(union):
    within = torch.stack([torch.isin(torch.arange(144, 150), half(union, i, 0)) for i in range(16)])
    assert torch.equal(within.sum(dim=0), torch.full((6,), 8))
    assert len({tuple(row.tolist()) for row in within}) > 4


def test_candidates_are_stratified_and_hold_every_canary(union):
    chosen = draw_candidates(union, 12, seed=0)
    assert torch.bincount(union.data.labels[chosen[:12]]).tolist() == [4, 4, 4] and int(chosen[11]) < 90
    assert torch.bincount(union.data.labels[chosen[12:24]]).tolist() == [4, 4, 4]
    assert bool(((chosen[12:24] >= 90) & (chosen[12:24] < 144)).all()) and chosen[24:].tolist() == list(
        range(144, 150)
    )
    # All of those there are.
    assert len(draw_candidates(union, 1000, seed=0)) == 150
