"""Data sets as users bring them, each with a small local one of the same schema."""

import io
import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dim_hf.data import ImageData, holdout, load_image_data, members_by_class, normalise, stratified_order
from dim_hf.data.decoding import to_pixels


def pixels(seed, size=8, channels=1):
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.fixture
def load(tmp_path):
    def load(*args, **kwargs):
        return load_image_data(*args, cache_dir=tmp_path / "cache", num_workers=1, **kwargs)

    return load


@pytest.fixture
def parquet(tmp_path):
    """Writes splits as the Hub holds them, data/{split}-00000-of-00001.parquet, and returns the folder."""

    def write(features, folder="dataset", **splits):
        for split, columns in splits.items():
            path = tmp_path / folder / "data" / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            Dataset.from_dict(columns, features=Features(features)).to_parquet(path)
        return str(tmp_path / folder)

    return write


# Columns, size, channels and splits of data sets on the Hub.
SCHEMAS = {
    "ylecun/mnist": ({"image": ImageFeature(), "label": ClassLabel(names=list("0123456789"))}, 28, 1),
    "zalando-datasets/fashion_mnist": ({"image": ImageFeature(), "label": ClassLabel(names=["Top", "Coat"])}, 28, 1),
    "uoft-cs/cifar10": ({"img": ImageFeature(), "label": ClassLabel(names=["airplane", "cat", "dog"])}, 32, 3),
    "ufldl-stanford/svhn": ({"image": ImageFeature(), "label": ClassLabel(names=list("0123456789"))}, 32, 3),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_of_the_hub(name, parquet, load):
    features, size, channels = SCHEMAS[name]
    image_column, label_column = features
    classes = features[label_column].num_classes
    arrays = [pixels(i, size, channels) for i in range(2 * classes)]
    columns = {image_column: [png(Image.fromarray(a)) for a in arrays], label_column: [*range(classes)] * 2}
    folder = parquet(features, train=columns, test=columns, extra=columns)
    data = load(folder, "test")
    assert data.images.shape == (2 * classes, channels, size, size) and data.images.dtype == torch.uint8
    assert data.class_names == tuple(features[label_column].names)
    assert data.labels.tolist() == [*range(classes)] * 2
    for image, array in zip(data.images, arrays, strict=True):
        assert np.array_equal(image.permute(1, 2, 0).squeeze(2).numpy(), array)


def test_a_configuration_is_asked_for_and_used(tmp_path, load):
    folder = tmp_path / "svhn"
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["0", "1"])})
    for config, count in (("cropped_digits", 2), ("full_numbers", 4)):
        (folder / config).mkdir(parents=True)
        columns = {"image": [png(Image.fromarray(pixels(i))) for i in range(count)], "label": [0, 1] * (count // 2)}
        Dataset.from_dict(columns, features=features).to_parquet(folder / config / "train.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: cropped_digits\n  data_files:\n  - split: train\n    path: cropped_digits/*\n"
        "- config_name: full_numbers\n  data_files:\n  - split: train\n    path: full_numbers/*\n---\n"
    )
    assert len(load(str(folder), dataset_config_name="cropped_digits")) == 2
    assert len(load(str(folder), dataset_config_name="full_numbers")) == 4
    with pytest.raises(ValueError, match="`dataset_config_name` None.*cropped_digits.*full_numbers"):
        load(str(folder))


def test_two_label_columns_must_be_chosen_from(parquet, load):
    features = {
        "img": ImageFeature(),
        "fine_label": ClassLabel(names=["apple", "bear", "whale"]),
        "coarse_label": ClassLabel(names=["plant", "animal"]),
    }
    images = [png(Image.fromarray(pixels(i, channels=3))) for i in range(3)]
    folder = parquet(features, train={"img": images, "fine_label": [0, 1, 2], "coarse_label": [0, 1, 1]})
    with pytest.raises(ValueError, match="`label_column` must be given, since several.*fine_label, coarse_label"):
        load(folder)
    assert load(folder, label_column="coarse_label").labels.tolist() == [0, 1, 1]
    assert load(folder, label_column="fine_label").class_names == ("apple", "bear", "whale")


@pytest.mark.parametrize(
    ("values", "dtype", "names", "labels"),
    [
        (["dog", "cat", "dog"], "string", ("cat", "dog"), [1, 0, 1]),
        ([10, 2, 10], "int64", ("2", "10"), [1, 0, 1]),
    ],
)
def test_labels_without_names(parquet, load, values, dtype, names, labels):
    images = [png(Image.fromarray(pixels(i))) for i in range(3)]
    data = load(parquet({"image": ImageFeature(), "kind": Value(dtype)}, train={"image": images, "kind": values}))
    assert data.class_names == names and data.labels.tolist() == labels


def test_a_test_split_takes_the_labels_of_train(parquet, load):
    images = [png(Image.fromarray(pixels(i))) for i in range(3)]
    features = {"image": ImageFeature(), "kind": Value("string")}
    folder = parquet(
        features,
        train={"image": images, "kind": ["a", "b", "c"]},
        test={"image": images, "kind": ["c", "b", "c"]},
        other={"image": images, "kind": ["c", "b", "z"]},
    )
    names = load(folder).class_names
    assert load(folder, "test", class_names=names).labels.tolist() == [2, 1, 2]
    with pytest.raises(ValueError, match="the unknown classes z; valid are a, b, c"):
        load(folder, "other", class_names=names)


def test_imagefolder_two_ways(tmp_path, load):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            for i in range(2):
                path = tmp_path / "pets" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels(i, channels=3)).save(path)
    first = load(str(tmp_path / "pets"))
    second = load("ignored", train_data_dir=str(tmp_path / "pets" / "train"))
    for data in (first, second):
        assert data.class_names == ("cat", "dog") and data.labels.tolist() == [0, 0, 1, 1]
    assert torch.equal(first.images, second.images)
    assert len(load(str(tmp_path / "pets"), "test")) == 4


def test_save_to_disk(tmp_path, load):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    part = Dataset.from_dict({"image": [Image.fromarray(pixels(i)) for i in range(2)], "label": [0, 1]}, features)
    DatasetDict(train=part, test=part).save_to_disk(tmp_path / "both")
    part.save_to_disk(tmp_path / "one")
    assert torch.equal(load(str(tmp_path / "both"), "test").images, load(str(tmp_path / "one")).images)
    part.with_format("torch", columns=["label"]).save_to_disk(tmp_path / "formatted")
    part.with_format("arrow").save_to_disk(tmp_path / "arrow")
    for name in ("formatted", "arrow"):
        assert load(tmp_path / name).fingerprint == load(tmp_path / "one").fingerprint
    with pytest.raises(ValueError, match="`revision` is 'main', but `dataset_name` .*both is not on the Hub"):
        load(tmp_path / "both", revision="main")
    with pytest.raises(ValueError, match="`dataset_config_name` is 'x', but `dataset_name` .*one is a folder of `sav"):
        load(tmp_path / "one", dataset_config_name="x")
    with pytest.raises(ValueError, match="no split 'validation'; valid are train, test"):
        load(str(tmp_path / "both"), "validation")


def test_a_single_parquet_file(parquet, load):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    folder = parquet(features, train={"image": [png(Image.fromarray(pixels(i))) for i in (0, 1)], "label": [0, 1]})
    file = f"{folder}/data/train-00000-of-00001.parquet"
    assert len(load(file)) == 2
    # The same images again would pass for a test split.
    with pytest.raises(ValueError, match="is a file and has no split 'test'; valid is train"):
        load(file, "test")
    with pytest.raises(ValueError, match="`dataset_config_name` is 'x', but `dataset_name` .*parquet is a file"):
        load(file, dataset_config_name="x")


GREY = pixels(3)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GREY), GREY[None]),
        (Image.fromarray(GREY.astype(np.uint16) * 257), GREY[None]),
        (Image.fromarray(GREY.astype(np.int32) * 257), GREY[None]),
        (Image.fromarray(GREY > 127), np.where(GREY > 127, 255, 0)[None]),
        (Image.fromarray(pixels(4, channels=3)), pixels(4, channels=3).transpose(2, 0, 1)),
        (Image.new("P", (8, 8), 0), np.zeros((3, 8, 8))),
        (Image.new("RGBA", (8, 8), (200, 0, 0, 0)), np.full((3, 8, 8), 255)),
        (Image.new("RGBA", (8, 8), (200, 10, 0, 255)), np.tile([[[200]], [[10]], [[0]]], (8, 8))),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), np.tile([[[255]], [[0]], [[0]]], (8, 8))),
    ],
)
def test_every_mode(image, expected):
    assert np.array_equal(to_pixels(image, 8, len(expected)), expected)


