"""Losses against values worked out by hand, closed forms, and the properties that their definitions promise."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dim_hf.losses import (
    class_loss,
    energy_matching_loss,
    generator_loss,
    gradient_penalty,
    hinge_discriminator_loss,
    matching_loss,
    pairwise_matching_loss,
    r1_penalty,
    wasserstein_discriminator_loss,
)


def test_hinge_by_hand():
    # Real: max(0, 1 - 2) = 0 and max(0, 1 - 0.5) = 0.5. Generated: max(0, 1 - 3) = 0 and max(0, 1 + 1) = 2.
    loss = hinge_discriminator_loss(torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0]))
    assert loss.item() == pytest.approx(0.25 + 1.0)


def test_wasserstein_and_generator_by_hand():
    assert wasserstein_discriminator_loss(torch.tensor([1.0, 3.0]), torch.tensor([0.0, -4.0])).item() == -4.0
    assert generator_loss(torch.tensor([1.0, 4.0])).item() == -2.5


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


@pytest.mark.parametrize("name", ["pairwise", "energy"])
def test_matching_reaches_the_generated_images_alone(name):
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False)
    real = torch.randn(6, 1, 2, 2, requires_grad=True)
    fake = torch.randn(6, 1, 2, 2, requires_grad=True)
    matching_loss(name, classifier, real, fake, torch.arange(3).repeat(2)).backward()
    assert real.grad is None and fake.grad.abs().sum() > 0
    assert all(p.grad is None for p in classifier.parameters())
