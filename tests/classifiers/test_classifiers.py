"""The field's classifiers: sizes, what they are made of, that they learn, and their names."""

import numpy as np
import pytest
import torch
from torch import nn

from dim_hf.classifiers import CLASSIFIERS, build_classifier


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (1, 28), (3, 32), (3, 64), (1, 128)])
def test_every_size_and_channel(name, channels, size):
    logits = build_classifier(name, 7, channels, size).eval()(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)


def test_convnet3_is_the_one_of_the_field():
    network = build_classifier("convnet3", 10, 3, 32)
    # 3x3 convolutions 3-128-128-128 with biases, affine instance norms, 128*4*4 features to 10 classes.
    expected = (3 * 128 * 9 + 128) + 2 * (128 * 128 * 9 + 128) + 3 * 2 * 128 + (2048 * 10 + 10)
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.parametrize(("name", "convolutions"), [("resnet10", 12), ("resnet18", 20)])
def test_resnets_have_their_layers_and_widths(name, convolutions):
    network = build_classifier(name, 10, 3, 32)
    found = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(found) == convolutions
    assert sorted({module.out_channels for module in found}) == [32, 64, 128, 256]


@pytest.mark.parametrize("name", ["resnet10", "resnet18"])
def test_average_pooling_stands_in_for_strides_at_the_same_weights(name):
    strided, pooled = build_classifier(name, 10, 1, 28), build_classifier(f"{name}_ap", 10, 1, 28)
    assert {k: v.shape for k, v in strided.state_dict().items()} == {
        k: v.shape for k, v in pooled.state_dict().items()
    }
    assert any(m.stride == (2, 2) for m in strided.modules() if isinstance(m, nn.Conv2d))
    assert all(m.stride == (1, 1) for m in pooled.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_learns_and_every_weight_takes_part(name):
    torch.manual_seed(0)
    network = build_classifier(name, 2, 1, 16)
    images, labels = torch.randn(16, 1, 16, 16), torch.arange(16) % 2
    images[labels == 1, :, 8:] += 2
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in network.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_unknown_names_list_the_nearest_first():
    with pytest.raises(ValueError, match="classifier 'resnet_18' is unknown; valid are resnet18, .*convnet3"):
        build_classifier("resnet_18", 10)


def test_too_small():
    with pytest.raises(ValueError, match="`size` is 4; convnet3 takes images of 8 pixels or more"):
        build_classifier("convnet3", 10, 1, 4)


@pytest.mark.parametrize("name", [None, 3, b"convnet3", ["convnet3"], True, nn.Linear(1, 1)])
def test_names_that_are_not_strings(name):
    with pytest.raises(ValueError) as caught:
        build_classifier(name, 10)
    expected = f"classifier {name!r} is not a name; valid are convnet3, resnet10, resnet18, resnet10_ap, resnet18_ap, "
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("name", "valid"),
    [
        ("", "valid are .*convnet3.*timm/<model>"),
        (" ", "valid are .*convnet3.*timm/<model>"),
        ("resnet18:depth=2", "valid are .*resnet18, .* without options, timm/<model>"),
        ("timm", "the nearest are timm/"),
        ("timm/", "the nearest are timm/"),
        ("transformers", "such as ResNetConfig"),
    ],
)
def test_a_name_of_nothing(name, valid):
    with pytest.raises(ValueError, match=f"classifier '{name}'.*{valid}"):
        build_classifier(name, 10)


@pytest.mark.parametrize("name", ["convnet3", "resnet18", "timm/resnet18", "transformers/ResNetConfig"])
@pytest.mark.parametrize("argument", ["num_classes", "channels", "size"])
@pytest.mark.parametrize("value", [0, -1, 1.5, 8.0, "8", True, [8], float("nan")])
def test_invalid_numbers(name, argument, value):
    with pytest.raises(ValueError) as caught:
        build_classifier(name, **{"num_classes": 2, "channels": 1, "size": 8} | {argument: value})
    assert str(caught.value) == f"`{argument}` is {value!r}; valid is a whole number from 1."


def test_numbers_of_numpy():
    network = build_classifier("convnet3", np.int64(3), np.int64(2), np.int64(8))
    assert network(torch.zeros(1, 2, 8, 8)).shape == (1, 3)
