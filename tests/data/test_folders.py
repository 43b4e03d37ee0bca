"""Folders of images: every image counts under the class of its folder, or there is one message."""

import json
import os
import shutil
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dim_hf.data import load_image_data
from dim_hf.data.folders import read_folder, read_image_folder, refuse_data_folder
from dim_hf.files import lock_output_dir


def png(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")


def tree(root, *folders, images=4):
    """Folders with images each, as they are made by people."""
    for folder in folders:
        for i in range(images):
            png(root / folder / f"{i}.png", seed=i)


def counts(root, split="train", label_column=None):
    """The number of images of each class, from the folder only, without decoding."""
    dataset, _ = read_image_folder(read_folder(Path(root), "dataset_name"), split, label_column)
    column = dataset.features["label"]
    return {name: dataset["label"].count(label) for label, name in enumerate(column.names)}


def refused(root, split="train", label_column=None):
    with pytest.raises((ValueError, OSError)) as caught:
        read_image_folder(read_folder(Path(root), "dataset_name"), split, label_column)
    message = str(caught.value)
    assert len(message) <= 600 and "\n" not in message and "`" in message
    return message


def test_a_word_in_the_name_of_a_file(tmp_path):
    tree(tmp_path, "cat", "dog")
    for name in ("cat", "dog"):
        (tmp_path / name / "0.png").rename(tmp_path / name / "train-0.png")
    assert counts(tmp_path) == {"cat": 4, "dog": 4}


@pytest.mark.parametrize(
    ("folders", "split", "expected"),
    [
        (
            ("freight train", "passenger train", "car", "bus"),
            "train",
            ("bus", "car", "freight train", "passenger train"),
        ),
        (("car", "train", "bus"), "train", ("bus", "car", "train")),
        (("train/car", "train/train", "test/car", "test/train"), "train", ("car", "train")),
        (("train/car", "train/train", "test/car", "test/train"), "test", ("car", "train")),
        (("train/car", "train/test", "test/car", "test/test"), "train", ("car", "test")),
        (("train/car", "train/test", "test/car", "test/test"), "test", ("car", "test")),
        (("TRAIN/a", "TRAIN/b", "Val/a", "Val/b"), "validation", ("a", "b")),
        (("train/a", "train/b", "valid/a", "valid/c"), "VAL", ("a", "c")),
        (("cat/test/deep/er", "cat/train", "dog/validation"), "train", ("cat", "dog")),
        (("b", "B", "a[12]", "a1", "a*", "?", "é"), "train", ("?", "B", "a*", "a1", "a[12]", "b", "é")),
        (("training", "holdout", "cat"), "train", ("cat", "holdout", "training")),
        (("trainA", "trainB", "testA", "testB"), "train", ("testA", "testB", "trainA", "trainB")),
        (("freight train/day", "freight train/night", "bus/day"), "train", ("bus", "freight train")),
        (("a b", "a"), "train", ("a", "a b")),
    ],
)
def test_layouts(tmp_path, folders, split, expected):
    tree(tmp_path, *folders)
    found = counts(tmp_path, split)
    assert tuple(found) == expected
    below = [tuple(Path(folder).parts) for folder in folders]
    splits = {"train", "test", "valid", "val"} & {parts[0].lower() for parts in below if len(parts) > 1}
    assert sum(found.values()) == (4 * len(expected) if splits else 4 * len(folders))


def test_unicode_twins_are_two_classes(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    tree(tmp_path, composed, images=1)
    tree(tmp_path, decomposed, images=2)
    assert counts(tmp_path) == {decomposed: 2, composed: 1}


def test_links_are_followed(tmp_path):
    tree(tmp_path / "elsewhere", "wolf")
    tree(tmp_path / "pets", "cat")
    (tmp_path / "pets" / "wolf").symlink_to(tmp_path / "elsewhere" / "wolf")
    (tmp_path / "pets" / "cat" / "linked.png").symlink_to(tmp_path / "elsewhere" / "wolf" / "0.png")
    (tmp_path / "shortcut").symlink_to(tmp_path / "pets")
    assert counts(tmp_path / "pets") == counts(tmp_path / "shortcut") == {"cat": 5, "wolf": 4}


@pytest.mark.parametrize("name", ["cat/gone.png", "gone", "cat/sub"])
def test_a_broken_link_is_named(tmp_path, name):
    tree(tmp_path, "cat", "dog")
    (tmp_path / name).symlink_to("nowhere")
    assert f"link {tmp_path / name} leads to nothing" in refused(tmp_path)


@pytest.mark.parametrize(("name", "target"), [("cat/loop", "../cat"), ("cat/loop", ".."), ("loop", "loop")])
def test_a_link_in_a_circle_is_named(tmp_path, name, target):
    tree(tmp_path, "cat", "dog")
    (tmp_path / name).symlink_to(target)
    assert f"the link {tmp_path / name} leads " in refused(tmp_path)


def test_formats_by_suffix_in_any_case(tmp_path):
    for name, suffixes in (("a", ".JPG .jpeg .Jfif .webp .GIF .MPO"), ("b", ".bmp .TIFF .pgm .tga")):
        for suffix in suffixes.split():
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("L", (8, 8)).save(tmp_path / name / f"image{suffix}")
    assert counts(tmp_path) == {"a": 6, "b": 4}
    data = load_image_data(tmp_path, cache_dir=tmp_path / ".cache", num_workers=0)
    assert data.class_names == ("a", "b") and data.labels.tolist() == [0] * 6 + [1] * 4


def test_skipped_files_are_counted_and_named(tmp_path):
    tree(tmp_path, "cat", "dog", ".git/objects", "__MACOSX/cat", "cat/.thumbnails")
    for name in ("cat/Thumbs.db", "dog/.DS_Store", "README.md", f"{tmp_path.name}.py", "cat/scan.pdf"):
        (tmp_path / name).write_text("---\n[broken\n---")
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    dataset, skipped = read_image_folder(read_folder(tmp_path, "dataset_name"), "train", None)
    assert len(dataset) == 8 and skipped.startswith("9 that are hidden or not images (.git, README.md, __MACOSX, cat/")
    data = load_image_data(tmp_path, cache_dir=tmp_path / ".cache", num_workers=0)
    assert len(data) == 8
    assert data.describe().startswith(
        f"split 'train' of {tmp_path}: 8 images of 2 classes (cat 4, dog 4), 8x8, grey; skipped 9 that are hidden"
    )


def test_rows_are_sorted_by_class_and_path(tmp_path):
    for name in ("a b/0.png", "a/z.png", "a/sub/0.png", "a/B.png"):
        png(tmp_path / name)
    dataset, _ = read_image_folder(read_folder(tmp_path, "dataset_name"), "train", None)
    paths = [str(Path(value["path"]).relative_to(tmp_path)) for value in dataset.data["image"].to_pylist()]
    assert paths == ["a/B.png", "a/sub/0.png", "a/z.png", "a b/0.png"]


@pytest.mark.parametrize(
    ("folders", "split", "words"),
    [
        ((".",), "train", ["4 images are in no class (0.png, 1.png and 2 more)", "found in"]),
        (("cat", "dog", "."), "train", ["4 images are in no class", "2 folders with images (cat, dog)"]),
        (("cat",), "train", ["there is only one class (cat)"]),
        (("archive/cat", "archive/dog"), "train", ["only one class (archive)", "give {root}/archive"]),
        (("a/b/train/cat", "a/b/train/dog", "a/b/test/cat"), "train", ["give {root}/a/b"]),
        (
            ("train/cat", "train/dog", "test/."),
            "train",
            ["images in no split (test) lie beside train", "give {root}/train"],
        ),
        (("train/cat", "train/dog", "car"), "train", ["images in no split (car)"]),
        (("train/cat", "train/dog", "."), "train", ["images in no split (0.png, 1.png and 2 more)"]),
        (("train/cat", "train/dog", "train"), "train", ["4 images are in no class (train/0.png"]),
        (
            ("train/cat", "train/dog", "test/cat", "test/dog"),
            "validation",
            ["no split 'validation'; valid are test, train"],
        ),
        (("cat", "dog"), "test", ["no split 'test'; valid is train"]),
        (("Train/a", "Train/b", "train/a", "train/b"), "train", ["Train and train are the same split"]),
        (("val/a", "val/b", "valid/a", "valid/b"), "val", ["val and valid are the same split"]),
        (("train", "test"), "train", ["test, train would be classes, but are named like splits"]),
        (("Training/cat", "Training/dog", "Testing/cat", "Testing/dog"), "train", ["Testing, Training would be"]),
        (("seg_train/seg_train/cat", "seg_test/seg_test/cat"), "train", ["are named like splits"]),
        (("seg_train/x/cat", "seg_test/x/cat", "seg_pred/x"), "train", ["seg_test, seg_train would be"]),
        (("training_set/cat", "test_set/cat", "single_prediction"), "train", ["test_set, training_set would be"]),
        (("TrainSet/cat", "TrainSet/dog", "TestSet/cat", "TestSet/dog"), "train", ["TestSet, TrainSet would be"]),
        (("training/cat", "training/dog", "holdout/cat", "holdout/dog"), "train", ["holdout, training would be"]),
        (
            ("Training/cat", "Training/dog", "Test/cat", "Test/dog"),
            "train",
            ["beside Test; move them, or rename Training"],
        ),
        (("train/cat", "train/dog", "test/cat", "extra"), "train", ["(extra) lie", "or give {root}/train"]),
        (("test/cat", "test/dog", "extra"), "test", ["images in no split (extra) lie beside test; move them."]),
        ((), "train", ["holds no image that Pillow reads", "found in", "no image"]),
    ],
)
def test_refused_layouts(tmp_path, folders, split, words):
    tree(tmp_path, *folders)
    message = refused(tmp_path, split)
    for text in words:
        assert text.format(root=tmp_path) in message
    assert "Valid is one folder per class" in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bird/notes.txt", "1 folders hold no image that Pillow reads (bird)"),
        ("bird/scan.heic", "1 folders hold no image that Pillow reads (bird)"),
        ("bird.zip", "archives are not read; unpack bird.zip"),
        ("cat/more.tar.GZ", "archives are not read; unpack cat/more.tar.GZ"),
    ],
)
def test_a_class_that_would_get_lost_is_refused(tmp_path, name, words):
    tree(tmp_path, "cat", "dog")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    assert words in refused(tmp_path)


