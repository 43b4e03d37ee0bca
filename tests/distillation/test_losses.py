"""Losses against values worked out by hand, closed forms, and the properties that their definitions promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dim_hf.choices import MATCHING_LOSSES
from dim_hf.classifiers import build_classifier, logits_and_features
from dim_hf.distillation.losses import (
    FEATURE_LOSSES,
    LOGIT_LOSSES,
    class_loss,
    class_matching_loss,
    class_mean_matching_loss,
    energy_matching_loss,
    energy_probability_matching_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    matching_loss,
    pairwise_matching_loss,
    r1_penalty,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
    sample_matching_loss,
    standardised_matching_loss,
    wasserstein_discriminator_loss,
)


def test_hinge_by_hand():
    # Real: max(0, 1 - 2) = 0 and max(0, 1 - 0.5) = 0.5. Generated: max(0, 1 - 3) = 0 and max(0, 1 + 1) = 2.
    loss = hinge_discriminator_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0]))
    assert loss.item() == pytest.approx(0.25 + 1.0)


def test_wasserstein_and_generator_by_hand():
    assert wasserstein_discriminator_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, -4.0])).item() == -4.0
    assert generator_loss(torch.tensor([1.0, 4.0])).item() == -2.5


def test_relativistic_losses_compare_pairs():
    # Only differences within a pair count: both are log(1 + exp(x)) of x = 0 and x = +-3.
    real, fake = torch.tensor([5.0, -1.0]), torch.tensor([5.0, -4.0])
    behind, ahead = math.log1p(math.exp(-3)), math.log1p(math.exp(3))
    assert relativistic_discriminator_loss(real, fake).item() == pytest.approx((math.log(2) + behind) / 2)
    assert relativistic_generator_loss(real, fake).item() == pytest.approx((math.log(2) + ahead) / 2)


def test_class_loss_of_uniform_logits_is_log_of_classes():
    assert class_loss(torch.zeros(5, 7), torch.tensor([0, 1, 2, 3, 6])).item() == pytest.approx(math.log(7))


def test_gradient_penalty_of_a_linear_critic():
    # The gradient of a linear critic is its weight vector everywhere, here of norm 5: (5 - 1)^2 = 16.
    weight = torch.tensor([3.0, 4.0]).reshape(1, 1, 2)
    real, fake = torch.randn(6, 1, 1, 2), torch.randn(6, 1, 1, 2)
    penalty = gradient_penalty(lambda x: (x * weight).sum(dim=(1, 2, 3)), real, fake, torch.rand(6, 1, 1, 1))
    assert penalty.item() == pytest.approx(16.0)


def test_gradient_penalty_is_taken_between_the_images():
    # The gradient of |x|^2 / 2 is x itself, so the penalty shows where it was evaluated: at 0.25 of the way.
    real, fake = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), 8.0)
    penalty = gradient_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, real, fake, torch.full((2, 1, 1, 1), 0.25))
    assert penalty.item() == pytest.approx((5.0 - 1) ** 2)


def test_r1_of_a_quadratic_critic():
    images = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 1, 1, 2)
    penalty = r1_penalty(lambda x: x.square().sum(dim=(1, 2, 3)) / 2, images)
    assert penalty.item() == pytest.approx((5.0 + 25.0) / 2 / 2)


def test_penalties_train_the_critic():
    critic = nn.Linear(4, 1)
    images = torch.randn(3, 1, 2, 2)
    for penalty in (
        r1_penalty(lambda x: critic(x.flatten(1)).squeeze(1), images),
        gradient_penalty(lambda x: critic(x.flatten(1)).squeeze(1), images, -images, torch.rand(3, 1, 1, 1)),
    ):
        (gradient,) = torch.autograd.grad(penalty, critic.weight)
        assert gradient.abs().sum() > 0


def test_pairwise_by_hand():
    real = torch.tensor([[0.0, 0.0]])
    fake = torch.tensor([[math.log(3.0), 0.0]])
    expected = ((math.log(0.75) - math.log(0.5)) ** 2 + (math.log(0.25) - math.log(0.5)) ** 2) / 2
    assert pairwise_matching_loss(real, fake, torch.tensor([0])).item() == pytest.approx(expected)


def energy_by_loops(real, fake, labels):
    """The definition, pair by pair: for every image with a partner, the means over its class."""
    total, real_real = 0.0, 0.0
    for i in range(len(labels)):
        same = [j for j in range(len(labels)) if labels[j] == labels[i]]
        others = [j for j in same if j != i]
        if not others:
            continue
        within_real = sum((real[i] - real[j]).norm().item() for j in others) / len(others)
        within_fake = sum((fake[i] - fake[j]).norm().item() for j in others) / len(others)
        across = sum((real[i] - fake[j]).norm().item() for j in same) / len(same)
        total += 2 * across - within_real - within_fake
        real_real += within_real
    return total / real_real


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(4, 12), classes=st.integers(1, 3))
def test_energy_is_its_definition(seed, size, classes):
    rng = torch.Generator().manual_seed(seed)
    real, fake = torch.randn(size, 5, generator=rng), torch.randn(size, 5, generator=rng)
    labels = torch.randint(classes, (size,), generator=rng)
    labels[:2] = 0
    expected = energy_by_loops(real, fake, labels)
    assert energy_matching_loss(real, fake, labels).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_energy_takes_maps_of_features_and_is_not_computed_in_half_precision():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat(16)
    # Far from zero beside their spread, as features are: the products have few bits to spare.
    real, fake = (20 + torch.randn(32, 4, 3, 3, generator=rng) for _ in range(2))
    expected = energy_by_loops(real.flatten(1), fake.flatten(1), labels)

    class Maps(torch.nn.Sequential):
        feature_layers = ("0",)

    classifier = Maps(torch.nn.Identity(), torch.nn.Flatten())
    with torch.autocast("cpu", torch.bfloat16):
        loss = matching_loss({"energy_features": 1.0}, classifier, real, fake, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_energy_of_probabilities_sees_how_many_images_are_near_a_border():
    # Of the real images of a class a fifth is between two classes; the generator makes none of these.
    margins = 12 + torch.arange(100.0)
    easy = torch.stack([margins, torch.zeros(100)], dim=1)
    real = torch.where(torch.arange(100)[:, None] % 5 == 0, torch.tensor([0.2, 0.0]), easy)
    labels = torch.zeros(100, dtype=torch.long)
    loss = energy_probability_matching_loss(real, easy, labels)
    assert loss.item() > 2 * energy_matching_loss(real, easy, labels).item() > 0
    assert energy_probability_matching_loss(real, real.roll(1, 0), labels).item() < 0
    torch.testing.assert_close(loss, energy_matching_loss(real.softmax(1), easy.softmax(1), labels))


def test_energy_prefers_the_right_distribution_and_pairwise_a_collapsed_one():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(4).repeat(256)
    centres = 3 * torch.randn(4, 6, generator=rng)

    def logits(spread):
        return centres[labels] + spread * torch.randn(len(labels), 6, generator=rng)

    real, right, collapsed, wide = logits(1.0), logits(1.0), logits(0.0), logits(3.0)
    energy = {name: energy_matching_loss(real, fake, labels).item() for name, fake in
              (("right", right), ("collapsed", collapsed), ("wide", wide))}  # fmt: skip
    assert abs(energy["right"]) < 0.02
    assert energy["right"] < min(energy["collapsed"], energy["wide"]) - 0.1
    assert pairwise_matching_loss(real, collapsed, labels) < pairwise_matching_loss(real, right, labels)


def test_energy_sees_labels():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat(64)
    real = torch.randn(128, 3, generator=rng) + 4 * labels[:, None]
    swapped = torch.randn(128, 3, generator=rng) + 4 * (1 - labels)[:, None]
    assert energy_matching_loss(real, swapped, labels) > 1.0


def test_energy_does_not_depend_on_the_scale_of_the_network():
    real, fake, labels = torch.randn(12, 3), torch.randn(12, 3), torch.arange(3).repeat(4)
    first, second = energy_matching_loss(real, fake, labels), energy_matching_loss(50 * real, 50 * fake, labels)
    assert first.item() == pytest.approx(second.item(), rel=1e-3)


def test_energy_is_finite_where_images_coincide_or_stand_alone():
    fake = torch.zeros(3, 4, requires_grad=True)
    loss = energy_matching_loss(torch.zeros(3, 4), fake, torch.tensor([0, 0, 1]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(fake.grad).all()
    assert (fake.grad[2] == 0).all()


def test_class_matching_sees_the_generated_images_and_their_labels_alone():
    fake = torch.tensor([[2.0, 0.0], [1.0, 4.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(3))) / 2
    for real in (torch.zeros(2, 2), torch.randn(2, 2)):
        assert class_matching_loss(real, fake, torch.tensor([0, 0])).item() == pytest.approx(expected, rel=1e-5)


def test_standardised_by_hand():
    # Both have two classes, one above the other: standardised, all are (-1, 1) / sqrt(2), whatever their scale.
    real, fake = torch.tensor([[1.0, 3.0], [0.0, 10.0]]), torch.tensor([[-5.0, 2.0], [4.0, 4.5]])
    assert standardised_matching_loss(real, fake, torch.zeros(2)).item() == pytest.approx(0.0, abs=1e-6)
    # The other way round in one of two rows: softmax of (-1, 1) / sqrt(2) is (1 - p, p), p = 1 / (1 + exp(-sqrt 2)).
    p = 1 / (1 + math.exp(-math.sqrt(2)))
    expected = p * math.log(p / (1 - p)) + (1 - p) * math.log((1 - p) / p)
    loss = standardised_matching_loss(real, torch.tensor([[2.0, -5.0], [4.0, 4.5]]), torch.zeros(2))
    assert loss.item() == pytest.approx(expected / 2, rel=1e-5)


def test_standardised_is_the_divergence_from_the_real_side():
    real, fake = torch.randn(5, 4), torch.randn(5, 4)

    def probabilities(logits):
        return ((logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)).softmax(1)

    p, q = probabilities(real), probabilities(fake)
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(standardised_matching_loss(real, fake, torch.zeros(5)), expected, rtol=1e-4, atol=1e-6)


def test_sample_features_by_hand():
    real, fake = torch.tensor([[3.0, 0.0], [0.0, 4.0]]), torch.tensor([[3.0, 1.0], [2.0, 4.0]])
    assert sample_matching_loss(real, fake, torch.zeros(2)).item() == pytest.approx((1 + 4) / (9 + 16))
    maps = sample_matching_loss(real.reshape(2, 1, 1, 2), fake.reshape(2, 1, 1, 2), torch.zeros(2))
    assert maps.item() == pytest.approx(5 / 25)


def test_class_means_by_hand():
    # One class of two images: r.r' = 1 * 3, f.f' = 2 * 4, and both pairs across, 1 * 4 and 3 * 2, for E r.f = 5.
    real, fake = torch.tensor([[1.0], [3.0], [9.0]]), torch.tensor([[2.0], [4.0], [-9.0]])
    loss = class_mean_matching_loss(real, fake, torch.tensor([0, 0, 1]))
    # Over E |r|^2 = (1 + 9) / 2; the image of the other class stands alone and takes no part.
    assert loss.item() == pytest.approx((3 + 8 - 2 * 5) / 5)


def test_class_means_are_estimated_without_bias_and_ask_for_no_collapse():
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(256).repeat_interleave(4)
    centres = torch.randn(256, 8, generator=rng)

    def features(spread, shift=0.0):
        return (centres + shift)[labels] + spread * torch.randn(len(labels), 8, generator=rng)

    real = features(1.0)
    losses = [class_mean_matching_loss(real, features(spread), labels).item() for spread in (0.0, 1.0, 2.0)]
    # The distance of the batch's means would be 0.125, 0.25 and 0.625 of the scale.
    assert max(map(abs, losses)) < 0.1
    scale = real.square().sum(1).mean().item()
    shifted = class_mean_matching_loss(real, features(1.0, shift=1.0), labels).item()
    assert shifted == pytest.approx(8 / scale, abs=0.1)


def test_class_means_see_labels_and_not_scale():
    labels = torch.arange(2).repeat(32)
    real = torch.randn(64, 3) + 4 * labels[:, None]
    swapped = torch.randn(64, 3) + 4 * (1 - labels)[:, None]
    loss = class_mean_matching_loss(real, swapped, labels)
    assert loss > 0.5
    assert class_mean_matching_loss(10 * real, 10 * swapped, labels).item() == pytest.approx(loss.item(), rel=1e-4)


def test_losses_combine_by_their_weights_and_features_are_means_over_layers():
    torch.manual_seed(0)
    classifier = build_classifier("convnet3", 3, 1, 16).eval().requires_grad_(False)
    real, fake, labels = torch.randn(6, 1, 16, 16), torch.randn(6, 1, 16, 16), torch.arange(3).repeat(2)
    alone = {name: matching_loss({name: 1.0}, classifier, real, fake, labels) for name in MATCHING_LOSSES}
    assert alone["energy"] == energy_matching_loss(classifier(real), classifier(fake), labels)
    layers = [logits_and_features(classifier, images)[1].values() for images in (real, fake)]
    means = torch.stack([class_mean_matching_loss(r, f, labels) for r, f in zip(*layers, strict=True)]).mean()
    assert len(layers[0]) == 3 and alone["features"] == means
    both = matching_loss({"energy": 0.5, "features": 2.0}, classifier, real, fake, labels)
    torch.testing.assert_close(both, 0.5 * alone["energy"] + 2 * alone["features"])


def test_every_loss_has_a_name_to_choose():
    assert (*LOGIT_LOSSES, *FEATURE_LOSSES) == MATCHING_LOSSES


@pytest.mark.parametrize("name", MATCHING_LOSSES)
def test_matching_reaches_the_generated_images_alone(name):
    torch.manual_seed(0)
    classifier = build_classifier("convnet3", 3, 1, 8).eval().requires_grad_(False)
    real = torch.randn(6, 1, 8, 8, requires_grad=True)
    fake = torch.randn(6, 1, 8, 8, requires_grad=True)
    matching_loss({name: 1.0}, classifier, real, fake, torch.arange(3).repeat(2)).backward()
    assert real.grad is None and fake.grad.abs().sum() > 0 and torch.isfinite(fake.grad).all()
    assert all(p.grad is None for p in classifier.parameters())
