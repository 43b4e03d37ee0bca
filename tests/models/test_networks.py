"""Generator and discriminator: shapes for every size, the paper's parameter count, conditioning, save and load."""

import json

import pytest
import torch
from presets import PRESETS, network_configs

from dim_hf.models import DiMDiscriminator, DiMGenerator, DiMLabeler
from dim_hf.models.discriminator_dim import ClassStd


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 28, 32, 64, 128])
def test_every_size_and_channel(preset, size, channels):
    generator_config, discriminator_config = network_configs(preset, size, channels, num_classes=5)
    generator_config["block_out_channels"] = [4 for _ in generator_config["block_out_channels"]]
    discriminator_config["block_out_channels"] = [4 for _ in discriminator_config["block_out_channels"]]
    labels = torch.tensor([0, 4])
    generator = DiMGenerator(**generator_config)
    images = generator(torch.randn(2, generator.config.latent_dim), labels).sample
    assert images.shape == (2, channels, size, size)
    assert images.abs().max() <= 1
    output = DiMDiscriminator(**discriminator_config)(images, labels)
    assert output.logits.shape == (2,) and output.class_logits.shape == (2, 5)


def test_paper_generator_has_the_size_of_the_released_one():
    generator_config, discriminator_config = network_configs("paper", 32, 3, 10)
    generator = DiMGenerator(**generator_config)
    assert generator.num_parameters() / 1e6 == pytest.approx(3.56, abs=0.02)
    for network, config in ((generator, generator_config), (DiMDiscriminator(**discriminator_config), None)):
        convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
        assert len(convolutions) == 8, config


def test_number_of_classes_is_unbounded_with_an_embedding_and_bounded_without():
    assert DiMGenerator(1000, 8, 1, latent_dim=4, block_out_channels=(4,), layers_per_block=(0,)).num_parameters() > 0
    with pytest.raises(ValueError, match=r"`num_classes` \(11\) can be at most `latent_dim` \(10\)"):
        DiMGenerator(11, 8, 1, latent_dim=10, class_embed_dim=0)


def test_one_hot_label_overwrites_the_noise():
    generator = DiMGenerator(3, 8, 1, 10, 0, block_out_channels=(4,), layers_per_block=(0,)).eval()
    latents, labels = torch.randn(2, 10), torch.tensor([1, 2])
    other = latents.clone()
    other[:, :3] += 7
    assert torch.equal(generator(latents, labels).sample, generator(other, labels).sample)
    other[:, 3:] += 1
    assert not torch.equal(generator(latents, labels).sample, generator(other, labels).sample)


@pytest.mark.parametrize("class_embed_dim", [0, 8])
def test_the_label_changes_the_image(class_embed_dim):
    generator = DiMGenerator(3, 8, 1, 10, class_embed_dim, block_out_channels=(4,), layers_per_block=(1,)).eval()
    latents = torch.randn(1, 10).expand(3, 10)
    images = generator(latents, torch.arange(3)).sample
    assert not torch.allclose(images[0], images[1]) and not torch.allclose(images[1], images[2])


@pytest.mark.parametrize("class_embed_dim", [0, 4])
def test_modulation_scales_and_shifts_channels_by_noise_and_class(class_embed_dim):
    arguments = {"latent_dim": 10, "class_embed_dim": class_embed_dim, "block_out_channels": (4, 6)}
    plain, network = (DiMGenerator(3, 8, 1, **arguments, modulation=flag).eval() for flag in (False, True))
    network.load_state_dict(plain.state_dict(), strict=False)
    latents, labels = torch.randn(3, 10), torch.arange(3)
    # It begins as the network without it.
    assert torch.equal(network(latents, labels).sample, plain(latents, labels).sample)
    seen = {}
    network.proj_in.register_forward_pre_hook(lambda module, inputs: seen.update(condition=inputs[0]))
    network.blocks[1].norm.register_forward_hook(lambda module, inputs, output: seen.update(hidden=output))
    network.blocks[1].register_forward_hook(lambda module, inputs, output: seen.update(output=output))
    torch.nn.init.normal_(network.blocks[1].modulation.weight)
    changed = network(latents, labels).sample
    weight = network.blocks[1].modulation.weight
    scale, shift = (seen["condition"] @ rows.T for rows in (weight[:6], weight[6:]))
    expected = (seen["hidden"] * (1 + scale[:, :, None, None]) + shift[:, :, None, None]).relu()
    assert torch.allclose(seen["output"], expected, atol=1e-6)
    assert not torch.allclose(changed, plain(latents, labels).sample)


def test_nearest_upsampling_repeats_each_pixel_and_convolves():
    arguments = {"latent_dim": 10, "class_embed_dim": 4, "block_out_channels": (4, 6), "layers_per_block": (0, 0)}
    network = DiMGenerator(3, 16, 1, **arguments, upsample_type="nearest").eval()
    shapes = {name: tuple(value.shape) for name, value in network.named_parameters() if value.ndim == 4}
    assert shapes == {"blocks.1.upsample.1.weight": (6, 4, 3, 3), "conv_out.1.weight": (1, 6, 3, 3)}
    seen = {}
    network.blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(coarse=output))
    network.blocks[1].upsample.register_forward_hook(lambda module, inputs, output: seen.update(fine=output))
    assert network(torch.randn(2, 10), torch.tensor([0, 2])).sample.shape == (2, 1, 16, 16)
    weight = network.blocks[1].upsample[1].weight
    grown = seen["coarse"].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    assert torch.allclose(seen["fine"], torch.nn.functional.conv2d(grown, weight, padding=1), atol=1e-6)
    transposed = DiMGenerator(3, 16, 1, **arguments)
    assert transposed.num_parameters() - network.num_parameters() == (16 - 9) * (4 * 6 + 6 * 1)


