import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dim_hf.data import ImageData
from dim_hf.privacy import RandomFeatures, check_privacy, gaussian_noise_std
from dim_hf.privacy.mechanism import (
    CLIP,
    COUNT_WEIGHT,
    SENSITIVITY,
    SENSITIVITY_REPLACE,
    clipped_sums,
    epsilon_for_replacement,
    gaussian_noise,
    noisy_sums,
)


CLASSES = 3


def image_data(images, labels):
    return ImageData(images, torch.as_tensor(labels), tuple("abc"), "0" * 16)


def images_at_the_edges():
    """Every image that a neighbour may bring: black, white, noise, and one white pixel."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=rng)
    pixel = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixel[..., 4, 4] = 255
    return torch.cat([torch.zeros_like(pixel), torch.full_like(pixel, 255), pixel, noise])


def opposite_features(images):
    """The worst case: vectors far beyond the clip, in opposite directions by the image's first pixel."""
    sign = images[:, 0, 0, 0].float()[:, None] - 100
    return sign.double() * torch.tensor([[3.0, -4.0, 1e20]])


def random_features(images):
    return RandomFeatures(1, 8).double().of_pixels(images)


FEATURES = {"random": (random_features, RandomFeatures(1, 8).width), "opposite": (opposite_features, 3)}


@pytest.mark.parametrize("name", FEATURES)
def test_no_neighbour_moves_the_sums_by_more_than_stated(name):
    features, width = FEATURES[name]
    images = images_at_the_edges()
    base, labels = images[[0, 1, 3, 4]], [0, 0, 1, 2]
    sums = clipped_sums(image_data(base, labels), features, width)

    def moved(images, labels):
        return float((clipped_sums(image_data(images, labels), features, width) - sums).norm())

    added, replaced, replaced_within = [], [], []
    for position in range(4):
        rest = [i for i in range(4) if i != position]
        added.append(moved(base[rest], [labels[i] for i in rest]))
        for image in images:
            for label in range(CLASSES):
                new_labels = [labels[i] for i in rest] + [label]
                change = moved(torch.cat([base[rest], image[None]]), new_labels)
                (replaced_within if label == labels[position] else replaced).append(change)
    for image in images:
        for label in range(CLASSES):
            added.append(moved(torch.cat([base, image[None]]), [*labels, label]))

    assert max(added) <= SENSITIVITY
    assert min(added) > 0.999 * SENSITIVITY
    assert max(replaced_within) <= SENSITIVITY_REPLACE
    assert max(replaced) <= math.sqrt(2)
    if name == "opposite":
        assert max(replaced_within) > 0.999 * SENSITIVITY_REPLACE


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=4, max_size=4))
def test_whatever_the_features_an_image_adds_at_most_its_clip(values):
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    sums = clipped_sums(image_data(image, [1]), lambda images: torch.tensor([values]).double(), 4)
    assert sums[1, :4].norm() <= CLIP
    assert sums[1, 4] == pytest.approx(COUNT_WEIGHT, abs=1e-9)
    assert not sums[[0, 2]].any()


def test_short_features_are_not_changed():
    image = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)

    def features(images):
        return torch.tensor([[0.25, -0.5]] * len(images), dtype=torch.float64)

    sums = clipped_sums(image_data(image, [2, 2]), features, 2)
    assert sums[2, :2].tolist() == pytest.approx([0.5, -1.0], abs=1e-9)


def test_an_image_among_many_moves_the_sums_by_no_more_than_alone():
    """All others change their place in the batches, on which the last digits of their features depend."""
    images = torch.randint(256, (1203, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = torch.arange(1203) % CLASSES
    all_sums = clipped_sums(image_data(images, labels), random_features, RandomFeatures(1, 8).width)
    for position in (0, 1, 600, 1202):
        rest = torch.arange(1203) != position
        sums = clipped_sums(image_data(images[rest], labels[rest]), random_features, RandomFeatures(1, 8).width)
        assert (all_sums - sums).norm() <= SENSITIVITY * (1 + 1e-9)


def test_features_of_too_few_digits_are_refused():
    image = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(TypeError, match=r"torch\.float32; the sensitivity holds for torch\.float64"):
        clipped_sums(image_data(image, [1]), lambda images: torch.ones(1, 2), 2)


def test_sums_do_not_depend_on_the_order_of_the_images():
    images = torch.randint(256, (600, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels, order = torch.arange(600) % CLASSES, torch.arange(599, -1, -1)

    # Features that are the same in any batch, so that what is left is the order of the sum.
    def features(images):
        return images.flatten(1)[:, :50].double() / 3000

    there = clipped_sums(image_data(images, labels), features, 50)
    back = clipped_sums(image_data(images[order], labels[order]), features, 50)
    assert torch.equal(there, back)


def delta_of(epsilon, std):
    """Theorem 8 of arXiv 1805.06530, for sensitivity 1."""
    ratio = 1 / (2 * std)
    return stats.norm.cdf(ratio - epsilon * std) - math.exp(epsilon) * stats.norm.cdf(-ratio - epsilon * std)


@pytest.mark.parametrize("epsilon", [0.1, 1, 10])
def test_noise_std_is_the_smallest_that_the_formula_allows(epsilon):
    std = gaussian_noise_std(epsilon, 1e-5)
    assert delta_of(epsilon, std) <= 1e-5
    assert delta_of(epsilon, std * 0.999) > 1e-5


def test_noise_std_agrees_with_the_accountant_of_privacy_losses():
    from dp_accounting.pld import privacy_loss_distribution

    loss = privacy_loss_distribution.from_gaussian_mechanism(
        gaussian_noise_std(1, 1e-5), value_discretization_interval=1e-4
    )
    assert loss.get_epsilon_for_delta(1e-5) == pytest.approx(1, abs=2e-3)


def test_replacement_costs_more():
    std = gaussian_noise_std(1, 1e-5)
    epsilon = epsilon_for_replacement(std, 1e-5)
    assert delta_of(epsilon, std / (2 * CLIP)) == pytest.approx(1e-5, rel=1e-6)
    assert epsilon > 2


def test_noise_is_gaussian_and_no_seed_decides_it():
    torch.manual_seed(0)
    first = gaussian_noise(torch.Size([4, 50_000]), 3.0)
    torch.manual_seed(0)
    second = gaussian_noise(torch.Size([4, 50_000]), 3.0)
    for noise in (first, second):
        assert stats.kstest(noise.flatten().numpy() / 3, "norm").pvalue > 1e-7
    assert abs(float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(first[:2])[0, 1])) < 0.04


def test_what_is_released_lies_on_a_coarse_grid():
    released = noisy_sums(torch.full((2, 1000), 0.123), 3.73)
    grid = 2.0 ** (1 - 16)
    assert torch.equal(released, (released / grid).round() * grid)
    assert released.std() == pytest.approx(3.73, rel=0.1)


@pytest.mark.parametrize(
    ("epsilon", "delta", "named"),
    [(0, 1e-5, "epsilon"), (-1, 1e-5, "epsilon"), (math.nan, 1e-5, "epsilon"), (math.inf, 1e-5, "epsilon")]
    + [(100, 1e-5, "epsilon"), ("1", 1e-5, "epsilon"), (1, 0, "delta"), (1, 0.5, "delta"), (1, math.nan, "delta")],
)
def test_a_budget_that_promises_nothing_is_refused(epsilon, delta, named):
    with pytest.raises(ValueError, match=f"`privacy_{named}` is "):
        check_privacy(epsilon, delta)