def test_thousands_of_empty_classes_make_a_short_message(tmp_path):
    tree(tmp_path, "cat", "dog", images=1)
    for i in range(1000):
        (tmp_path / f"{'long name ' * 20}{i}").mkdir()
    assert "1,000 folders hold no image" in refused(tmp_path)


def test_a_changed_image_is_not_served_from_the_cache(tmp_path):
    tree(tmp_path / "set", "cat", "dog", images=1)
    arguments = {"dataset_name": tmp_path / "set", "cache_dir": tmp_path / "cache", "num_workers": 0}
    before = load_image_data(**arguments)
    path = tmp_path / "set" / "cat" / "0.png"
    times = path.stat()
    Image.new("L", (8, 8), 255).save(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load_image_data(**arguments)
    assert not (before.images[0] == 255).all() and (after.images[0] == 255).all()
    assert before.fingerprint != after.fingerprint


def test_a_changed_image_that_a_table_only_names_is_not_served_from_the_cache(tmp_path):
    (tmp_path / "set").mkdir()
    paths = [str(tmp_path / f"{label}.png") for label in "ab"]
    for path in paths:
        Image.new("L", (8, 8), 7).save(path)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    rows = Dataset.from_dict({"image": paths, "label": [0, 1]}, features=features)
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    arguments = {"dataset_name": tmp_path / "set", "cache_dir": tmp_path / "cache", "num_workers": 0}
    assert (load_image_data(**arguments).images == 7).all()
    Image.new("L", (8, 8), 200).save(paths[1])
    assert load_image_data(**arguments).images.amax(dim=(1, 2, 3)).tolist() == [7, 200]


def write_metadata(path, suffix, columns):
    table = pa.table(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if suffix == "csv":
        pa.csv.write_csv(table, path / "metadata.csv")
    elif suffix == "jsonl":
        table.to_pandas().to_json(path / "metadata.jsonl", orient="records", lines=True)
    else:
        pa.parquet.write_table(table, path / "metadata.parquet")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_labels_images_if_asked_to(tmp_path, suffix):
    tree(tmp_path, "cat", "dog", images=2)
    files = ["dog/1.png", "cat/0.png", "cat/1.png", "dog/0.png"]
    write_metadata(tmp_path, suffix, {"file_name": files, "age": [7, 30, 7, 7], "kind": ["d", "c", "c", "d"]})
    arguments = {"dataset_name": tmp_path, "cache_dir": tmp_path / ".cache", "num_workers": 0}
    data = load_image_data(**arguments)
    assert data.class_names == ("cat", "dog") and "metadata" in data.skipped
    data = load_image_data(**arguments, label_column="age")
    # By path: cat/0.png is the one of age 30.
    assert data.class_names == ("7", "30") and data.labels.tolist() == [1, 0, 0, 0] and "metadata" not in data.skipped
    assert counts(tmp_path, label_column="label") == {"cat": 2, "dog": 2}
    with pytest.raises(ValueError, match="`label_column` 'colour' is not in .*valid are label .*'age', 'kind'"):
        load_image_data(**arguments, label_column="colour")


def test_metadata_of_several_splits_in_one_folder_are_refused(tmp_path):
    files = [f"{i}.png" for i in range(4)]
    columns = {"file_name": files, "kind": ["a", "b", "a", "b"], "Split": ["train", "train", "train", "test"]}
    tree(tmp_path / "flat", ".")
    write_metadata(tmp_path / "flat", "csv", columns)
    assert "has rows of several splits, as its column 'Split' says" in refused(tmp_path / "flat", label_column="kind")
    # Where folders tell the splits apart, it only says so again.
    tree(tmp_path / "folders", "train", "test", images=2)
    columns["file_name"] = ["train/0.png", "train/1.png", "test/0.png", "test/1.png"]
    columns["Split"] = ["train", "train", "test", "test"]
    write_metadata(tmp_path / "folders", "csv", columns)
    dataset, _ = read_image_folder(read_folder(tmp_path / "folders", "dataset_name"), "test", "kind")
    assert dataset["kind"][:] == ["a", "b"]


def test_metadata_in_utf_16_and_labels_that_are_too_large(tmp_path):
    tree(tmp_path, ".", images=2)
    (tmp_path / "metadata.csv").write_text("file_name,kind\n0.png,a\n1.png,b\n", encoding="utf-16")
    assert "cannot be read: it is UTF-16; save it as UTF-8" in refused(tmp_path, label_column="kind")
    (tmp_path / "metadata.csv").unlink()
    kinds = pa.array([1, 2**63], pa.uint64())
    write_metadata(tmp_path, "parquet", {"file_name": ["0.png", "1.png"], "kind": kinds})
    assert "has labels of 2**63 or more" in refused(tmp_path, label_column="kind")


def test_text_that_looks_like_a_date_stays_text(tmp_path):
    # As a path, too.
    tree(tmp_path, "train", images=2)
    for index, name in enumerate(("2020-01-01", "2020-01-01T00:00:00")):
        os.rename(tmp_path / "train" / f"{index}.png", tmp_path / "train" / f"{name}.png")
    rows = [{"file_name": f"{name}.png", "kind": name} for name in ("2020-01-01", "2020-01-01T00:00:00")]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = load_image_data(tmp_path, label_column="kind", cache_dir=tmp_path / ".cache", num_workers=0)
    assert data.class_names == ("2020-01-01", "2020-01-01T00:00:00") and data.labels.tolist() == [0, 1]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int8(), pa.large_string())])