def test_projection_knows_the_label_and_plain_head_does_not():
    images, zeros, ones = torch.randn(2, 1, 8, 8), torch.tensor([0, 0]), torch.tensor([1, 1])
    for projection in (True, False):
        network = DiMDiscriminator(2, 8, 1, (4,), (0,), projection=projection).eval()
        same = torch.allclose(network(images, zeros).logits, network(images, ones).logits)
        assert same is not projection
    assert DiMDiscriminator(2, 8, 1, (4,), (0,), auxiliary=False)(images, zeros).class_logits is None


def test_batch_std_is_that_of_the_class_within_its_own_batch():
    maps = torch.tensor([0.0, 2.0, 5.0, 1.0, 1.0, 7.0]).reshape(6, 1, 1, 1)
    labels = torch.tensor([0, 0, 1, 0, 0, 1])
    expected = (torch.tensor([1.0, 1.0, 0.0]).square() + 1e-4).sqrt()
    assert torch.allclose(ClassStd(10)(maps[:3], labels[:3]), expected)

    network = DiMDiscriminator(2, 8, 1, (4, 8), (0, 0), batch_std=True).eval()
    images, other = torch.randn(6, 1, 8, 8), torch.randn(6, 1, 8, 8)
    single = network(images, labels).logits
    together = network(torch.cat([images, other]), labels.repeat(2), num_batches=2).logits
    assert torch.allclose(single, together[:6], atol=1e-6)
    assert not torch.allclose(single, network(torch.cat([images, other]), labels.repeat(2)).logits[:6], atol=1e-6)


def test_batch_std_sees_a_class_that_is_too_uniform():
    network = DiMDiscriminator(2, 8, 1, (4, 8), (0, 0), batch_std=True).eval()
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([0, 0, 0, 1])
    uniform = images.clone()
    uniform[:3] = images[0]
    assert not torch.allclose(network(images, labels).logits[0], network(uniform, labels).logits[0], atol=1e-6)


def test_spectral_norm_bounds_every_weight():
    network = DiMDiscriminator(4, 16, 1, (8, 16), (0, 1))
    for _ in range(200):
        network(torch.randn(2, 1, 16, 16), torch.tensor([0, 1]))
    network.eval()
    weights = [m.weight.flatten(1) for m in network.modules() if hasattr(m, "parametrizations")]
    assert len(weights) == 6
    for weight in weights:
        assert torch.linalg.matrix_norm(weight, ord=2).item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    ("network", "inputs"),
    [
        (DiMGenerator(3, 8, 1, 10, 4, (4,), (1,), residual=True), (torch.ones(2, 10), torch.tensor([0, 2]))),
        (DiMGenerator(3, 8, 1, 10, 4, (4,), (1,), modulation=True), (torch.ones(2, 10), torch.tensor([0, 2]))),
        (
            DiMGenerator(3, 8, 1, 10, 4, (4, 4), (0, 0), upsample_type="nearest"),
            (torch.ones(2, 10), torch.tensor([0, 2])),
        ),
        (DiMDiscriminator(3, 8, 1, (4, 8), (0, 1)), (torch.ones(2, 1, 8, 8), torch.tensor([0, 2]))),
        (DiMDiscriminator(3, 8, 1, (4,), (0,), batch_std=True), (torch.ones(2, 1, 8, 8), torch.tensor([0, 2]))),
        (DiMDiscriminator(3, 8, 1, (4,), (0,), norm="layer"), (torch.ones(2, 1, 8, 8), torch.tensor([0, 2]))),
    ],
)
def test_save_and_load(network, inputs, tmp_path):
    network.eval().save_pretrained(tmp_path)
    assert [path.suffix for path in sorted(tmp_path.iterdir())] == [".json", ".safetensors"]
    loaded = type(network).from_pretrained(tmp_path)
    assert torch.allclose(network(*inputs)[0], loaded(*inputs)[0], atol=1e-6)
    assert dict(loaded.config)["num_classes"] == 3


@pytest.mark.parametrize("network", [DiMGenerator(3, 8, 1, 10, 4, (4,), (1,)), DiMLabeler(3, 8, 1, width=4)])
def test_unknown_config_entries_are_named(network, tmp_path):
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"guidance": 1, "depth": 2}))
    with pytest.raises(ValueError, match="has the unknown entries depth, guidance; valid are .*num_classes"):
        type(network).from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_size": 30}, "`sample_size` 30 .* multiple of 4"),
        ({"out_channels": 4}, "`out_channels` is 4; valid are 1"),
        ({"layers_per_block": (0,)}, r"`layers_per_block` \(0,\)"),
    ],
)
def test_generator_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiMGenerator(**{"num_classes": 2, "sample_size": 28} | arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sample_size": 30}, "`sample_size` 30 cannot be halved 2 times"),
        ({"norm": "batch"}, "`norm` is 'batch'; valid are"),
        ({"kernel_size": 5}, "`kernel_size` is 5; valid are 3 and 4"),
        ({"layers_per_block": (0,)}, r"`layers_per_block` \(0,\)"),
    ],
)
def test_discriminator_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiMDiscriminator(**{"num_classes": 2, "sample_size": 28} | arguments)
