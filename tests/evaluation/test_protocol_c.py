"""Protocol C: what makes it legacy, and that it is a function of its seed."""

import pytest
import torch
from torch import nn

from dim_hf.classifiers import build_classifier
from dim_hf.data import ImageData, load_image_data, normalise
from dim_hf.evaluation.judges import evaluate_accuracy
from dim_hf.evaluation.protocol_c import (
    LegacyRealStream,
    LegacyStream,
    batch_accuracy,
    change_colours,
    evaluated_epochs,
    legacy_figures,
)
from dim_hf.models import DiMGenerator


@pytest.fixture(scope="module")
def test_split(tmp_path_factory):
    return load_image_data("digits", "test", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return DiMGenerator(10, 8, 1, 4, 4, (8,), (0,)).eval()


@pytest.mark.parametrize(("ipc", "sizes"), [(2, [20]), (12, [120]), (13, [128]), (50, [128] * 3)])
def test_whole_batches_of_random_labels(generator, ipc, sizes):
    stream = LegacyStream(generator, ipc, seed=0)
    batches = list(stream.batches(0))
    assert [len(labels) for _, labels in batches] == sizes and stream.steps_per_epoch == len(sizes)
    labels = torch.cat([labels for _, labels in batches])
    assert labels.bincount(minlength=10).tolist() != [ipc] * 10
    again = torch.cat([images for images, _ in stream.batches(0)])
    assert torch.equal(again, torch.cat([images for images, _ in batches]))
    assert not torch.equal(again, torch.cat([images for images, _ in stream.batches(1)]))
    # PyTorch's generators use the last 32 bits of a seed.
    others = [next(LegacyStream(generator, ipc, seed).batches(0))[0] for seed in (256, 2**32 - 1)]
    assert not any(torch.equal(other, batches[0][0]) for other in others)


def test_as_many_images_as_classes_are_one_of_each(generator, test_split):
    generated, real = (make(of, 3, 0, 10) for make, of in ((LegacyStream, generator), (LegacyRealStream, test_split)))
    for stream in (generated, real):
        assert stream.steps_per_epoch == 3
        batches = [labels.tolist() for epoch in (0, 1) for _, labels in stream.batches(epoch)]
        assert [sorted(labels) for labels in batches] == [list(range(10))] * 6
    # The images of a batch are of their labels, and none comes twice before all of its class.
    seen = [image.numpy().tobytes() for epoch in range(10) for images, _ in real.batches(epoch) for image in images]
    assert len(set(seen)) == len(seen) == 300
    everything, of = test_split.batch(torch.arange(len(test_split)))
    known = {image.numpy().tobytes(): int(label) for image, label in zip(normalise(everything), of, strict=True)}
    images, labels = next(real.batches(4))
    assert [known[image.numpy().tobytes()] for image in images] == labels.tolist()


def test_real_images_of_other_batches_are_shuffled_without_regard_to_class(test_split):
    stream = LegacyRealStream(test_split, 10, 0, 64)
    batches = [batch for epoch in range(5) for batch in stream.batches(epoch)]
    # Of 100 images per epoch, those that fill a batch; 320 of 360 images, each once.
    assert [len(labels) for _, labels in batches] == [64] * 5
    assert len({image.numpy().tobytes() for images, _ in batches for image in images}) == 320
    assert any(labels.bincount(minlength=10).max() > 8 for _, labels in batches)
    again = list(LegacyRealStream(test_split, 10, 0, 64).batches(3))
    assert torch.equal(again[0][0], batches[3][0]) and torch.equal(again[0][1], batches[3][1])


def test_a_wrong_count_or_epoch_is_refused(generator):
    with pytest.raises(ValueError, match="`ipc` is 0; valid is a whole number from 1"):
        LegacyStream(generator, 0, seed=0)
    with pytest.raises(ValueError, match="`epoch` is -1"):
        LegacyStream(generator, 1, seed=0).batches(-1)
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        LegacyStream(generator, 1, seed=0, batch_size=0)


def test_colours_change_image_by_image():
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    changed = change_colours(images, torch.Generator().manual_seed(1))
    # The mean of an image moves by its brightness alone.
    brightness = changed.mean(dim=(1, 2, 3)) - images.mean(dim=(1, 2, 3))
    assert brightness.abs().max() <= 0.5 + 1e-5 and brightness.std() > 0.2
    # What differs between channels is scaled by saturation and contrast, 0 to 3 in all, the same for each pixel.
    before, after = (x - x.mean(dim=1, keepdim=True) for x in (images, changed))
    factors = (after / before).flatten(1).median(dim=1).values
    assert torch.allclose(after, before * factors[:, None, None, None], atol=1e-5)
    assert 0 <= factors.min() < 0.3 and 1.5 < factors.max() <= 3


def test_batch_norm_is_scored_with_the_statistics_of_the_batch():
    images = torch.tensor([200, 220, 240, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    data = ImageData(images, torch.tensor([0, 0, 1, 1]), ("dark", "bright"), "hand")
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1), nn.Linear(1, 2, bias=False))
    network[2].weight.data = torch.tensor([[-1.0], [1.0]])
    # Half of a batch is darker than its mean, but all of it brighter than 0.
    assert batch_accuracy(network.train(), data) == 1.0
    # What is scored leaves no trace in the running statistics.
    assert network.training and (network[1].running_mean, network[1].running_var) == (0, 1)
    assert network[1].num_batches_tracked == 0
    assert evaluate_accuracy(network, data) == 0.5


def test_there_are_five_evaluations_whatever_the_number_of_epochs():
    assert evaluated_epochs(1000) == {200, 400, 600, 800, 1000}
    for epochs in range(1, 40):
        evaluated = evaluated_epochs(epochs)
        assert len(evaluated) == min(5, epochs) and min(evaluated) >= 1 and max(evaluated) == epochs


def test_a_last_batch_of_one_image_joins_the_one_before(test_split):
    # At 8 pixels, batch norm of the last layers would have one value per channel.
    network = build_classifier("resnet10", 10, 1, 8).train()
    data = test_split.select(torch.arange(129))
    with torch.no_grad():
        right = network(normalise(data.images)).argmax(dim=1) == data.labels
    assert batch_accuracy(network, data) == right.sum().item() / 129


def test_a_classifier_that_diverged_is_not_scored(generator, test_split):
    for parameter in generator.parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(
        FloatingPointError, match=r"weights of convnet3 \(seed 0\) became NaN .* by epoch 1 of protocol C"
    ):
        legacy_figures(LegacyStream(generator, 2, 3), "convnet3", test_split, epochs=2, seed=0)


def test_the_best_evaluation_counts(generator, test_split):
    # Runs of up to five epochs are scored after each, and the shorter ones are the beginning of the longer ones.
    runs = [
        legacy_figures(LegacyStream(generator, 2, 3), "convnet3", test_split, epochs=epochs, seed=3)
        for epochs in range(1, 6)
    ]
    evaluations = runs[-1]["evaluations"]
    assert evaluations != sorted(evaluations)
    for epochs, run in enumerate(runs, 1):
        assert run["evaluations"] == evaluations[:epochs] and run["accuracy"] == max(evaluations[:epochs])
        # ConvNet-3 has no batch norm, so that its mode makes no difference; ResNet-10 has.
        assert run["last_in_eval"] == pytest.approx(evaluations[epochs - 1], abs=1 / len(test_split))
    resnet = legacy_figures(LegacyStream(generator, 5, 0), "resnet10", test_split, epochs=3, seed=0)
    assert resnet["last_in_eval"] != resnet["evaluations"][-1]


def test_without_colours_images_are_only_moved(test_split):
    plain, coloured = (
        legacy_figures(LegacyRealStream(test_split, 10, 0), "convnet3", test_split, epochs=15, seed=0, colours=colours)
        for colours in (False, True)
    )
    # Fifteen steps on real images learn more without changes of colour as strong as what tells digits apart.
    assert plain["accuracy"] > coloured["accuracy"]


def test_the_result_is_a_function_of_the_seed(generator, test_split):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    results = [
        legacy_figures(LegacyStream(generator, 5, seed), "resnet10", test_split, epochs=3, seed=seed)["accuracy"]
        for seed in (0, 0, 1)
    ]
    assert results[0] == results[1] != results[2] and all(0 <= result <= 1 for result in results)
    assert torch.equal(torch.random.get_rng_state(), before)