def test_metadata_may_hold_any_kind_of_text(tmp_path, kind):
    # pandas and Polars write these.
    names = ["0.png", "1.png"]
    tree(tmp_path, "train", "test", images=2)
    columns = {"file_name": pa.array(names, pa.large_string()), "kind": pa.array(["b", "a"]).cast(kind)}
    write_metadata(tmp_path / "train", "parquet", columns)
    write_metadata(tmp_path / "test", "csv", {"file_name": names, "kind": ["a", "b"]})
    dataset, _ = read_image_folder(read_folder(tmp_path, "dataset_name"), "train", "kind")
    assert dataset["kind"][:] == ["b", "a"] and dataset.features["kind"].dtype == "string"


def test_metadata_labels_images_without_folders(tmp_path):
    for split, labels in (("train", ["a", "b", "b"]), ("test", ["b", "a", "a"])):
        tree(tmp_path, split, images=3)
        write_metadata(tmp_path / split, "csv", {"file_name": ["0.png", "1.png", "2.png"], "kind": labels})
    arguments = {"dataset_name": tmp_path, "label_column": "kind", "cache_dir": tmp_path / ".cache", "num_workers": 0}
    assert load_image_data(**arguments).labels.tolist() == [0, 1, 1]
    assert load_image_data(**arguments, split="test").labels.tolist() == [1, 0, 0]
    assert load_image_data(**arguments | {"dataset_name": tmp_path / "train"}).labels.tolist() == [0, 1, 1]
    assert "(--label_column) can name a column of metadata.csv" in refused(tmp_path / "train")


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"file_name": ["cat/0.png"], "kind": ["a"]}, "has no row for 3 images (cat/1.png, dog/0.png and 1 more)"),
        (
            {"file_name": ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"], "kind": list("abcde")},
            "names 1 images that are missing (dog/2.png)",
        ),
        ({"file_name": ["cat/0.png", "./cat/0.png"], "kind": ["a", "b"]}, "cat/0.png occurs more than once"),
        (
            {"file": ["cat/0.png"], "kind": ["a"]},
            "needs a column `file_name` of paths; its columns are 'file', 'kind'",
        ),
        ({"file_name": ["1", "2"], "kind": ["a", "b"]}, "has no row for 4 images"),
        ({"file_name": pa.array([], pa.string()), "kind": pa.array([], pa.string())}, "has no rows"),
        ({"file_name": ["cat/0.png"], " kind": ["a"]}, "and ' kind'"),
    ],
)
def test_metadata_that_does_not_fit(tmp_path, columns, words):
    tree(tmp_path, "cat", "dog", images=2)
    write_metadata(tmp_path, "csv", columns)
    assert words in refused(tmp_path, label_column="kind")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file_name,kind,kind\ncat/0.png,a,b\n", "has several columns kind"),
        (b"file_name,file_name,kind\ncat/0.png,x,a\n", "has several columns file_name"),
        ("file_name,kind\nchât/0.png,a\n".encode("latin-1"), "the column `file_name` is text that is not UTF-8"),
        ("file_name,kind\ncat/0.png,chât\n".encode("latin-1"), "the column 'kind' is text that is not UTF-8"),
    ],
)
def test_a_broken_metadata_file_gives_one_message(tmp_path, content, words):
    tree(tmp_path, "cat", "dog", images=2)
    (tmp_path / "metadata.csv").write_bytes(content)
    assert words in refused(tmp_path, label_column="kind")


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["007", "7", "007", "7"], {"007": 2, "7": 2}),
        (["7", "30", "7", "30"], {"7": 2, "30": 2}),
        (["true", "false", "TRUE", "false"], {"true": 1, "TRUE": 1, "false": 2}),
        (["1.10", "1.1", "1.10", "1.1"], {"1.10": 2, "1.1": 2}),
        (["+7", "7.0", "1e2", "1E2"], {"+7": 1, "7.0": 1, "1e2": 1, "1E2": 1}),
        (["123456789012345678901", "123456789012345678902"] * 2, {f"12345678901234567890{i}": 2 for i in (1, 2)}),
        (["2020-01-01", "2020-02-01", "2020-01-01", "2020-02-01"], {"2020-01-01": 2, "2020-02-01": 2}),
    ],
)
def test_labels_of_a_csv_file_stay_as_they_are_written(tmp_path, labels, classes):
    tree(tmp_path, "images", images=4)
    rows = "".join(f"images/{i}.png,{label}\n" for i, label in enumerate(labels))
    (tmp_path / "metadata.csv").write_text("file_name,kind\n" + rows)
    dataset, _ = read_image_folder(read_folder(tmp_path, "dataset_name"), "train", "kind")
    assert Counter(map(str, dataset["kind"][:])) == classes


