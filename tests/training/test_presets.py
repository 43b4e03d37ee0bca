"""The presets: networks that fit every size, and messages that name the nearest ones."""

import pytest
import torch
from presets import PRESETS, default_augmentation, doublings, network_configs

from dim_hf.models import DiMDiscriminator, DiMGenerator


@pytest.mark.parametrize(
    ("size", "count"), [(8, 1), (10, 1), (12, 1), (14, 1), (16, 2), (20, 2), (28, 2), (32, 3), (64, 4), (3584, 9)]
)
def test_doublings_from_the_coarsest_map(size, count):
    assert doublings(size) == count


@pytest.mark.parametrize(
    ("size", "nearest"),
    [(30, "28 and 32"), (4, "8 and 10"), (0, "8 and 10"), (-8, "8 and 10"), (9, "8 and 10"), (4096, "3072 and 3584")],
)
def test_other_sizes_are_refused_with_the_nearest(size, nearest):
    with pytest.raises(ValueError, match=f"`resolution` {size} is a size .* nearest are {nearest}; pass one"):
        doublings(size)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(("size", "channels", "classes"), [(8, 1, 2), (14, 3, 3), (28, 1, 10), (32, 3, 120)])
def test_networks_of_a_preset_fit_the_images_and_each_other(preset, size, channels, classes):
    generator_config, discriminator_config = network_configs(preset, size, channels, classes)
    generator, discriminator = DiMGenerator(**generator_config), DiMDiscriminator(**discriminator_config)
    labels = torch.arange(2) % classes
    with torch.no_grad():
        images = generator(torch.zeros(2, generator_config["latent_dim"]), labels).sample
        assert images.shape == (2, channels, size, size)
        assert discriminator(images, labels).logits.shape == (2,)


def test_only_nano_upsamples_and_only_colour_images():
    taken = {
        (preset, channels): network_configs(preset, 32, channels, 10)[0] for preset in PRESETS for channels in (1, 3)
    }
    nearest = {key for key, config in taken.items() if config.get("upsample_type") == "nearest"}
    assert nearest == {("nano", 3)}


def test_presets_set_the_same_things_but_for_their_length():
    lengths = {"num_train_epochs", "max_train_steps", "num_match_epochs", "max_match_steps"}
    assert {*PRESETS["base"]} - lengths == {*PRESETS["paper"]} - lengths
    for settings in PRESETS.values():
        assert len({"num_train_epochs", "max_train_steps"} & settings.keys()) == 1
        assert len({"num_match_epochs", "max_match_steps"} & settings.keys()) == 1


def test_few_images_and_colour_images_are_shifted():
    assert default_augmentation(9_999, channels=1) == ["shift"] and default_augmentation(10_000, channels=1) == []
    assert default_augmentation(10_000, channels=3) == ["shift"]
