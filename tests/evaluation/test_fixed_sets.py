"""Fixed sets: choices by hand, latents that are only moved, files that give the same images again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.classifiers import build_classifier, logits_and_features
from dim_hf.data import ImageData, load_image_data
from dim_hf.evaluation.fixed_sets import (
    choose_latents,
    fixed_set,
    herding,
    kmeans_medoids,
    load_latents,
    optimise_latents,
    save_latents,
    set_mean_loss,
)
from dim_hf.models import DiMGenerator
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.dim_dataset import to_pil
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.randomness import latents_at


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    pipeline = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)).eval(), {0: "cat", 1: "dog", 2: "cow"})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_classifier(seed=0):
    torch.manual_seed(seed)
    return build_classifier("convnet3", 3, 1, 8).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    digits = load_image_data("digits", cache_dir=tmp_path_factory.mktemp("cache"))
    first = digits.select(torch.nonzero(digits.labels < 3).squeeze(1))
    return ImageData(first.images, first.labels, ("0", "1", "2"), "three digits")


def test_herding_by_hand():
    # The mean is 4. Alone 4 is nearest; with 4 the mean of two is best with 3; then 10 brings it from 7 / 2 to 17 / 3,
    # 0 to 7 / 3, 3 again to 10 / 3: the nearest to 4 is the other 3.
    features = torch.tensor([[0.0], [3.0], [10.0], [4.0], [3.0]])
    assert herding(features, 1).tolist() == [3]
    assert herding(features, 2).tolist() == [3, 1]
    assert herding(features, 3).tolist() == [3, 1, 4]
    assert sorted(herding(features, 5).tolist()) == [0, 1, 2, 3, 4]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 1000))
def test_each_step_of_herding_is_the_best_one(count, seed):
    features = torch.randn(9, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    chosen = herding(features, count).tolist()
    assert len(set(chosen)) == count
    for i, best in enumerate(chosen):
        gaps = {
            row: (features[[*chosen[:i], row]].mean(0) - features.mean(0)).norm().item()
            for row in range(9)
            if row not in chosen[:i]
        }
        assert gaps[best] == pytest.approx(min(gaps.values()))


def test_medoids_by_hand():
    # Three far groups; the middle of each is nearest to its centre.
    features = torch.tensor([[0.0, 0], [1, 0], [2.5, 0], [50, 50], [52, 50], [53, 50], [99, 0], [90, 0], [89, 0]])
    assert kmeans_medoids(features, 3).tolist() == [1, 4, 7]


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("features", [torch.zeros(5, 2), torch.tensor([[0.0], [0], [0], [7], [7]])])
def test_medoids_differ_even_where_images_do_not(features):
    for count in (1, 3, 5):
        assert len(set(kmeans_medoids(features, count).tolist())) == count


def test_a_random_set_is_the_first_epoch_of_the_stream(pipeline):
    latents, labels = choose_latents(pipeline.generator, 4, "random", seed=7)
    ((images, stream_labels),) = GeneratedStream(pipeline, 4, 7, batch_size=100).batches(0)
    order = stream_labels.argsort(stable=True)
    assert torch.equal(labels, stream_labels[order])
    with torch.no_grad():
        made = pipeline.generator(latents, labels).sample
    assert torch.allclose(made.flatten(1).sort(0).values, images[order].flatten(1).sort(0).values, atol=1e-6)


@pytest.mark.parametrize("selection", ["kmeans", "herding"])
def test_what_is_chosen_is_the_choice_among_each_classs_candidates(pipeline, selection):
    teacher = make_classifier()
    latents, labels = choose_latents(pipeline.generator, 3, selection, seed=5, candidates=6, teacher=teacher)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for label in range(3):
        of_class = torch.full((18,), label)
        candidates = latents_at(5, 0, of_class, torch.arange(18), 6)
        with torch.no_grad():
            images = pipeline.generator(candidates, of_class).sample
            # What the last linear layer gets.
            features = logits_and_features(teacher, images)[1]["11"].flatten(1)
        chosen = kmeans_medoids(features, 3, 5) if selection == "kmeans" else herding(features, 3)
        assert torch.equal(latents[labels == label], candidates[chosen])


def test_a_choice_needs_a_teacher(pipeline):
    with pytest.raises(ValueError, match="`selection` is 'herding', which takes a `teacher`"):
        choose_latents(pipeline.generator, 1, "herding", seed=0)


def test_the_loss_of_a_set_is_the_distance_of_its_class_means():
    real = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 3.0]])  # means (3, 0) and (0, 2)
    of_set = torch.tensor([[2.0, 1.0], [0.0, 0.0]])  # one image per class: 1 + 1 and 4 away
    assert set_mean_loss(real, of_set, 2).item() == pytest.approx((2 + 4) / (9 + 4))
    # Images on both sides of a class's mean have no distance to it, however far apart they are.
    apart = torch.tensor([[-7.0, 5.0], [13.0, -5.0], [9.0, 2.0], [-9.0, 2.0]])
    assert set_mean_loss(real, apart, 2).item() == 0


# At 20 images per class a step takes a part of them, at 7 images per step it takes two of three classes.
@pytest.mark.parametrize(("ipc", "per_step"), [(1, 256), (3, 256), (20, 256), (3, 7)])
def test_optimised_latents_come_nearer_to_real_images_and_nothing_else_changes(
    pipeline, real, ipc, per_step, monkeypatch
):
    monkeypatch.setattr("dim_hf.evaluation.fixed_sets.PER_STEP", per_step)
    generator, network = pipeline.generator, make_classifier()
    latents, labels = choose_latents(generator, ipc, "random", seed=0)
    before = {name: value.clone() for name, value in generator.state_dict().items()}

    def gap(latents):
        """Between the mean features of each class, over their scale, in all layers."""
        total = 0.0
        for label in range(3):
            with torch.no_grad():
                fake = generator(latents[labels == label], labels[labels == label]).sample
            images = real.images[real.labels == label] / 127.5 - 1
            real_layers, fake_layers = (logits_and_features(network, each)[1] for each in (images, fake))
            for name, features in real_layers.items():
                away = fake_layers[name].mean(0) - features.mean(0)
                total += (away.square().sum() / features.flatten(1).square().sum(1).mean()).item()
        return total

    original = latents.clone()
    moved = optimise_latents(generator, latents, labels, real, [network], 60, seed=0, learning_rate=0.05)
    # A loss that estimates the generator's mean instead of the set's leaves 0.9 of it.
    assert gap(moved) < 0.8 * gap(latents)
    assert (moved != latents).any(dim=1).all()
    assert torch.equal(latents, original) and moved.shape == latents.shape and not moved.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())
    assert all(parameter.grad is None for parameter in generator.parameters())
    again = optimise_latents(generator, latents, labels, real, [network], 60, seed=0, learning_rate=0.05)
    assert torch.equal(again, moved)
    assert torch.equal(optimise_latents(generator, latents, labels, real, [network], 0, seed=0), latents)


def test_a_file_gives_the_same_images_again(pipeline, tmp_path):
    latents, labels = choose_latents(pipeline.generator, 2, "random", seed=1)
    save_latents(tmp_path / "new" / "set.safetensors", latents, labels, {"ipc": 2})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.safetensors"]
    found, found_labels = load_latents(tmp_path / "new" / "set.safetensors")
    assert torch.equal(found, latents) and torch.equal(found_labels, labels)
    data = fixed_set(pipeline, found, found_labels)
    shown = pipeline(class_labels=found_labels, latents=found).images
    assert [image.tobytes() for image in shown] == [image.numpy().tobytes() for image in data.images]
    with torch.no_grad():
        made = to_pil(pipeline.generator(latents, labels).sample)
    assert [image.tobytes() for image in made] == [image.tobytes() for image in shown]
    assert data.class_names == ("cat", "dog", "cow") and torch.equal(data.labels, labels)
    assert data.fingerprint != fixed_set(pipeline, found + 1, found_labels).fingerprint


@pytest.mark.parametrize(
    ("ipc", "selection", "options", "message"),
    [
        (1, "k-means", {}, "`selection` is 'k-means'; valid are 'random', 'kmeans', 'herding'"),
        (1, None, {}, "`selection` is None"),
        (0, "random", {}, "`ipc` is 0"),
        (1, "herding", {"candidates": 0}, "`candidates` is 0"),
        (1, "herding", {}, "`selection` is 'herding', which takes a `teacher`"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(pipeline, ipc, selection, options, message):
    with pytest.raises(ValueError, match=message):
        choose_latents(pipeline.generator, ipc, selection, seed=0, **options)
