"""The matching pool: stages of training, the cache, and what comes out of it."""

import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import ResNetConfig

from dim_hf.classifiers import build_classifier
from dim_hf.classifiers.external import find_source, plan
from dim_hf.data import load_image_data, normalise
from dim_hf.distillation.augmentation import draw_augmentation
from dim_hf.distillation.pool import build_pool
from dim_hf.distillation.pool_recipe import PoolRecipe, pool_entry


DEVICE = torch.device("cpu")
RECIPE = PoolRecipe(steps=60, snapshots=3, batch_size=32)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_image_data("digits", cache_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture
def build(digits, tmp_path):
    def build(entries=("convnet3",), recipe=RECIPE, seed=0, data=digits):
        return build_pool(
            [pool_entry(entry) for entry in entries],
            data,
            recipe,
            seed=seed,
            cache_dir=tmp_path,
            device=DEVICE,
            show_progress=False,
        )

    return build


def weights(network):
    return torch.cat([p.flatten() for p in network.parameters()])


@pytest.mark.parametrize(
    ("steps", "snapshots", "expected"),
    [(1000, 1, [1000]), (1000, 2, [16, 1000]), (1024, 7, [16, 32, 64, 128, 256, 512, 1024]), (2, 6, [2])],
)
def test_snapshots_are_evenly_spread_on_a_logarithmic_scale(steps, snapshots, expected):
    assert PoolRecipe(steps=steps, snapshots=snapshots).snapshot_steps() == expected


def test_snapshots_are_stages_of_one_training(build, digits):
    pool = build()
    assert len(pool) == 3
    images, labels = normalise(digits.images), digits.labels
    losses = [torch.nn.functional.cross_entropy(network(images), labels).item() for network in pool]
    assert losses[0] > losses[1] > losses[2]
    for network in pool:
        assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_training_is_sgd_with_momentum_and_weight_decay_on_shifted_images(build, digits):
    (network,) = build(recipe=PoolRecipe(steps=4, snapshots=1, batch_size=8, learning_rate=0.1))
    torch.manual_seed(random.Random("pool/0").getrandbits(63))
    expected = build_classifier("convnet3", 10, 1, 8)
    order, rng = torch.Generator().manual_seed(0), random.Random(0)
    velocities = [torch.zeros_like(weight) for weight in expected.parameters()]
    shifted = []
    for _ in range(4):
        pixels, labels = digits.batch(torch.randint(len(digits), (8,), generator=order))
        images = draw_augmentation(["shift"], 8, rng)(normalise(pixels))
        shifted.append(not torch.equal(images, normalise(pixels)))
        gradients = torch.autograd.grad(F.cross_entropy(expected(images), labels), list(expected.parameters()))
        with torch.no_grad():
            for weight, velocity, gradient in zip(expected.parameters(), velocities, gradients, strict=True):
                velocity.copy_(0.9 * velocity + gradient + 5e-4 * weight)
                weight -= 0.1 * velocity
    assert any(shifted[:-1])
    # Weight decay by itself moves the scales of the norms, which begin at 1, by more than 0.0004.
    torch.testing.assert_close(weights(network), weights(expected), rtol=0, atol=1e-5)


def test_the_cache_gives_the_same_networks_without_training(build, tmp_path):
    first = build()
    (file,) = (tmp_path / "pool").iterdir()
    written = file.stat().st_mtime_ns
    second = build()
    assert file.stat().st_mtime_ns == written
    assert all(torch.equal(weights(a), weights(b)) for a, b in zip(first, second, strict=True))


def test_training_is_a_function_of_the_seed(build, tmp_path):
    first = weights(build()[-1])
    for file in (tmp_path / "pool").iterdir():
        file.unlink()
    assert torch.equal(weights(build()[-1]), first)
    assert not torch.equal(weights(build(seed=1)[-1]), first)


def test_a_judge_of_the_same_seed_does_not_begin_as_a_network_of_the_pool(build):
    (first,) = build(recipe=PoolRecipe(steps=1, snapshots=1, batch_size=4, learning_rate=1e-6))
    torch.manual_seed(0)
    judge = build_classifier("convnet3", 10, 1, 8)
    assert (first[0].weight - judge[0].weight).abs().max() > 0.1


def test_whatever_decides_a_network_is_part_of_its_key(build, digits, tmp_path):
    build()
    build(recipe=PoolRecipe(steps=61, snapshots=3, batch_size=32))
    build(seed=5)
    build(data=digits.select(torch.arange(500)))
    build(entries=("resnet10",), recipe=PoolRecipe(steps=2, snapshots=1, batch_size=4))
    assert len(list((tmp_path / "pool").iterdir())) == 5


def test_a_name_given_twice_is_two_networks(build):
    recipe = PoolRecipe(steps=2, snapshots=1, batch_size=4)
    first, second = build(entries=("convnet3", "convnet3"), recipe=recipe)
    assert not torch.equal(weights(first), weights(second))


TINY_RESNET = "transformers/ResNetConfig:embedding_size=8,hidden_sizes=[8,8],depths=[1,1],layer_type=basic"
DROPOUT = "timm/mobilenetv3_small_050:drop_rate=0.5"
SHORT = PoolRecipe(steps=2, snapshots=2, batch_size=8)


@pytest.mark.parametrize("name", [TINY_RESNET, DROPOUT])
def test_models_of_other_libraries_are_cached_under_plain_file_names(build, tmp_path, name):
    first = build(entries=(name,), recipe=SHORT)
    (file,) = (tmp_path / "pool").iterdir()
    assert file.parent == tmp_path / "pool" and not set(file.name) & set('/:=[],"')
    second = build(entries=(name,), recipe=SHORT)
    assert all(torch.equal(weights(a), weights(b)) for a, b in zip(first, second, strict=True))
    file.unlink()
    # What dropout draws is decided by the seed as well.
    torch.rand(3)
    again = build(entries=(name,), recipe=SHORT)
    assert all(torch.equal(weights(a), weights(b)) for a, b in zip(first, again, strict=True))


def test_a_weight_repeats_the_snapshots_of_one_network(build, tmp_path):
    pool = build(entries=("convnet3@2", TINY_RESNET), recipe=SHORT)
    plain = build(entries=("convnet3",), recipe=SHORT)
    assert len(pool) == 2 * len(plain) + 1 and len(plain) == 1
    assert pool[0] is pool[1] and torch.equal(weights(pool[0]), weights(plain[0]))
    assert len(list((tmp_path / "pool").iterdir())) == 2


def test_a_network_is_shared_wherever_its_name_stands(build, tmp_path):
    build(entries=("convnet3", TINY_RESNET), recipe=SHORT)
    build(entries=(TINY_RESNET, "convnet3"), recipe=SHORT)
    assert len(list((tmp_path / "pool").iterdir())) == 2


def test_what_a_local_folder_holds_is_part_of_its_key(build, tmp_path):
    folder = tmp_path / "model"
    ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic").save_pretrained(folder)
    first = weights(build(entries=(f"transformers/{folder}",), recipe=SHORT)[-1])
    find_source.cache_clear()
    plan.cache_clear()
    ResNetConfig(embedding_size=4, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic").save_pretrained(folder)
    assert len(weights(build(entries=(f"transformers/{folder}",), recipe=SHORT)[-1])) != len(first)


def test_nothing_half_written_is_left(build, tmp_path):
    build(recipe=PoolRecipe(steps=2, snapshots=1, batch_size=4))
    assert [path.suffix for path in (tmp_path / "pool").iterdir()] == [".safetensors"]


def test_a_damaged_cache_is_trained_anew(build, tmp_path):
    first = weights(build(recipe=SHORT)[-1])
    (file,) = (tmp_path / "pool").iterdir()
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-7] ^= 64
    for damaged in (bytes(flipped), content[:-100], b""):
        file.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged or cannot be read; its networks are trained again"):
            assert torch.equal(weights(build(recipe=SHORT)[-1]), first)
    save_file(load_file(file), file)
    with pytest.warns(UserWarning, match="is damaged"):
        assert torch.equal(weights(build(recipe=SHORT)[-1]), first)


def test_a_network_that_diverged_is_not_cached(build, tmp_path):
    with pytest.raises(FloatingPointError, match="`pool`: the weights of convnet3 became NaN or infinite by step 2"):
        build(recipe=PoolRecipe(steps=2, snapshots=1, batch_size=8, learning_rate=1e30))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_empty_and_wrong_entries_are_refused_before_any_training(build, tmp_path):
    with pytest.raises(ValueError, match="`pool` is empty"):
        build(entries=())
    with pytest.raises(ValueError, match="convnett3.*convnet3"):
        build(entries=("convnet3", "convnett3"))
    for entry in ("convnet3@0", "convnet3@1.5", "convnet3@", "convnet3@1001"):
        with pytest.raises(ValueError, match=f"'{entry}' has the weight .*; it must be a whole number from 1"):
            build(entries=(entry,))
    with pytest.raises(ValueError, match="does not take images of 30 pixels"):
        build(entries=("convnet3", "timm/mixer_s32_224:input_size=30"))
    assert not (tmp_path / "pool").exists()
