"""Folders of data files: one message for layouts that `datasets` would misread, and for its errors."""

import io

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from dim_hf.data import holdout, load_image_data
from dim_hf.data.folders import refuse_data_folder
from dim_hf.files import lock_output_dir


def png():
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, rows=2):
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table({"image": [png()] * rows, "label": ["a", "b"] * (rows // 2)}), path)


def load(path, *args, **kwargs):
    return load_image_data(path, *args, cache_dir=path.parent / "cache", num_workers=0, **kwargs)


def message(path, **kwargs):
    with pytest.raises((ValueError, OSError)) as caught:
        load(path, **kwargs)
    text = str(caught.value)
    assert len(text) <= 600 and "\n" not in text
    return text


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["cat.parquet", "passenger train.parquet"], "would read cat.parquet for none"),
        (["train/test/x.parquet", "train/y.parquet"], "would read train/test/x.parquet for several"),
        (["data/train-00000-of-00001.parquet", "more.parquet"], "would read more.parquet for none"),
    ],
)
def test_a_file_in_no_split_or_in_two(tmp_path, files, words):
    for file in files:
        write(tmp_path / "set" / file)
    assert words in message(tmp_path / "set")
    # A README that assigns files to splits is trusted.
    (tmp_path / "set" / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '{files[0]}'\n---\n"
    )
    assert len(load(tmp_path / "set")) == 2


def test_a_path_is_not_read_as_a_pattern(tmp_path):
    write(tmp_path / "set1" / "x.parquet", rows=4)
    write(tmp_path / "set[12]" / "x.parquet")
    write(tmp_path / "x[1].parquet")
    write(tmp_path / "x1.parquet", rows=4)
    assert "takes *, ? and [ in its path as a pattern" in message(tmp_path / "set[12]")
    assert len(load(tmp_path / "x[1].parquet")) == 2


def test_images_beside_data_files(tmp_path):
    write(tmp_path / "set" / "x.parquet")
    Image.new("L", (8, 8)).save(tmp_path / "set" / "preview.png")
    write(tmp_path / "set" / "y.parquet")
    assert load(tmp_path / "set").skipped == "1 images beside the data files (preview.png)"
    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "set" / f"{i}.png")
    assert "among files of another kind" in message(tmp_path / "set")
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / "set" / name / "0.png")
    assert "holds data files (x.parquet, y.parquet) and 6 images in folders" in message(tmp_path / "set")


@pytest.mark.parametrize(
    ("readme", "words"),
    [
        (b"---\na: [\n---\n", "the YAML at the top of {path}/README.md cannot be read: while parsing"),
        (b"\xff\xfe", "the YAML at the top of {path}/README.md cannot be read: 'utf-8'"),
        (b"---\n- a\n---\n", "cannot be read: repo card metadata block should be a dict"),
        (b"---\nconfigs: 3\n---\n", "cannot be read: Expected configs to be a list"),
        (b"---\ndataset_info:\n  features: 3\n---\n", "cannot be read: Expected a dict or a list"),
    ],
)
def test_a_readme_that_cannot_be_read_is_named(tmp_path, readme, words):
    write(tmp_path / "set" / "x.parquet")
    (tmp_path / "set" / "README.md").write_bytes(readme)
    assert words.format(path=tmp_path / "set") in message(tmp_path / "set")


def test_a_script_and_a_cut_file(tmp_path):
    write(tmp_path / "set" / "x.parquet")
    (tmp_path / "set" / "set.py").write_text("raise SystemExit")
    assert "needs its own script" in message(tmp_path / "set")
    (tmp_path / "set" / "set.py").unlink()
    (tmp_path / "set" / "x.parquet").write_bytes(b"PAR1 and no more")
    assert f"split 'train' of {tmp_path / 'set'} cannot be read: " in message(tmp_path / "set")


@pytest.mark.parametrize("state", ["{", "{}", "[]"])
def test_a_damaged_folder_of_save_to_disk(tmp_path, state):
    features = Features({"label": ClassLabel(names=["a", "b"])})
    Dataset.from_dict({"label": [0, 1]}, features=features).save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "state.json").write_text(state)
    assert "is damaged, or was not written by `save_to_disk`" in message(tmp_path / "set")


def test_thousands_of_classes_make_short_messages(tmp_path):
    names = [f"a class with a rather long name, number {i}" for i in range(5000)]
    table = pa.table({"image": [png()] * 5000, "label": names})
    (tmp_path / "set").mkdir()
    pa.parquet.write_table(table, tmp_path / "set" / "x.parquet")
    assert "and 4,996 more; valid are a, b" in message(tmp_path / "set", class_names=("a", "b"))
    data = load(tmp_path / "set")
    assert len(data.describe()) <= 900
    with pytest.raises(ValueError, match="and 4,992 more has fewer than 2 images") as caught:
        holdout(data)
    assert len(str(caught.value)) <= 600


