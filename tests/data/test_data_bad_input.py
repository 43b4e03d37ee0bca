import pytest

from dim_hf.data import load_image_data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_name": 5}, "`dataset_name` is 5; valid is a name or a path"),
        ({"dataset_name": None}, "`dataset_name` is None; valid is a name or a path"),
        ({"dataset_name": b"digits"}, "`dataset_name` is b'digits'; valid is a name or a path"),
        ({"dataset_name": ["digits"]}, r"`dataset_name` is \['digits'\]; valid is a name or a path"),
        ({"train_data_dir": 1.5}, "`train_data_dir` is 1.5; valid is a name or a path"),
        ({"cache_dir": True}, "`cache_dir` is True; valid is a name or a path"),
        ({"split": None}, "`split` is None; valid is a `str`"),
        ({"split": ["train"]}, r"`split` is \['train'\]; valid is a `str`"),
        ({"revision": 2}, "`revision` is 2; valid is a `str`"),
        ({"label_column": 0}, "`label_column` is 0; valid is a `str`"),
        ({"resolution": "28"}, "`resolution` is '28'; valid is a whole number from 4"),
        ({"resolution": 28.0}, "`resolution` is 28.0; valid is a whole number from 4"),
        ({"resolution": 3}, "`resolution` is 3; valid is a whole number from 4"),
        ({"channels": 2}, r"`channels` is 2; valid are 1 \(grey\) and 3 \(RGB\)"),
        ({"num_workers": 1.5}, "`num_workers` is 1.5; valid is a whole number from 0"),
        ({"num_workers": -1}, "`num_workers` is -1; valid is a whole number from 0"),
        ({"max_samples": 0}, "`max_samples` is 0; valid is a whole number from 1"),
        ({"max_samples": 9}, "`max_samples` is 9, and there are 10 classes; valid are at least"),
        ({"seed": -1}, "`seed` is -1; valid is a whole number from 0"),
        ({"seed": 0.5}, "`seed` is 0.5; valid is a whole number from 0"),
        ({"split": "validation"}, "digits have no split 'validation'; valid are train, test"),
        ({"image_column": "picture"}, "`image_column` 'picture' is not in the data set"),
        ({"revision": "main"}, "`revision` is 'main', but the embedded digits have none"),
        ({"dataset_config_name": "mnist"}, "`dataset_config_name` is 'mnist', but the embedded digits have none"),
    ],
)
def test_a_wrong_argument_is_one_message(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        load_image_data(**{"cache_dir": tmp_path / "cache", **arguments})
    assert len(str(error.value)) <= 600 and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
