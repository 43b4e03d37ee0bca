"""Bad input to streams: one message before any work, with the argument, its value and the valid values."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dim_hf import DiMDataset, DiMDiscriminator, DiMGenerator, DiMLabeler, DiMPipeline
from dim_hf.data import ImageData
from dim_hf.streams.generated import GeneratedStream
from dim_hf.streams.randomness import ShuffledOrder
from dim_hf.streams.real import RealStream, WholeSetStream


HUGE = 10**30
INVALID_INTEGERS = [None, "1", 1.0, 1.5, True, [1], {1}, math.nan, math.inf, np.float64(1), torch.tensor(1), HUGE, -1]
GIVERS = [DiMDataset, lambda *args, **options: GeneratedStream(*args, **{"batch_size": 8} | options)]


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    return DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), ["T-shirt", "Coat", "Bag"])


@pytest.fixture(scope="module")
def data():
    return ImageData(torch.zeros(6, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2] * 2), ("a", "b", "c"), "x")


def message(function, *args, error: type[Exception] = ValueError, **kwargs) -> str:
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and len(text) <= 600, text
    return text


INVALID_SOURCES = [
    None,
    "out/x",
    Path("out/x"),
    3,
    DiMPipeline,
    DiMDiscriminator(3, 8, 1),
    DiMLabeler(3, 8, 1, width=4),
    [],
]


@pytest.mark.parametrize("give", GIVERS)
@pytest.mark.parametrize("source", INVALID_SOURCES, ids=lambda value: repr(value)[:20])
def test_source(give, source):
    text = message(give, source, ipc=1, seed=0)
    assert text.startswith(f"`source` is {' '.join(repr(source).split())[:60]}")
    assert "; valid is a DiMPipeline or a DiMGenerator. `DiMPipeline.from_pretrained` loads a saved" in text


@pytest.mark.parametrize("give", GIVERS)
@pytest.mark.parametrize("name", ["ipc", "seed", "max_attempts"])
@pytest.mark.parametrize("value", INVALID_INTEGERS, ids=repr)
def test_integers(pipe, give, name, value):
    if name == "max_attempts" and value is HUGE:
        value = 0
    text = message(give, pipe, **{"ipc": 1, "seed": 0} | {name: value})
    least = 0 if name == "seed" else 1
    assert text.startswith(f"`{name}` is {value!r}; valid is a whole number from {least}")


@pytest.mark.parametrize("value", [*INVALID_INTEGERS[:-2], 0, -1], ids=repr)
@pytest.mark.parametrize("name", ["batch_size", "block_size"])
def test_sizes(pipe, name, value):
    if (name, value) == ("block_size", None):
        value = 0
    expected = f"`{name}` is {value!r}; valid is a whole number from 1."
    assert message(GeneratedStream, pipe, 1, 0, **{"batch_size": 8} | {name: value}) == expected


@pytest.mark.parametrize("give", GIVERS)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ipc": 0}, "`ipc` is 0; valid is a whole number from 1 to 4,294,967,295."),
        ({"ipc": [1, 2, 3]}, "`ipc` is [1, 2, 3]; valid"),
        ({"ipc": {"Coat": -1}}, "`ipc['Coat']` is -1; valid is a whole number from 0 to 4,294,967,295."),
        ({"ipc": {"Coat": 1.5}}, "`ipc['Coat']` is 1.5; valid"),
        ({"ipc": {"Coat": None}}, "`ipc['Coat']` is None; valid"),
        (
            {"ipc": {"x": 1}},
            "`ipc` is or holds 'x'; valid are the labels 0 to 2 and the names 'T-shirt', 'Coat', 'Bag'",
        ),
        ({"ipc": {3: 1}}, "`ipc` is or holds 3; valid"),
        ({"ipc": {True: 1}}, "`ipc` is or holds True; valid"),
        ({"ipc": {None: 1}}, "`ipc` is or holds None; valid"),
        ({"ipc": {(0, 1): 1}}, "`ipc` is or holds (0, 1); valid"),
        ({"ipc": {"Coat": 0}}, "`ipc` is {'Coat': 0}, which asks for no images at all; valid is at least one"),
        ({"ipc": {}}, "`ipc` is {}, which asks for no images at all; valid is at least one number above 0."),
        ({"ipc": {"Coat": 2, 0: 1, 1: 2}}, "`ipc` has 'Coat' and 1, which are one class; valid is one of them."),
        (
            {"seed": 2**63},
            "`seed` is 9223372036854775808; valid is a whole number from 0 to 9,223,372,036,854,775,807.",
        ),
        ({"noise_scale": 0.0}, "`noise_scale` is 0.0; valid is a finite number above 0."),
        ({"noise_scale": -1}, "`noise_scale` is -1; valid"),
        ({"noise_scale": math.nan}, "`noise_scale` is nan; valid"),
        ({"noise_scale": math.inf}, "`noise_scale` is inf; valid"),
        ({"noise_scale": "1"}, "`noise_scale` is '1'; valid"),
        ({"noise_scale": None}, "`noise_scale` is None; valid"),
        ({"noise_scale": True}, "`noise_scale` is True; valid"),
        ({"soft_labels": "no"}, "`soft_labels` is 'no'; valid are True and False."),
        ({"soft_labels": 1}, "`soft_labels` is 1; valid are True and False."),
        ({"soft_labels": True}, "`soft_labels` is True, which needs a teacher, but the pipeline has no `labeler`"),
        ({"max_attempts": 3}, "`max_attempts` is 3, which needs a teacher"),
        ({"choose_from": 4}, "`choose_from` is 4, which needs a teacher"),
        ({"choose_from": 0}, "`choose_from` is 0; valid is a whole number from 1 to 100."),
        ({"choose_from": 101}, "`choose_from` is 101; valid"),
        ({"choose_from": 2.0}, "`choose_from` is 2.0; valid"),
        ({"max_attempts": 3, "min_confidence": 1.0}, "`min_confidence` is 1.0; valid is a finite number"),
        ({"min_confidence": 0.5}, "`min_confidence` is 0.5, but with `max_attempts` 1 no image is drawn again"),
    ],
)
def test_options(pipe, give, options, text):
    assert message(give, pipe, **{"ipc": 2, "seed": 0} | options).startswith(text)


@pytest.mark.parametrize("transform", ["resize", 3, [], {}])
def test_transform(pipe, transform):
    expected = f"`transform` is {transform!r}; valid is a function of a PIL image, or None."
    assert message(DiMDataset, pipe, 1, transform=transform) == expected


def test_a_stream_of_batches_does_not_take_a_transform(pipe):
    with pytest.raises(TypeError, match="transform"):
        GeneratedStream(pipe, 1, 0, 8, transform=lambda image: image)


# Items, epochs and positions


@pytest.mark.parametrize(
    "position",
    [slice(0, 2), [0, 1], (0,), None, "0", 1.0, math.nan, np.array([0, 1]), np.float64(1), torch.tensor([0, 1])],
    ids=repr,
)
def test_positions(pipe, position):
    dataset = DiMDataset(pipe, 2)
    for ask in (dataset.__getitem__, lambda value: dataset.__getitems__([0, value])):
        text = message(ask, position)
        assert text.startswith(
            f"position {position!r} is not an integer; valid are -6 to 5, one at a time. Use a `Data"
        )


@pytest.mark.parametrize("position", [6, -7, 10**9, 10**30, np.int64(6), torch.tensor(-7)])
def test_positions_outside(pipe, position):
    expected = f"position {int(position)} is out of range; the data set has 6 images."
    assert message(DiMDataset(pipe, 2).__getitem__, position, error=IndexError) == expected


@pytest.mark.parametrize("epoch", [*INVALID_INTEGERS, 2**32], ids=repr)
def test_epoch(pipe, data, epoch):
    dataset = DiMDataset(pipe, 2)
    expected = f"`epoch` is {epoch!r}; valid is a whole number from 0 to 4,294,967,295."
    streams = (GeneratedStream(pipe, 2, 0, 8), RealStream(data, 1, 0, 8), WholeSetStream(data, 1, 0, 8))
    for ask in (dataset.set_epoch, *(stream.batches for stream in streams)):
        assert message(ask, epoch) == expected
    assert dataset.epoch == 0


def test_positions_of_a_batch(pipe):
    dataset = DiMDataset(pipe, 2)
    for positions in (None, 0, [0, 1], torch.tensor(0), torch.zeros(2), torch.zeros(1, 1, dtype=torch.int64)):
        text = message(dataset.make, 0, positions)
        assert text == f"`positions` is {positions!r}; valid is an int64 tensor of one dimension."
    for position in (-1, 6):
        text = message(dataset.make, 0, torch.tensor([0, position]))
        assert text == f"`positions` holds {position}; valid are 0 to 5."
    assert message(dataset.make, 1.5, torch.tensor([0])).startswith("`epoch` is 1.5; valid")


@pytest.mark.parametrize("name", ["num_shards", "block_size"])
@pytest.mark.parametrize("value", [*INVALID_INTEGERS[:-2], 0, -1], ids=repr)
def test_an_endless_stream(pipe, name, value):
    text = message(DiMDataset(pipe, 2).to_iterable_dataset, **{name: value})
    assert text.startswith(f"`{name}` is {value!r}; valid is a whole number from 1")


def test_an_endless_stream_of_few_or_too_many_images(pipe):
    expected = "`num_shards` is 7; valid is a whole number from 1 to 6."
    assert message(DiMDataset(pipe, 2).to_iterable_dataset, num_shards=7) == expected
    text = message(DiMDataset(pipe, 2**32 - 1).to_iterable_dataset)
    assert text.startswith("`ipc` asks for 12,884,901,885 images in an epoch; valid are at most 100,000,000")
    assert message(GeneratedStream, pipe, 2**32 - 1, 0, 8) == text
    assert message(DiMDataset(pipe, 2).to_iterable_dataset, features={}).startswith("`features` is {}; valid")


# Real images


@pytest.mark.parametrize("stream", [RealStream, WholeSetStream])
def test_real_images(data, stream):
    for value in (None, "digits", [1], torch.zeros(3, 1, 8, 8)):
        assert "; valid is an ImageData, as `load_image_data` returns it." in message(stream, value, 1, 0, 8)
    for name in ("ipc", "seed", "batch_size"):
        for value in (None, "1", 1.5, True, -1):
            text = message(stream, **{"data": data, "ipc": 1, "seed": 0, "batch_size": 8} | {name: value})
            assert text.startswith(f"`{name}` is {value!r}; valid is a whole number from ")
    empty = data.select(torch.tensor([], dtype=torch.int64))
    assert message(stream, empty, 1, 0, 8) == "`data` holds no images; valid is at least one."


def test_classes_without_images(data):
    expected = "`data` holds no image of the class b, c; valid is at least one of each."
    assert message(RealStream, data.select(torch.tensor([0, 3])), 1, 0, 8) == expected
    many = dataclasses.replace(data, class_names=tuple(f"class number {label}" * 9 for label in range(5000)))
    assert "and 4,989 more" in message(RealStream, many, 1, 0, 8)


@pytest.mark.parametrize("length", [0, -1, 1.5, None, True])
def test_an_empty_order_is_refused(length):
    text = message(ShuffledOrder, length, 0, torch.device("cpu"))
    assert text == f"`length` is {length!r}; valid is a whole number from 1."
