import gc
import json
import math
import weakref

import pytest
import torch

from dim_hf.data import ImageData
from dim_hf.privacy import MeanMatching, PrivateStatistics, RandomFeatures, release_statistics
from dim_hf.privacy.matching import RIDGE


def private_images(number=300, seed=0):
    images = torch.randint(256, (number, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return ImageData(images, torch.arange(number) % 2, ("cat", "dog"), "f" * 16)


@pytest.fixture(scope="module")
def statistics():
    return release_statistics(private_images(), 50, 1e-5)


def test_means_and_counts_are_those_of_the_images_but_for_the_noise(statistics):
    data, std = private_images(), statistics.guarantee.noise_std
    features = statistics.features.of_pixels(data.images)
    exact = torch.stack([features[data.labels == label].sum(dim=0) for label in range(2)])
    error = statistics.sums - exact
    # The features' norm of 1 is clipped to a little less.
    assert error.std() == pytest.approx(std, rel=0.1)
    assert (statistics.counts - 150).abs().max() < 6 * statistics.count_std
    assert torch.allclose(statistics.means(), (statistics.sums / statistics.counts[:, None]).float())


def test_two_releases_differ(statistics):
    torch.manual_seed(0)
    first = release_statistics(private_images(), 50, 1e-5)
    torch.manual_seed(0)
    second = release_statistics(private_images(), 50, 1e-5)
    assert not (first.sums == second.sums).float().mean() > 0.01
    assert not torch.equal(first.counts, second.counts)


def test_a_release_holds_no_reference_to_the_images():
    data = private_images()
    references = [weakref.ref(data), weakref.ref(data.stored), weakref.ref(data.labels)]
    kept = release_statistics(data, 50, 1e-5)
    del data
    gc.collect()
    assert kept is not None
    assert [reference() for reference in references] == [None] * 3


def test_saved_and_loaded(statistics, tmp_path):
    statistics.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics.json", "statistics.safetensors"]
    loaded = PrivateStatistics.load(tmp_path)
    assert torch.equal(loaded.sums, statistics.sums)
    assert torch.equal(loaded.counts, statistics.counts)
    assert (loaded.class_names, loaded.guarantee) == (statistics.class_names, statistics.guarantee)
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(loaded.features(images), statistics.features(images))
    # Neither the exact number of images nor their fingerprint is among what is written.
    record = json.loads((tmp_path / "statistics.json").read_text())
    assert record.keys() == {"class_names", "features", "guarantee"}
    assert "f" * 16 not in (tmp_path / "statistics.json").read_text()


@pytest.mark.parametrize("damage", ["cut", "names", "guarantee", "nan", "features"])
def test_damaged_files_are_refused(statistics, tmp_path, damage):
    statistics.save(tmp_path)
    path = tmp_path / "statistics.json"
    record = json.loads(path.read_text())
    if damage == "cut":
        tensors = tmp_path / "statistics.safetensors"
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif damage == "names":
        record["class_names"].append("cow")
    elif damage == "guarantee":
        record["guarantee"]["epsilon"] = "small"
    elif damage == "nan":
        record["guarantee"]["noise_std"] = float("nan")
    else:
        record["features"]["size"] = -3
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError) as error:
        PrivateStatistics.load(tmp_path)
    assert len(str(error.value)) < 600


def test_classes_that_noise_outweighs_are_named():
    data = private_images(40)
    few = release_statistics(data, 0.5, 1e-5)
    assert few.too_small() == ["cat", "dog"]
    assert "too few for this epsilon" in few.describe()
    assert few.means().isfinite().all()


def test_features_of_other_images_are_refused():
    with pytest.raises(ValueError, match="3 x 8 x 8; those of the data set are 1 x 8 x 8"):
        release_statistics(private_images(), 1, 1e-5, RandomFeatures(3, 8))


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32), (1, 28), (3, 64)])
def test_features_are_unit_vectors_of_each_image_by_itself(channels, size):
    features = RandomFeatures(channels, size)
    images = torch.rand(4, channels, size, size) * 2 - 1
    together = features(images)
    assert together.shape == (4, features.width)
    assert torch.allclose(together.norm(dim=1), torch.ones(4), atol=1e-5)
    assert torch.allclose(together[2:3], features(images[2:3]), atol=1e-5)
    assert torch.equal(RandomFeatures(channels, size)(images), together)
    assert not torch.allclose(RandomFeatures(channels, size, seed=1)(images), together, atol=1e-3)


