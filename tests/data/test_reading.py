"""Folders of data files: one message for layouts that `datasets` would misread, and for its errors."""

import io

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features
from PIL import Image

from dim_hf.data import holdout, load_image_data


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