def test_grey_and_colour_together_are_colour(parquet, load):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    images = [png(Image.fromarray(GREY)), png(Image.fromarray(pixels(1, channels=3)))]
    data = load(parquet(features, train={"image": images, "label": [0, 1]}))
    assert data.channels == 3 and torch.equal(data.images[0, 0], data.images[0, 2])


@pytest.mark.parametrize("mode, channels", [("L", 1), ("RGB", 3)])
def test_the_mode_that_the_data_set_declares_decides(parquet, load, mode, channels):
    features = {"image": ImageFeature(mode=mode), "label": ClassLabel(names=["a", "b"])}
    grey, colour = Image.fromarray(GREY), Image.fromarray(GREY).convert("RGB")
    data = load(parquet(features, train={"image": [png(grey), png(colour)], "label": [0, 1]}))
    assert np.array_equal(data.images, np.broadcast_to(GREY, (2, channels, 8, 8)))


def test_mixed_sizes_need_a_resolution(parquet, load):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    wide = np.zeros((10, 20), np.uint8)
    wide[:, 5:15] = 255
    folder = parquet(
        features, train={"image": [png(Image.fromarray(wide)), png(Image.fromarray(GREY))], "label": [0, 1]}
    )
    with pytest.raises(ValueError, match=r"not all square and of one size \(8x8, 20x10\).*--resolution"):
        load(folder)
    # The middle is kept: of the wide image, its white square.
    assert (load(folder, resolution=10).images[0] == 255).all()
    assert load(folder, resolution=16, channels=3).images.shape == (2, 3, 16, 16)