def test_labels_of_several_csv_files_are_of_one_kind(tmp_path):
    tree(tmp_path, "a", "b", images=2)
    (tmp_path / "a" / "metadata.csv").write_text("file_name,kind\n0.png,007\n1.png,x\n")
    (tmp_path / "b" / "metadata.csv").write_text("file_name,kind\n0.png,7\n1.png,10\n")
    dataset, _ = read_image_folder(read_folder(tmp_path, "dataset_name"), "train", "kind")
    assert dataset["kind"][:] == ["007", "x", "7", "10"]


def test_metadata_of_splits_with_other_names_is_refused(tmp_path):
    for split in ("training", "testing"):
        tree(tmp_path, split, images=2)
        (tmp_path / split / "metadata.csv").write_text("file_name,kind\n0.png,a\n1.png,b\n")
    assert "testing, training would be classes, but" in refused(tmp_path, label_column="kind")


@pytest.mark.parametrize("folder", ["cat/@eaDir/0.png", "$RECYCLE.BIN", "#recycle", "System Volume Information"])
def test_what_systems_put_beside_images_is_no_data(tmp_path, folder):
    tree(tmp_path, "cat", "dog", images=2)
    tree(tmp_path, folder, images=3)
    assert counts(tmp_path) == {"cat": 2, "dog": 2}