def test_gradients_are_finite_on_flat_images():
    images = torch.ones(2, 1, 8, 8, requires_grad=True)
    RandomFeatures(1, 8)(images)[:, ::7].sum().backward()
    assert images.grad.isfinite().all()


def test_matching_is_the_distance_of_running_means():
    rng = torch.Generator().manual_seed(0)
    targets = torch.randn(3, 5, generator=rng)
    matching, classes = MeanMatching(targets), torch.tensor([2, 0])
    means = torch.zeros(2, 5)
    for step in range(12):
        features = torch.randn(2, 4, 5, generator=rng, requires_grad=True)
        kept = min(0.9, step / (step + 1))
        means = kept * means + (1 - kept) * features.detach().mean(dim=1)
        gaps = means - targets[classes]
        loss = matching(features, classes)
        loss.backward()
        assert loss.item() == pytest.approx(float(gaps.square().sum(dim=1).mean()), abs=1e-5)
        # Each of the four images has a quarter of the gradient of its class, which has half of the loss.
        assert torch.allclose(features.grad, (2 * gaps / 4 / 2)[:, None].expand(2, 4, 5), atol=1e-5)
    assert matching.steps.flatten().tolist() == [12, 0, 12]
    assert not matching.means[1].any()


@pytest.mark.parametrize("images", [6, 40])
def test_differences_count_less_where_images_differ_anyway(images):
    rng = torch.Generator().manual_seed(0)
    features, labels = torch.randn(images, 5, generator=rng) * 0.03, torch.arange(images) % 2
    features[labels == 1] += 7
    matching = MeanMatching(torch.zeros(2, 5))
    gaps = torch.randn(2, 5, generator=rng)
    assert torch.equal(matching.weighted(gaps), gaps)
    matching.measure_spread(features, labels)
    within = torch.cat([features[labels == label] - features[labels == label].mean(dim=0) for label in range(2)])
    covariance = within.T @ within / images
    expected = gaps @ torch.linalg.inv(covariance / RIDGE + torch.eye(5))
    assert torch.allclose(matching.weighted(gaps), expected, atol=1e-4)
    assert (expected - gaps).abs().max() > 0.1


def test_images_that_do_not_differ_leave_all_directions_alike():
    matching, gaps = MeanMatching(torch.zeros(2, 5)), torch.ones(2, 5)
    matching.measure_spread(torch.ones(4, 5), torch.tensor([0, 1, 2, 3]))
    assert torch.allclose(matching.weighted(gaps), gaps)


def test_features_are_the_kernel():
    """Of two images that differ a little everywhere, and of two unlike ones."""
    features = RandomFeatures(1, 8)
    flat, brighter = torch.zeros(1, 8, 8), torch.full((1, 8, 8), 0.2)
    noise = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same, near, far = (float(features(flat[None]) @ features(x[None]).T) for x in (flat, brighter, noise))
    # Brighter by 0.1 of the range, with no edges: the pixels' kernels fall to exp(-0.347) and exp(-0.08).
    assert same == pytest.approx(1, abs=1e-5)
    assert near == pytest.approx((2 * 0.7066 + 0.9231) / 6 + 0.5, abs=0.03)
    # Of unlike images only the wider kernel of the pixels sees anything.
    unlike = (noise / 2).square().mean().item()
    pixels = math.exp(-unlike / 0.12**2 / 2) / 3 + math.exp(-unlike / 0.25**2 / 2) / 6
    assert far == pytest.approx(pixels, abs=0.05)