def test_a_file_without_rows_is_named(tmp_path):
    # `datasets` then reads none of the others.
    write(tmp_path / "set" / "train.parquet")
    write(tmp_path / "set" / "test.parquet", rows=0)
    assert message(tmp_path / "set") == f"`dataset_name`: {tmp_path / 'set' / 'test.parquet'} has no rows; remove it."
    assert "test.parquet has no rows" in message(tmp_path / "set" / "test.parquet")
    (tmp_path / "set" / "test.parquet").unlink()
    assert len(load(tmp_path / "set")) == 2


def test_suffixes_in_capitals(tmp_path):
    write(tmp_path / "set" / "TRAIN.PARQUET")
    assert len(load(tmp_path / "set" / "TRAIN.PARQUET")) == 2
    assert "holds TRAIN.PARQUET; `datasets` reads only files whose suffix is in small letters" in message(
        tmp_path / "set"
    )


def shades(path, classes, labels):
    """A file whose images have the shade 10 times their label."""
    rows = []
    for label in labels:
        buffer = io.BytesIO()
        Image.new("L", (8, 8), 10 * label).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=classes)})
    dataset = Dataset.from_dict({"image": rows, "label": labels}, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        dataset.to_parquet(path)
        return
    dataset.save_to_disk(path.parent.parent / path.stem)
    (path.parent.parent / path.stem / "data-00000-of-00001.arrow").rename(path)


def told(data):
    return [(data.class_names[label], int(image.max())) for label, image in zip(data.labels, data.images, strict=True)]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_each_split_has_its_own_names_of_classes(tmp_path, suffix):
    shades(tmp_path / "set" / f"train.{suffix}", ["bird", "cat", "dog"], [0, 1, 2])
    # Without birds, as a folder without them gives it.
    shades(tmp_path / "set" / f"test.{suffix}", ["cat", "dog"], [0, 1])
    train = load(tmp_path / "set")
    assert told(train) == [("bird", 0), ("cat", 10), ("dog", 20)]
    test = load(tmp_path / "set", "test", class_names=train.class_names)
    assert told(test) == [("cat", 0), ("dog", 10)] and test.labels.tolist() == [1, 2]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_files_of_one_split_that_differ_are_refused(tmp_path, suffix):
    shades(tmp_path / "set" / f"train-0.{suffix}", ["a", "b"], [0, 1])
    shades(tmp_path / "set" / f"train-1.{suffix}", ["b", "a"], [0, 1])
    assert (
        f"`label` of train-0.{suffix} has the classes a, b, and `label` of train-1.{suffix} has the classes b, a"
        in (message(tmp_path / "set"))
    )


def test_files_with_other_columns_or_types_are_refused(tmp_path):
    write(tmp_path / "set" / "train-0.parquet")
    other = tmp_path / "set" / "train-1.parquet"
    pa.parquet.write_table(pa.table({"image": [png()] * 2, "label": [0, 1]}), other)
    told = message(tmp_path / "set")
    assert "`label` of train-0.parquet has text, and `label` of train-1.parquet has numbers" in told
    pa.parquet.write_table(pa.table({"img": [png()] * 2, "label": ["a", "b"]}), other)
    told = message(tmp_path / "set")
    assert "train-0.parquet has the columns image, label, and train-1.parquet has img, label" in told


def test_files_that_are_read_right_although_they_differ(tmp_path):
    rows = {"image": [png()] * 2, "label": ["a", "b"]}
    more = {"note": ["x", "y"], "age": [1, 2], "__index_level_0__": [5, 6]}
    (tmp_path / "set").mkdir()
    pa.parquet.write_table(pa.table(rows | more), tmp_path / "set" / "train-0.parquet")
    # Text of the other kind, nulls, a number that is missing, and no index.
    columns = {"label": pa.array(["a", "b"], pa.large_string()), "note": pa.nulls(2), "age": [1.0, None]}
    pa.parquet.write_table(pa.table(rows | columns), tmp_path / "set" / "train-1.parquet")
    assert len(load(tmp_path / "set", label_column="label")) == 4


@pytest.mark.parametrize("split", ["train[:80%]", "train+test"])
def test_parts_of_splits_are_read_with_their_own_classes(tmp_path, split):
    shades(tmp_path / "set" / "train.parquet", ["bird", "cat", "dog"], [0, 1, 2, 1, 2])
    shades(tmp_path / "set" / "test.parquet", ["cat", "dog"], [0, 1])
    if "+" in split:
        assert "has the classes bird, cat, dog, and `label` of test.parquet has the classes cat, dog" in message(
            tmp_path / "set", split=split
        )
    else:
        assert told(load(tmp_path / "set", split)) == [("bird", 0), ("cat", 10), ("dog", 20), ("cat", 10)]
    assert "Unknown split" in message(tmp_path / "set", split="holdout")


def test_a_readme_without_features_changes_nothing(tmp_path):
    shades(tmp_path / "set" / "train.parquet", ["bird", "cat", "dog"], [0, 1, 2])
    shades(tmp_path / "set" / "test.parquet", ["cat", "dog"], [0, 1])
    (tmp_path / "set" / "README.md").write_text("---\ndataset_info:\n  dataset_size: 5\n---\n")
    assert told(load(tmp_path / "set", "test", class_names=("bird", "cat", "dog"))) == [("cat", 0), ("dog", 10)]


def test_a_readme_that_reads_several_files_as_one_is_no_excuse(tmp_path):
    shades(tmp_path / "set" / "one.parquet", ["a", "b"], [0, 1])
    shades(tmp_path / "set" / "two.parquet", ["b", "a"], [0, 1])
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: one.parquet\n"
    (tmp_path / "set" / "README.md").write_text(f"{readme}  - split: test\n    path: two.parquet\n---\n")
    assert "`label` of one.parquet has the classes a, b" in message(tmp_path / "set")
    (tmp_path / "set" / "README.md").write_text(f"{readme}---\n")
    data = load(tmp_path / "set")
    assert told(data) == [("a", 0), ("b", 10)]
    assert data.skipped == "1 data files that README.md does not name (two.parquet)"


@pytest.mark.parametrize(
    "values", [pa.array([0.0, 1.0]), pa.array([[1, 0], [0, 1]]), pa.array([[1, 0], [0, 1]], pa.list_(pa.int64(), 2))]
)
def test_a_column_that_is_probably_not_the_label_is_not_taken_in_silence(tmp_path, values):
    path = tmp_path / "train.parquet"
    pa.parquet.write_table(pa.table({"image": [png()] * 2, "patient": [7, 8], "diagnosis": values}), path)
    assert "`label_column` must be given, since there is diagnosis" in message(path)
    assert load(path, label_column="patient").class_names == ("7", "8")
    # One that is called so is the label.
    pa.parquet.write_table(pa.table({"image": [png()] * 2, "label": [7, 8], "weight": values}), path)
    assert load(path).class_names == ("7", "8")


def test_a_column_called_class_beside_named_classes_raises_doubts(tmp_path):
    features = Features(
        {"image": ImageFeature(), "sex": ClassLabel(names=["f", "m"]), "class": datasets.Value("string")}
    )
    rows = {"image": [{"bytes": png(), "path": None}] * 2, "sex": [0, 1], "class": ["cat", "dog"]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    assert "`label_column` must be given, since there is class" in message(tmp_path / "train.parquet")
    assert load(tmp_path / "train.parquet", label_column="class").class_names == ("cat", "dog")


def test_a_missing_part_of_a_split_is_refused(tmp_path):
    for number in (0, 2, 3):
        shades(tmp_path / "set" / f"train-{number:05d}-of-00004.parquet", ["a", "b"], [0, 1])
    for split in ("train", "all"):
        assert "lacks 1 of the 4 parts of train (00001-of-00004)" in message(tmp_path / "set", split=split)
    shades(tmp_path / "set" / "train-00001-of-00004.parquet", ["a", "b"], [0, 1])
    assert len(load(tmp_path / "set")) == 8
    shades(tmp_path / "set" / "train-00000-of-00001.parquet", ["a", "b"], [0, 1])
    assert "holds train in 1, 4 parts (-of-00001 and -of-00004)" in message(tmp_path / "set")


def test_parts_that_a_readme_leaves_out_may_be(tmp_path):
    for number in (0, 1):
        shades(tmp_path / "set" / f"train-{number:05d}-of-00002.parquet", ["a", "b"], [0, 1])
    readme = "---\nconfigs:\n- config_name: default\n  data_files: train-00001-of-00002.parquet\n---\n"
    (tmp_path / "set" / "README.md").write_text(readme)
    assert len(load(tmp_path / "set")) == 2
    (tmp_path / "set" / "train-00000-of-00002.parquet").unlink()
    assert "lacks 1 of the 2 parts" in message(tmp_path / "set")


def test_data_sets_side_by_side_are_not_read_as_one(tmp_path):
    for name in ("mnist", "svhn"):
        shades(tmp_path / "set" / name / "train.parquet", ["a", "b"], [0, 1])
    assert "files of the split 'train' in several folders (mnist/train.parquet, svhn/train.parquet)" in message(
        tmp_path / "set"
    )
    assert len(load(tmp_path / "set" / "svhn")) == 2


def test_a_copy_beside_the_file_of_a_split_is_mentioned(tmp_path):
    for name in ("train", "train (1)"):
        shades(tmp_path / "set" / f"{name}.parquet", ["a", "b"], [0, 1])
    with pytest.warns(UserWarning, match=r"is read from 2 files: train \(1\).parquet, train.parquet"):
        assert len(load(tmp_path / "set")) == 4


@pytest.mark.parametrize("script", ["generate_dim.py", "train_dim.py"])
def test_the_output_of_a_script_among_data_files_is_refused(tmp_path, script):
    shades(tmp_path / "set" / "train.parquet", ["a", "b"], [0, 1])
    shades(tmp_path / "set" / "made" / "train.parquet", ["a", "b"], [0, 1])
    lock_output_dir(tmp_path / "set" / "made", script).release()
    assert "among them the output of a script (made), whose files" in message(tmp_path / "set")
    with pytest.raises(
        FileExistsError, match="is part of the data folder .*, of which `datasets` reads all data files"
    ):
        refuse_data_folder(tmp_path / "set" / "new", str(tmp_path / "set"), None)


@pytest.mark.parametrize(("column", "values"), [("Usage", ["Training", "PublicTest"]), ("is_test", [False, True])])
def test_other_columns_that_tell_splits(tmp_path, column, values):
    path = tmp_path / "all.parquet"
    pa.parquet.write_table(pa.table({"image": [png()] * 2, "label": ["a", "b"], column: values}), path)
    assert f"has rows of several splits, as its column {column!r} says" in message(path, label_column="label")


def test_rows_of_several_splits_are_refused(tmp_path):
    path = tmp_path / "all.parquet"
    rows = {"image": [png()] * 3, "label": ["a", "b", "a"]}
    pa.parquet.write_table(pa.table(rows | {"split": ["train", "train", "test"]}), path)
    assert "has rows of several splits, as its column 'split' says (test, train)" in message(
        path, label_column="label"
    )
    pa.parquet.write_table(pa.table(rows | {"split": ["train"] * 3}), path)
    assert len(load(path, label_column="label")) == 3
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    features["subset"] = ClassLabel(names=["Train", "Test", "Val"])
    images = [{"bytes": png(), "path": None}] * 3
    named = Dataset.from_dict({"image": images, "label": [0, 1, 0], "subset": [0, 0, 1]}, features=features)
    named.to_parquet(path)
    assert "its column 'subset' says (Test, Train)" in message(path, label_column="label")
    # Rows that say nothing, and both parts of what is trained on.
    for subset in ([0, None, 2], [0, 0, 7]):
        columns = {"image": [png()] * 3, "label": [0, 1, 0], "subset": pa.array(subset, pa.int64())}
        table = pa.table(columns)
        pa.parquet.write_table(table.replace_schema_metadata(named.features.arrow_schema.metadata), path)
        assert len(load(path, label_column="label")) == 3


def test_names_of_files_without_a_folder_are_not_looked_up_here(tmp_path, monkeypatch):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    monkeypatch.chdir(tmp_path)
    images = [{"bytes": None, "path": f"{i}.png"} for i in (0, 1)]
    Dataset.from_dict({"image": images, "label": [0, 1]}, features=features).to_parquet("set.parquet")
    assert "cannot be decoded: it is only a path, 0.png, and from which folder is not known" in message(
        tmp_path / "set.parquet"
    )


def test_a_label_of_spaces_is_none(tmp_path):
    path = tmp_path / "train.parquet"
    pa.parquet.write_table(pa.table({"image": [png()] * 3, "label": ["a", "b", "  "]}), path)
    assert "has no label in row 2" in message(path)


def test_a_cache_among_the_images_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
    for cache in (tmp_path, tmp_path / "cache" / "images"):
        with pytest.raises(ValueError, match="`cache_dir` .* is in the data folder .*name another"):
            load_image_data(tmp_path, cache_dir=cache, num_workers=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    # What is hidden is not read.
    assert len(load_image_data(tmp_path, cache_dir=tmp_path / ".cache", num_workers=0)) == 2


def test_a_folder_that_is_not_here_is_said_not_to_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="my-photos is not a folder or file here, and cannot be found"):
        load_image_data("my-photos", cache_dir=tmp_path / "cache")
