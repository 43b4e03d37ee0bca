"""The matching pool: stages of training, the cache, and what comes out of it."""

import pytest
import torch

from dim_hf.data import load_image_data, normalise
from dim_hf.pool import PoolRecipe, build_pool


DEVICE = torch.device("cpu")
RECIPE = PoolRecipe(steps=60, snapshots=3, batch_size=32)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return load_image_data("digits", cache_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture
def build(digits, tmp_path):
    def build(names=("convnet3",), recipe=RECIPE, seed=0, data=digits):
        return build_pool(names, data, recipe, seed=seed, cache_dir=tmp_path, device=DEVICE, show_progress=False)

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


def test_whatever_decides_a_network_is_part_of_its_key(build, digits, tmp_path):
    build()
    build(recipe=PoolRecipe(steps=61, snapshots=3, batch_size=32))
    build(seed=5)
    build(data=digits.select(torch.arange(500)))
    build(names=("resnet10",), recipe=PoolRecipe(steps=2, snapshots=1, batch_size=4))
    assert len(list((tmp_path / "pool").iterdir())) == 5


def test_a_name_given_twice_is_two_networks(build):
    recipe = PoolRecipe(steps=2, snapshots=1, batch_size=4)
    first, second = build(names=("convnet3", "convnet3"), recipe=recipe)
    assert not torch.equal(weights(first), weights(second))


def test_nothing_half_written_is_left(build, tmp_path):
    build(recipe=PoolRecipe(steps=2, snapshots=1, batch_size=4))
    assert [path.suffix for path in (tmp_path / "pool").iterdir()] == [".safetensors"]


def test_empty_and_unknown(build):
    with pytest.raises(ValueError, match="`pool` is empty"):
        build(names=())
    with pytest.raises(ValueError, match="convnett3.*convnet3"):
        build(names=("convnett3",))
