"""Deployment: reproducible, scored in eval(), crops that move and do nothing else."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from dim_hf.classifiers import build_classifier
from dim_hf.data import ImageData, load_image_data, normalise
from dim_hf.evaluation.judges import DeploymentRecipe, evaluate_accuracy, predict, random_crop, train_classifier
from dim_hf.models import DiMGenerator
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.real import RealStream


CPU = torch.device("cpu")
DROPOUT = "timm/resnet10t:channels=[8,8,16,16],stem_width=8,drop_rate=0.5"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return tuple(load_image_data("digits", split, cache_dir=cache) for split in ("train", "test"))


def train(data, seed=0, stream_seed=0, name="convnet3", epochs=12, ipc=10, **recipe):
    recipe = DeploymentRecipe(epochs=epochs, **recipe)
    stream = RealStream(data, ipc, stream_seed, recipe.batch_size)
    return train_classifier(stream, name, recipe, channels=1, size=8, seed=seed, device=CPU)


def weights(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_a_classifier_learns_the_digits(digits):
    train_data, test = digits
    assert evaluate_accuracy(train(train_data, name="resnet10", epochs=40), test) > 0.9


@pytest.mark.parametrize("name", ["convnet3", "resnet10"])
def test_a_classifier_that_diverged_is_not_scored(digits, name):
    with pytest.raises(
        FloatingPointError, match=rf"{name} \(seed 0\) became NaN .*; lower `learning_rate`, which is 1e\+20"
    ):
        train(digits[0], name=name, learning_rate=1e20)


@pytest.mark.parametrize("name", ["convnet3", DROPOUT])
def test_the_result_is_a_function_of_the_two_seeds(digits, name):
    first = weights(train(digits[0], name=name))
    torch.manual_seed(123)
    assert torch.equal(weights(train(digits[0], name=name)), first)
    assert not torch.equal(weights(train(digits[0], name=name, seed=1)), first)
    assert not torch.equal(weights(train(digits[0], name=name, stream_seed=1)), first)


@pytest.mark.parametrize("name", ["convnet3", DROPOUT])
def test_training_leaves_the_global_random_state_alone(digits, name):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    train(digits[0], name=name, epochs=1)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "name",
    [
        "timm/resnet10t:channels=[16,16,32,32],stem_width=8",
        "transformers/ResNetConfig:embedding_size=16,hidden_sizes=[16,32],depths=[1,1],layer_type=basic",
    ],
)
def test_models_of_other_libraries_learn_the_digits(digits, name):
    train_data, test = digits
    assert evaluate_accuracy(train(train_data, name=name, epochs=30, learning_rate=0.05), test) > 0.5


def test_batch_norm_networks_are_scored_with_their_own_statistics(digits):
    network = train(digits[0], name="resnet10", epochs=3).train()
    accuracy = evaluate_accuracy(network, digits[1], batch_size=512)
    assert not network.training
    assert accuracy == evaluate_accuracy(network, digits[1], batch_size=7)


def test_scoring_after_each_epoch_leaves_training_as_it_is(digits):
    curve = []

    def score(epoch, network):
        assert not network.training
        curve.append((epoch, evaluate_accuracy(network, digits[1])))

    def train_resnet(**arguments):
        stream = RealStream(digits[0], 10, 0, 64)
        recipe = DeploymentRecipe(epochs=4)
        return train_classifier(stream, "resnet10", recipe, channels=1, size=8, seed=0, device=CPU, **arguments)

    network = train_resnet(on_epoch=score)
    assert [epoch for epoch, _ in curve] == [0, 1, 2, 3] and curve[-1][1] == evaluate_accuracy(network, digits[1])
    assert all(map(torch.equal, network.state_dict().values(), train_resnet().state_dict().values()))


def test_a_single_step_is_a_step(digits):
    recipe = DeploymentRecipe(epochs=1)
    stream = RealStream(digits[0], 2, 0, recipe.batch_size)
    assert stream.steps_per_epoch == 1
    trained = train_classifier(stream, "convnet3", recipe, channels=1, size=8, seed=0, device=CPU)
    torch.manual_seed(0)
    initial = build_classifier("convnet3", 10, 1, 8).state_dict()
    moved = [(value - initial[name]).abs().max().item() for name, value in trained.state_dict().items()]
    assert max(moved) > 1e-4


def test_accuracy_by_hand():
    images = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).reshape(4, 1, 1, 1)
    data = ImageData(images, torch.tensor([0, 0, 1, 0]), ("dark", "bright"), "hand")

    class Brightness(nn.Module):
        def forward(self, x):
            return torch.cat([-x.flatten(1), x.flatten(1)], dim=1)

    assert evaluate_accuracy(Brightness(), data, batch_size=3) == 0.75


def test_crops_move_each_image_as_a_whole():
    size, count = 16, 300
    rows = torch.arange(size, dtype=torch.float32)[:, None].expand(size, size)
    images = torch.stack([rows, rows.T])[None].expand(count, 2, size, size)
    moved = random_crop(images, torch.Generator().manual_seed(0))
    steps = moved[:, :, 8, 8] - 8
    assert set(steps.flatten().tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    for image, (down, right) in zip(moved, steps, strict=True):
        assert torch.equal(image[0], (rows + down).clamp(0, size - 1))
        assert torch.equal(image[1], (rows.T + right).clamp(0, size - 1))


def test_bf16_trains_much_the_same_float32_network(digits):
    # A few steps of small batches: where bfloat16 is emulated each takes a second.
    torch.manual_seed(0)
    start = weights(build_classifier("convnet3", 10, 1, 8))
    full, half = (
        train(digits[0], epochs=6, ipc=2, batch_size=20, mixed_precision=precision) for precision in ("no", "bf16")
    )
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert not torch.equal(weights(full), weights(half))
    assert F.cosine_similarity(weights(full) - start, weights(half) - start, dim=0) > 0.9


def test_smoothed_labels_make_a_classifier_as_certain_as_they_are(digits):
    images = normalise(digits[0].batch(torch.arange(500))[0])
    certainty = {}
    for smoothing in (0.0, 0.5):
        classifier = train(digits[0], name="resnet10", epochs=40, label_smoothing=smoothing)
        certainty[smoothing] = classifier(images).softmax(dim=1).amax(dim=1).mean().item()
    # The largest probability of a label is 1 without, and 0.5 + 0.5 / 10 with smoothing by a half.
    assert certainty[0.0] > 0.75
    assert 0.35 < certainty[0.5] < 0.6


def test_what_was_trained_can_be_saved_and_goes_on_alike(digits, tmp_path):
    train_data, test = digits
    trained = train(train_data, name="resnet10", epochs=2)
    save_file(trained.state_dict(), tmp_path / "weights.safetensors")
    again = build_classifier("resnet10", 10, 1, 8).eval()
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    images = normalise(test.batch(torch.arange(20))[0])
    assert torch.equal(again(images), trained(images))


@pytest.mark.parametrize("channels", [1, 3])
def test_crops_have_ordinary_strides_so_that_convolutions_take_the_fast_path(channels):
    images = torch.rand(5, channels, 8, 8)
    assert random_crop(images, torch.Generator().manual_seed(0)).stride() == images.stride()


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_refusals(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"`{name}` is 0"):
        DeploymentRecipe(**arguments)


@pytest.mark.parametrize(
    ("name", "values", "valid"),
    [
        ("epochs", [0, -1, 1.5, None, "1", True, math.nan], "a whole number from 1"),
        ("batch_size", [0, -1, 64.0, None, "1", True, math.nan], "a whole number from 1"),
        ("learning_rate", [0, -0.1, None, "0.1", True, math.nan, math.inf], "a finite number above 0"),
        ("momentum", [-0.1, 1.0, None, "0.9", math.nan], "a finite number at least 0 and below 1"),
        ("weight_decay", [-1e-4, None, "0", math.nan, math.inf], "a finite number at least 0"),
        ("label_smoothing", [-0.1, 1.0, None, "0", math.nan], "a finite number at least 0 and below 1"),
    ],
)
def test_a_recipe_takes_only_numbers_that_train(name, values, valid):
    for value in values:
        with pytest.raises(ValueError) as caught:
            DeploymentRecipe(**{name: value})
        assert str(caught.value) == f"`{name}` is {value!r}; valid is {valid}."
    DeploymentRecipe(epochs=np.int64(1), learning_rate=np.float32(0.1), momentum=0, weight_decay=0, label_smoothing=0)


@pytest.mark.parametrize("precision", ["fp16", None, True, []])
def test_unknown_precision(precision):
    with pytest.raises(ValueError) as caught:
        DeploymentRecipe(mixed_precision=precision)
    assert str(caught.value) == f"`mixed_precision` is {precision!r}; valid are 'no', 'bf16'."


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ({"stream": None}, "`stream` is None; valid are a GeneratedStream, a RealStream and their like."),
        ({"stream": [1]}, "`stream` is [1]; valid are"),
        ({"recipe": None}, "`recipe` is None; valid is a DeploymentRecipe."),
        ({"recipe": {"epochs": 1}}, "`recipe` is {'epochs': 1}; valid"),
        ({"name": None}, "classifier None is not a name; valid are convnet3,"),
        ({"name": "convnet4"}, "classifier 'convnet4' is unknown; valid are convnet3,"),
        ({"channels": 0}, "`channels` is 0; valid is a whole number from 1."),
        ({"size": 8.0}, "`size` is 8.0; valid is a whole number from 1."),
        ({"seed": 1.5}, "`seed` is 1.5; valid is a whole number from 0 to 9,223,372,036,854,775,807."),
        ({"seed": -1}, "`seed` is -1; valid"),
        ({"seed": True}, "`seed` is True; valid"),
        ({"device": "gpu"}, "`device` is 'gpu', which cannot be used: "),
        ({"device": None}, "`device` is None, which cannot be used: "),
        ({"device": 1.5}, "`device` is 1.5, which cannot be used: "),
        ({"device": "cuda:99"}, "`device` is 'cuda:99', which cannot be used: "),
        ({"augment": None}, "`augment` is None; valid are True and False."),
        ({"progress": "yes"}, "`progress` is 'yes'; valid are True and False."),
        ({"on_epoch": 1}, "`on_epoch` is 1; valid is a function of an epoch and a classifier, or None."),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(argument, text):
    arguments = {
        "stream": GeneratedStream(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), 2, 0, 6), "name": "convnet3",
        "recipe": DeploymentRecipe(epochs=1), "channels": 1, "size": 8, "seed": 0, "device": "cpu",
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        train_classifier(**(arguments | argument))
    assert str(caught.value).startswith(text) and "\n" not in str(caught.value)


def test_a_device_may_be_a_word():
    generator = DiMGenerator(3, 8, 1, 6, 4, (8,), (0,))
    recipe = DeploymentRecipe(epochs=1)
    weights = [
        train_classifier(
            GeneratedStream(generator, 2, 0, 6), "convnet3", recipe, channels=1, size=8, seed=seed, device=device
        ).state_dict()
        for seed, device in ((0, "cpu"), (np.int64(0), torch.device("cpu")))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_cannot_be_scored_is_named(digits):
    data, classifier = digits[1], nn.Flatten()
    for score in (predict, evaluate_accuracy):
        with pytest.raises(ValueError, match="`classifier` is None; valid is a `torch.nn.Module`"):
            score(None, data)
        for wrong in (None, "digits", [1]):
            with pytest.raises(ValueError, match=r"`data` is .*; valid is an ImageData of one image or more"):
                score(classifier, wrong)
        for wrong in (0, -1, 1.5, None, True):
            with pytest.raises(ValueError, match=f"`batch_size` is {wrong}; valid is a whole number from 1"):
                score(classifier, data, wrong)