def test_digits_are_stratified_and_disjoint(load):
    train, test = load("digits"), load("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.images.min() == 0 and train.images.max() == 255
    assert torch.bincount(test.labels).min() >= 35
    seen = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in seen for image in test.images) <= 1
    assert torch.equal(load("digits").images, train.images)
    with pytest.raises(ValueError, match="no split 'validation'; valid are train, test"):
        load("digits", "validation")


def test_a_folder_with_the_name_of_the_embedded_digits_is_mentioned(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load("digits", "test")) == 360
    folder = tmp_path / "digits"
    for label in "ab":
        (folder / label).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / label / "0.png")
    with pytest.warns(UserWarning, match=r"`dataset_name` digits is the embedded set; ./digits names the folder"):
        assert len(load("digits", "test")) == 360
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load("./digits").class_names == ("a", "b")


def test_the_cache_is_read_the_second_time(load, tmp_path):
    first = load("digits")
    (file,) = (tmp_path / "cache" / "images").glob("*.npy")
    written = file.stat().st_mtime_ns
    second = load("digits")
    assert file.stat().st_mtime_ns == written and torch.equal(first.images, second.images)
    assert first.fingerprint == second.fingerprint
    assert load("digits", resolution=16).fingerprint != first.fingerprint
    assert load("digits", max_samples=100).fingerprint != first.fingerprint
    assert len(list((tmp_path / "cache" / "images").glob("*.npy"))) == 3


