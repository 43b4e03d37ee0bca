"""Signals on tiny networks."""

import pytest
import torch
from torch import nn

from dim_hf.audit.signals import confidence, inversion, make_images, measure, realism
from dim_hf.classifiers import build_classifier
from dim_hf.data import normalise
from dim_hf.models import DiMDiscriminator, DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(0)
    generator = DiMGenerator(2, 8, 1, 6, 4, (8,), (0,))
    return DiMPipeline(generator.eval(), {0: "a", 1: "b"}, DiMLabeler(2, 8, 1, width=4).eval())


class Constant(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_confidence_is_the_logit_of_the_probability_without_overflow():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    found = confidence(Constant([1.0, 2.0, 0.5]), images, torch.tensor([0, 1]))
    p = torch.tensor([1.0, 2.0, 0.5]).softmax(dim=0)[:2]
    assert torch.allclose(found, (p / (1 - p)).log())
    assert confidence(Constant([500.0, 0.0]), images, torch.tensor([0, 1])).tolist() == [500, -500]


def test_images_are_those_of_their_latents_class_by_class(pipeline):
    made = make_images(pipeline, 3, seed=1)
    assert made.labels.tolist() == [0, 0, 0, 1, 1, 1] and made.pixels.dtype == torch.uint8
    again = pipeline.generator(made.latents, made.labels).sample
    assert torch.equal(made.pixels, ((again + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    assert len({*map(tuple, made.latents.tolist())}) == 6


def test_inversion_finds_what_the_generator_makes(pipeline):
    made = make_images(pipeline, 4, seed=1)
    before = {name: value.clone() for name, value in pipeline.generator.state_dict().items()}
    exact = inversion(pipeline, made.pixels, made.labels, made.latents, steps=0)
    # Rounding to whole grey levels.
    assert bool((exact < 0.5).all())
    starts = torch.zeros_like(made.latents)
    few, many = (inversion(pipeline, made.pixels, made.labels, starts, steps) for steps in (0, 60))
    assert bool((many <= few).all()) and many.mean() < 0.7 * few.mean()
    noise = torch.randint(256, made.pixels.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert inversion(pipeline, noise, made.labels, starts, 60).mean() > 2 * many.mean()
    assert all(torch.equal(value, before[name]) for name, value in pipeline.generator.state_dict().items())
    assert all(parameter.requires_grad for parameter in pipeline.generator.parameters())


def test_the_discriminators_logits_stay_with_their_images():
    torch.manual_seed(0)
    discriminator = DiMDiscriminator(2, 8, 1, (4, 4), norm="none").eval()
    images = torch.randint(256, (70, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(70) % 2
    with torch.no_grad():
        expected = discriminator(normalise(images), labels).logits
    assert torch.allclose(realism(discriminator, images, labels), expected, atol=1e-5)


def test_larger_is_nearer_in_every_signal(pipeline):
    classifier = build_classifier("convnet3", 2, 1, 8).eval()
    made = make_images(pipeline, 4, seed=0)
    noise = torch.randint(256, made.pixels.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images, labels = torch.cat([made.pixels, noise]), made.labels.repeat(2)
    torch.manual_seed(0)
    discriminator = DiMDiscriminator(2, 8, 1, (4, 4), norm="none")
    signals = measure(
        pipeline, classifier, classifier, images, labels,
        per_class=4, inversion_steps=2, seed=0, discriminator=discriminator,
    )  # fmt: skip
    assert set(signals) == {
        "classifier", "nearest_pixels", "nearest_features", "inversion", "labeler", "discriminator",
    }  # fmt: skip
    assert all(signal.shape == (16,) and bool(signal.isfinite().all()) for signal in signals.values())
    for name in ("nearest_pixels", "nearest_features", "inversion"):
        # The candidates of the first half are the very images that are generated.
        assert signals[name][:8].min() > signals[name][8:].max(), name
    assert torch.allclose(signals["labeler"], confidence(pipeline.labeler, images, labels))