@pytest.mark.parametrize("folder", ["run", "cat/run", "dog/more/run"])
def test_an_output_folder_among_the_images_is_no_data(tmp_path, folder):
    tree(tmp_path, "cat", "dog", images=2)
    tree(tmp_path / folder, "samples", "shadows/1", images=3)
    before = counts(tmp_path)
    assert before != {"cat": 2, "dog": 2}
    (tmp_path / folder / ".made_by").write_text("somebody\ngenerate_dim.py\n")
    assert counts(tmp_path) == before
    lock_output_dir(tmp_path / folder, "train_dim.py").release()
    assert counts(tmp_path) == {"cat": 2, "dog": 2}
    # Asked for by its name, it is read.
    assert counts(tmp_path / folder) == {"samples": 3, "shadows": 3}


NAMES = st.sampled_from(
    ["train", "Train", "test", "val", "valid", "VALID", "freight train", "test-1", "cat", "Cat", "dog", "a[12]", "a1"]
    + ["*", "?", "é", "e\u0301", "中", ".hidden", "__MACOSX", "a b", "a\nb", "x.png", "metadata", "\udcff", "a::b"]
)
FILES = st.sampled_from(
    ["0.png", "1.PNG", "train-0.png", "test.jpeg", "x.JPG", "y.webp", "z.tif", ".png", ".hid.png", "Thumbs.db"]
    + ["b.py", "README.md", "metadata.csv", "c.heic", "noext", "[x].png", "é.png", "e\u0301.png", "d.zip", "e::f.png"]
)
TREES = st.lists(
    st.tuples(
        st.lists(NAMES, max_size=4),
        FILES,
        st.sampled_from(["file"] * 12 + ["folder", "folder", "link to file", "link to folder", "broken link"]),
    ),
    max_size=14,
)
SPLIT_NAMES = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "validation")
IMAGES = (".png", ".jpeg", ".jpg", ".webp", ".tif")