def test_the_fingerprint_is_that_of_the_content_wherever_it_lies(parquet, load):
    images = [png(Image.fromarray(pixels(i))) for i in range(3)]

    def fingerprint(folder, labels=(0, 1, 0), images=images, names=("a", "b"), image="image"):
        columns = {image: ImageFeature(), "label": ClassLabel(names=list(names))}
        return load(parquet(columns, folder, train={image: images, "label": list(labels)})).fingerprint

    assert fingerprint("here") == fingerprint("there") == fingerprint("renamed", image="img")
    changed = png(Image.fromarray(pixels(2) ^ np.eye(8, dtype=np.uint8)))
    others = [
        fingerprint("labels", labels=(0, 1, 1)),
        fingerprint("names", names=("a", "c")),
        fingerprint("order", images=images[::-1]),
        fingerprint("pixel", images=[*images[:2], changed]),
    ]
    assert len({fingerprint("here"), *others}) == 5


def test_two_readers_at_once_both_end_up_right(load):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: load("digits", resolution=12), range(2))
    assert torch.equal(first.images, second.images) and first.images.float().std() > 10


def test_decoding_in_processes_gives_the_same(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    images = [Image.fromarray(pixels(i)) for i in range(4100)]
    Dataset.from_dict({"image": images, "label": [0, 1] * 2050}, features).save_to_disk(tmp_path / "set")
    one = load_image_data(str(tmp_path / "set"), cache_dir=tmp_path / "one", num_workers=1)
    two = load_image_data(str(tmp_path / "set"), cache_dir=tmp_path / "two", num_workers=2)
    assert torch.equal(one.images, two.images)


def test_a_corrupt_image_is_named_by_its_row(parquet, load, tmp_path):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    images = [png(Image.fromarray(GREY)), {"bytes": b"no image", "path": None}]
    folder = parquet(features, train={"image": images, "label": [0, 1]})
    with pytest.raises(ValueError, match="image in row 1 of split 'train' of .*dataset cannot be decoded"):
        load(folder)
    assert not list((tmp_path / "cache").rglob("*.npy"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset_name": "./nowhere"}, FileNotFoundError, "`dataset_name` ./nowhere is not a folder or file"),
        ({"dataset_name": "a/b/c"}, FileNotFoundError, "`dataset_name` a/b/c is not a folder or file"),
        ({"train_data_dir": "nowhere"}, FileNotFoundError, "`train_data_dir` nowhere is not a folder"),
        ({"resolution": 3}, ValueError, "`resolution` is 3"),
        ({"channels": 2}, ValueError, "`channels` is 2; valid are 1"),
        ({"image_column": "picture"}, ValueError, "`image_column` 'picture'.*valid are image"),
        ({"label_column": "kind"}, ValueError, "`label_column` 'kind'.*valid are label"),
        ({"max_samples": 5}, ValueError, "`max_samples` is 5, and there are 10 classes; valid are at least"),
    ],
)
def test_refusals(load, arguments, error, message):
    with pytest.raises(error, match=message):
        load(**{"dataset_name": "digits"} | arguments)


def test_unknown_split_lists_the_splits(parquet, load):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    columns = {"image": [png(Image.fromarray(pixels(i))) for i in (0, 1)], "label": [0, 1]}
    folder = parquet(features, train=columns, test=columns)
    with pytest.raises(ValueError, match="split 'training' of .*train.*test"):
        load(folder, "training")


def test_a_data_set_of_the_hub_without_a_network(load, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing is not a folder or file here, and cannot be found"):
        load("nobody/nothing")


def test_a_class_with_too_few_images_is_refused_before_any_is_decoded(parquet, load):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    broken = {"bytes": b"not an image", "path": None}
    folder = parquet(
        features,
        train={"image": [broken] * 5, "label": [0, 0, 1, 0, 0]},
        more={"image": [broken] * 5, "label": [0, 0, 1, 0, 1]},
    )
    with pytest.raises(ValueError, match=r"has too few images \(1\) of the class b; each class needs 2 or more"):
        load(folder, least_per_class=2)
    with pytest.raises(ValueError, match=r"\(1\) of the class a, b in a sample of 2 images; each"):
        load(folder, "more", least_per_class=2, max_samples=2)
    with pytest.raises(ValueError, match="cannot be decoded|not an image|cannot be read"):
        load(folder, "more", least_per_class=2)


def test_empty_classes_and_missing_labels(parquet, load):
    images = [png(Image.fromarray(pixels(i))) for i in range(3)]
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b", "c"])}
    folder = parquet(
        features,
        train={"image": images, "label": [0, 2, 2]},
        few={"image": images[:2], "label": [0, 1]},
        unlabelled={"image": images, "label": [0, 1, -1]},
    )
    with pytest.raises(ValueError, match="has no image of the class b; each class needs 1 or more"):
        load(folder)
    with pytest.raises(ValueError, match="has 2 images of 3 classes"):
        load(folder, "few")
    with pytest.raises(
        ValueError, match="`label_column` label of split 'unlabelled' of .*dataset has no label in row 2"
    ):
        load(folder, "unlabelled")


def test_splits_without_images_or_with_a_single_class(tmp_path, load):
    features = Features({"image": ImageFeature(), "kind": Value("string")})
    images = [Image.fromarray(pixels(i)) for i in range(2)]
    part = Dataset.from_dict({"image": images, "kind": ["a", "a"]}, features)
    DatasetDict(train=part, test=part.select([])).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved has a split without rows"):
        load(str(tmp_path / "saved"))
    for split, rows in (("train", part), ("test", part.select([]))):
        rows.to_parquet(tmp_path / "set" / f"{split}.parquet")
    with pytest.raises(ValueError, match="split 'test' of .*set cannot be read: .*no data"):
        load(str(tmp_path / "set"), "test")
    # Every classifier would be right, so that no generator would be better than another.
    with pytest.raises(ValueError, match="split 'train' of .*set has only the class a; valid are two or more"):
        load(str(tmp_path / "set"))
    assert load(str(tmp_path / "set"), class_names=("a", "b")).labels.tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [2, -2])
def test_labels_without_a_name_are_refused(parquet, load, wrong):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    images = [png(Image.fromarray(pixels(i))) for i in range(3)]
    path = Path(parquet(features, train={"image": images, "label": [0, 1, 1]})) / "data/train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, table.schema.field("label"), pa.array([0, 1, wrong], pa.int64())), path)
    with pytest.raises(ValueError, match=f"has the label {wrong} in row 2; valid are 0 to 1, its 2 named classes"):
        load(path)


def numbered(labels):
    labels = torch.tensor(labels)
    images = torch.arange(len(labels)).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return ImageData(images, labels, tuple(str(n) for n in range(int(labels.max()) + 1)), "numbered")


@settings(max_examples=50, deadline=None)
@given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_holdout_is_a_stratified_partition(counts, fraction, seed):
    data = numbered([label for label, count in enumerate(counts) for _ in range(count)])
    train, held_out = holdout(data, fraction, seed)
    rows = [set(part.images[:, 0, 0, 0].tolist()) for part in (train, held_out)]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == len(data)
    for label, count in enumerate(counts):
        size = int((held_out.labels == label).sum())
        assert 1 <= size <= count - 1
        assert abs(size - count * fraction) <= 1
    again = holdout(data, fraction, seed)[1]
    assert torch.equal(again.images, held_out.images) and again.fingerprint == held_out.fingerprint


def test_members_of_each_class_even_of_one_without_images():
    members = members_by_class(torch.tensor([2, 0, 2, 0, 4]), 6)
    assert [part.tolist() for part in members] == [[1, 3], [], [0, 2], [], [4], []]


def test_splits_stay_what_they_were():
    # Runs and checkpoints of earlier releases were validated on these images.
    labels = [2, 0, 1, 0, 2, 0, 1, 1, 0, 2]
    assert holdout(numbered(labels), 0.4, 3)[1].images[:, 0, 0, 0].tolist() == [0, 2, 5, 8]
    assert stratified_order(torch.tensor([*labels, 4]), 5).tolist() == [5, 2, 9, 10, 8, 0, 6, 3, 4, 7, 1]


def test_holdout_needs_two_images_of_a_class():
    with pytest.raises(ValueError, match="the class 1 has fewer than 2 images"):
        holdout(numbered([0, 0, 0, 1]))


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_every_prefix_of_the_stratified_order_is_in_proportion(counts, seed):
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    assert labels[order[: len(counts)]].unique().numel() == len(counts)
    half = labels[order[: max(len(counts), len(labels) // 2)]]
    for label, count in enumerate(counts):
        assert abs(int((half == label).sum()) - count * len(half) / len(labels)) <= 2 + len(counts) / 2


def test_batches_and_selection():
    data = numbered([0, 1, 0, 1]).to(torch.device("cpu"))
    images, labels = data.batch(torch.tensor([3, 0]))
    assert images[:, 0, 0, 0].tolist() == [3, 0] and labels.tolist() == [1, 0]
    part = data.select(torch.tensor([2, 1]))
    assert part.images[:, 0, 0, 0].tolist() == [2, 1] and part.fingerprint != data.fingerprint


def test_images_that_do_not_fit_into_memory_stay_on_disk(load, monkeypatch):
    data, cpu = load("digits"), torch.device("cpu")
    in_memory = [part.to(cpu) for part in holdout(data)]
    monkeypatch.setattr("dim_hf.data.image_data.SHARE_OF_MEMORY", 0.0)
    on_disk = [part.to(cpu) for part in holdout(data)]
    indices = torch.tensor([5, 0, 5, 99])
    for here, there in zip(in_memory, on_disk, strict=True):
        assert there.stored.data_ptr() == data.stored.data_ptr() != here.stored.data_ptr()
        assert len(here) == len(there) == len(here.stored) and here.fingerprint == there.fingerprint
        assert torch.equal(here.images, there.images)
        for part in (lambda part: part, lambda part: part.select(torch.tensor([3] * 2 + list(range(100, 0, -1))))):
            (images, labels), (others, other_labels) = (part(each).batch(indices) for each in (here, there))
            assert torch.equal(images, others) and torch.equal(labels, other_labels)


def test_a_set_that_is_saved_again_is_not_served_from_the_cache(tmp_path, load):
    # `datasets` gives both results the same fingerprint, since the function is the same.
    value = tmp_path / "value"
    part = datasets.Dataset.from_dict({"label": [0, 1]}, features=Features({"label": ClassLabel(names=["a", "b"])}))

    def paint(row):
        return {"image": Image.new("L", (8, 8), int(value.read_text()))}

    prints = set()
    for shade in (7, 200):
        value.write_text(str(shade))
        painted = part.map(paint, load_from_cache_file=False, keep_in_memory=True)
        prints.add(painted._fingerprint)
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        painted.save_to_disk(tmp_path / "set")
        assert (load(tmp_path / "set").images == shade).all()
    assert len(prints) == 1


def test_normalise():
    assert normalise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_the_cache_survives_a_changed_file(parquet, load):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])}
    first = parquet(features, train={"image": [png(Image.fromarray(pixels(i))) for i in (0, 1)], "label": [0, 1]})
    before = load(first)
    second = parquet(
        features, "other", train={"image": [png(Image.fromarray(pixels(i))) for i in (5, 6)], "label": [0, 1]}
    )
    after = load(second)
    assert not torch.equal(before.images, after.images) and before.fingerprint != after.fingerprint
    assert json.dumps(before.fingerprint)
