"""Copies: nearest images by hand, and whether planted ones are seen and chance is not."""

import pytest
import torch

from dim_hf.audit.copies import Nearest, authenticity, find_copies, lean, nearest_in_class, nearest_rows


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)[:, None]


def test_the_nearest_row_and_its_distance():
    found, distance = nearest_rows(torch.tensor([[3.0, 4.0], [9.0, 9.0]]), torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    # The root of the mean of 9 and 16.
    assert found.tolist() == [0, 1] and distance.tolist() == pytest.approx([12.5**0.5, 0.0])


def test_blocks_do_not_matter():
    rng = torch.Generator().manual_seed(0)
    some, others = torch.randn(7, 5, generator=rng), torch.randn(11, 5, generator=rng)
    whole, distance = nearest_rows(some, others)
    assert torch.equal(whole, torch.cdist(some, others).argmin(dim=1))
    assert torch.equal(whole, nearest_rows(some, others, block_size=2)[0])
    assert torch.allclose(distance, torch.cdist(some, others).amin(dim=1) / 5**0.5, atol=1e-5)


def test_a_row_is_not_its_own_neighbour_but_its_copy_is():
    references = rows(0, 1, 5, 5)
    found, distance = nearest_rows(references[:3], references, others=True)
    assert distance.tolist() == [1, 1, 0] and found[:2].tolist() == [1, 0] and found[2] in (2, 3)


def test_only_images_of_the_class_are_neighbours():
    found, distance = nearest_in_class(rows(0, 0), torch.tensor([0, 1]), rows(9, 1), torch.tensor([0, 1]))
    assert found.tolist() == [0, 1] and distance.tolist() == [9, 1]


def test_equal_colours_far_from_zero_are_exactly_equal():
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(256, (5, 784), generator=rng).float()
    assert nearest_rows(image, image.flip(0))[1].tolist() == [0] * 5


def leaning(train, held_out, to_train, to_held_out, sizes):
    labels = torch.zeros(len(train), dtype=torch.int64)
    nearest = Nearest(torch.tensor(train), torch.tensor(held_out), torch.tensor(to_train), torch.tensor(to_held_out))
    return lean(nearest, labels, *(torch.zeros(size, dtype=torch.int64) for size in sizes))


def test_the_share_and_what_is_expected_of_it():
    figures = leaning([0, 1, 2, 3], [0, 1, 2, 3], [1.0, 1, 1, 3], [2.0, 2, 2, 2], sizes=(10, 30))
    assert figures["share"] == 0.75 and figures["expected"] == pytest.approx(0.25)
    low, high = figures["interval"]
    assert low <= 0.75 <= high
    # Of four owners at least three are dealt "training": hypergeometric of 10 in 40.
    assert figures["p"] == pytest.approx((10 * 9 * 8 / 6 * 30 + 10 * 9 * 8 * 7 / 24) / 91390, abs=0.01)


def test_a_hundred_images_near_one_are_one_piece_of_evidence():
    many = leaning([0] * 100, [0] * 100, [1.0] * 100, [2.0] * 100, sizes=(10, 10))
    assert many["share"] == 1 and many["p"] == pytest.approx(0.5, abs=0.03)
    different = leaning(list(range(10)) * 10, [0] * 100, [1.0] * 100, [2.0] * 100, sizes=(10, 10))
    assert different["p"] < 0.001


def test_authenticity_by_hand():
    assert authenticity(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([2.0, 2.0, 2.0])) == pytest.approx(1 / 3)


def cloud(count, seed, dim=20):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_noisy_copies_are_seen_and_fresh_draws_are_not():
    train, held_out = cloud(60, 0), cloud(60, 1)
    labels = torch.arange(60) % 2
    copies = train + 0.01 * cloud(60, 2)
    copies[0] = train[0]
    figures, nearest = find_copies(copies, labels, train, labels, held_out, labels)
    assert nearest.train.tolist() == list(range(60))
    assert figures["nearer_to_training"]["share"] == 1 and figures["nearer_to_training"]["p"] < 0.001
    assert (figures["equal_to_training"], figures["equal_to_held_out"]) == (1, 0)
    assert figures["near_copies_of_training"] == 60 and figures["auth_pct"] == 0
    fresh, _ = find_copies(cloud(60, 3), labels, train, labels, held_out, labels)
    assert fresh["nearer_to_training"]["p"] > 0.05 and fresh["near_copies_of_training"] == 0
    # Real images that were held out are as far from the training images as new ones.
    assert abs(fresh["auth_pct"] - fresh["auth_pct_of_held_out"]) < 0.25


def test_equal_images_are_more_than_chance_only_if_one_side_has_them():
    train, held_out = cloud(30, 0), cloud(30, 1)
    labels = torch.zeros(30, dtype=torch.int64)

    def equal_p(made):
        figures, _ = find_copies(made, labels[: len(made)], train, labels, held_out, labels)
        return figures["equal_p"]

    # Ten of 60 images, all of them of the 30: hypergeometric.
    assert equal_p(train[:10].repeat(2, 1)) == pytest.approx(0.0004, abs=0.0006)
    assert equal_p(train[:2]) == pytest.approx(30 * 29 / (60 * 59), abs=0.02)
    assert equal_p(torch.cat([train[:5], held_out[:5]])) == pytest.approx(0.64, abs=0.05)
    assert equal_p(cloud(10, 2)) == 1


def test_sides_may_be_exchanged():
    train, held_out, made = cloud(30, 0), cloud(30, 1), cloud(30, 2)
    labels = torch.zeros(30, dtype=torch.int64)
    one, _ = find_copies(made, labels, train, labels, held_out, labels)
    other, _ = find_copies(made, labels, held_out, labels, train, labels)
    assert one["nearer_to_training"]["share"] + other["nearer_to_training"]["share"] == pytest.approx(1)
    assert one["near_copies_of_training"] == other["near_copies_of_held_out"]