def build(root, entries, linked):
    for parents, name, kind in entries:
        path = root.joinpath(*parents, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.write_bytes(b"")
            elif kind == "folder":
                path.with_suffix("").mkdir()
            elif kind == "link to folder":
                path.with_suffix("").symlink_to(linked)
            else:
                path.symlink_to(linked / "0.png" if kind == "link to file" else linked / "nowhere")
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            pass


def oracle(root, split):
    """The number of images of each class, simply from their paths."""
    images = []
    for folder, _, names in os.walk(root, followlinks=True):
        for name in names:
            parts = Path(folder, name).relative_to(root).parts
            if name.lower().endswith(IMAGES) and not any(part[0] == "." or part == "__MACOSX" for part in parts):
                images.append(parts)
    if any(parts[0].lower() in SPLIT_NAMES and len(parts) > 2 for parts in images):
        images = [parts[1:] for parts in images if SPLIT_NAMES.get(parts[0].lower()) == split]
    return {name: sum(parts[0] == name for parts in images) for name in sorted({parts[0] for parts in images})}


@settings(max_examples=200, deadline=None)
@given(entries=TREES, split=st.sampled_from(["train", "test", "validation"]))
def test_any_tree_is_counted_or_refused(entries, split):
    with tempfile.TemporaryDirectory() as folder:
        linked = Path(folder, "linked")
        tree(linked, ".", images=2)
        root = Path(folder, "root")
        root.mkdir()
        build(root, entries, linked)
        try:
            found = counts(root, split)
        except (ValueError, OSError):
            refused(root, split)
        else:
            assert len(found) >= 2 and found == oracle(root, split)


def test_the_property_is_not_empty(tmp_path):
    """Trees of two classes are read if they hold nothing that is always refused."""
    for number, names in enumerate((["cat", "dog"], ["train", "cat"], ["a[12]", "a1"], ["*", "?"])):
        root = tmp_path / str(number)
        tree(root, *names, images=1)
        assert counts(root) == oracle(root, "train") == dict.fromkeys(sorted(names), 1)
        shutil.rmtree(root)


def test_the_data_folder_takes_no_output_but_a_new_folder_in_it_may(tmp_path, monkeypatch):
    tree(tmp_path / "pets", "cat", "dog")
    tree(tmp_path / "split" / "train", "cat", "dog")
    (tmp_path / "link").symlink_to(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    for output, data, named in (
        ("pets", "pets", "the data folder pets"),
        (tmp_path / "link", "pets", "the data folder pets"),
        ("pets", str(tmp_path / "link"), f"the data folder {tmp_path}/link"),
        ("pets/cat", "pets", "part of the data folder pets"),
        (".", ".", "the data folder ."),
        ("split", "split/train", "the folder of the split split/train"),
    ):
        with pytest.raises(FileExistsError, match=f"`--output_dir` {output} is {named}, whose images"):
            refuse_data_folder(output, data, None)
        with pytest.raises(FileExistsError):
            refuse_data_folder(output, "owner/name", data)
    with pytest.raises(FileExistsError, match="`--output_dir` pets/cat holds . images .*no longer be read as data"):
        refuse_data_folder("pets/cat", "owner/name", None)
    # An evaluation that was copied without the file that says what it is.
    tree(tmp_path, "copied")
    (tmp_path / "copied" / "metrics.json").write_text('{"protocol": "B", "rows": []}')
    refuse_data_folder("copied", "owner/name", None)
    (tmp_path / "pets" / "empty").mkdir()
    lock_output_dir(tmp_path / "pets" / "run", "train_dim.py").release()
    (tmp_path / "pets" / "run" / "options.json").write_text("{}")
    for output, data in (
        ("pets/new", "pets"), ("pets/empty", "pets"), ("pets/run", "pets"), ("out", "pets"), ("pets-2", "pets"),
        (".", "pets"), ("pets", "owner/name"), ("pets", None), ("pets", "pets/cat/0.png"),
        ("split/train/run", "split/train"), ("split/run", "split/train"),
    ):  # fmt: skip
        refuse_data_folder(output, data, None)
    (tmp_path / "digits").mkdir()
    refuse_data_folder("digits", "digits", None)
    for arguments in (("./digits", None), ("digits", "digits")):
        with pytest.raises(FileExistsError):
            refuse_data_folder("digits", *arguments)


def test_classes_that_hold_the_same_folders_are_mentioned(tmp_path):
    for split in ("fold1", "fold2"):
        tree(tmp_path / "set" / split, "cat", "dog")
    with pytest.warns(UserWarning, match=r"each class of .*set \(fold1, fold2\) holds the same folders \(cat, dog\)"):
        assert counts(tmp_path / "set") == {"fold1": 8, "fold2": 8}
