"""Bad input to the pipeline: one message before any work, with the argument, its value and the valid values."""

import itertools
import os
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from dim_hf import DiMDiscriminator, DiMGenerator, DiMLabeler, DiMPipeline


@pytest.fixture(scope="module")
def pipe() -> DiMPipeline:
    torch.manual_seed(0)
    pipe = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), ["T-shirt", "Coat", "Bag"])
    pipe.set_progress_bar_config(disable=True)
    return pipe


def message(error: type[Exception], function, *args, **kwargs) -> str:
    with pytest.raises(error) as caught:
        function(*args, **kwargs)
    text = str(caught.value)
    assert "\n" not in text and len(text) <= 600, text
    return text


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Odd:
    def __repr__(self) -> str:
        return "odd\n" * 1000


INVALID_COUNTS = [
    0,
    -1,
    1.5,
    2.0,
    True,
    None,
    "1",
    [1],
    {},
    float("nan"),
    float("inf"),
    np.float64(2),
    torch.tensor(2),
    Odd(),
]
INVALID_CLASSES = [
    "Cot", "", "0", b"Coat", 3, -1, 1.0, float("nan"), 10**30, True, np.array(3), np.array([0, 3]), np.array([0.0]),
    np.array([True]), np.zeros((2, 2), int), torch.tensor(1.0), torch.tensor([[0, 1]]), torch.tensor([True]),
    ["Coat", "C"], [0, -1], [[0]], [None], ("Bag", ("Coat",)), {0, 1}, {"Coat": 1}, frozenset([1]), object, Odd(),
    ["x" * 10_000], (i for i in (0, 9)),
]  # fmt: skip


@pytest.mark.parametrize("class_labels", INVALID_CLASSES, ids=lambda value: repr(value)[:30])
def test_class_labels(pipe, class_labels):
    text = message(ValueError, pipe, class_labels)
    assert text.startswith("`class_labels` is ") and "valid " in text


@pytest.mark.parametrize("class_labels", [[], (), iter([]), torch.empty(0), np.array([])])
def test_empty_class_labels(pipe, class_labels):
    expected = (
        "`class_labels` is empty; valid are the labels 0 to 2 and the names 'T-shirt', 'Coat', 'Bag', or None for"
    )
    assert message(ValueError, pipe, class_labels).startswith(expected)


def test_class_labels_without_end(pipe):
    assert "holds more than 1,000,000 classes" in message(ValueError, pipe, itertools.repeat(0))


@pytest.mark.parametrize("name", ["ipc", "batch_size"])
@pytest.mark.parametrize("value", INVALID_COUNTS, ids=lambda value: repr(value)[:30])
def test_counts(pipe, name, value):
    for function in (pipe, pipe.to_dataset):
        text = message(ValueError, function, **{"ipc": 1} | {name: value})
        assert text.startswith(f"`{name}` is {' '.join(repr(value).split())[:70]}")
        assert text.endswith("; valid is a whole number from 1.")


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"class_labels": "Cot"}, "`class_labels` is or holds 'Cot'; valid are the labels 0 to 2 and the names"),
        ({"ipc": 10**12}, "`ipc` is 1000000000000, for 3 classes; valid are at most 1,000,000 images in memory."),
        ({"output_type": "latent"}, "`output_type` is 'latent'; valid are 'pil', 'np' and 'pt'."),
        ({"output_type": None}, "`output_type` is None; valid are"),
        ({"output_type": []}, "`output_type` is []; valid are"),
        ({"output_type": np.array(["pil", "np"])}, "`output_type` is array(['pil', 'np']"),
        (
            {"latents": torch.zeros(3, 5)},
            "`latents` is torch.float32 of shape (3, 5); valid for 3 images is a floating-",
        ),
        ({"latents": torch.zeros(18)}, "`latents` is torch.float32 of shape (18,); valid for 3 images is a floating-"),
        ({"latents": torch.zeros(3, 6, dtype=torch.int64)}, "`latents` is torch.int64 of shape (3, 6); valid for 3"),
        ({"latents": torch.full((3, 6), float("nan"))}, "`latents` holds infinity or NaN; valid are finite numbers."),
        ({"latents": np.zeros((3, 6))}, "`latents` is array([[0., 0.,"),
        ({"latents": "x"}, "`latents` is 'x'; valid for 3 images is"),
        ({"generator": [rng()] * 2}, "`generator` is a list of 2; 3 images need one each."),
        ({"generator": []}, "`generator` is a list of 0; 3 images"),
        (
            {"generator": 0},
            "`generator` is or holds 0; valid is a `torch.Generator`, such as `torch.Generator().manual",
        ),
        ({"generator": [rng(), 1, rng()]}, "`generator` is or holds 1; valid"),
        ({"generator": [None] * 3}, "`generator` is or holds None; valid"),
        ({"generator": np.random.default_rng(0)}, "`generator` is or holds Generator(PCG64)"),
        ({"generator": torch.Generator}, "`generator` is or holds <class 'torch._C.Generator'>; valid"),
    ],
)
def test_a_call(pipe, kwargs, text):
    state = torch.get_rng_state()
    assert message(ValueError, pipe, **kwargs).startswith(text)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("features", ["x", {}, 3, {"image": datasets.Image()}, datasets.Image()])
def test_features(pipe, features):
    expected = f"`features` is {features!r}; valid is the `features` of a data set, or None."
    assert message(ValueError, pipe.to_dataset, 1, features=features) == expected


@pytest.mark.parametrize(
    ("id2label", "text"),
    [
        ({0: "a", 1: "b"}, "names the labels 0, 1; the generator has 3 classes, so valid are exactly 0 to 2."),
        (["a", "b"], "names the labels 0, 1; the generator has 3 classes"),
        ([*"abcd"], "names the labels 0, 1, 2, 3; the"),
        ([], "names the labels ; the generator has 3 classes"),
        ({1: "a", 2: "b", 3: "c"}, "names the labels 1, 2, 3; the"),
        ({"a": 0, "b": 1, "c": 2}, "names the labels 'a', 'b', 'c'; the"),
        ({0: "a", 1: "b", "1": "b", 2: "c"}, "names the labels 0, 1, '1', 2; the"),
        ({0.0: "a", 1: "b", 2: "c"}, "names the labels 0.0, 1, 2; the"),
        ({False: "a", 1: "b", 2: "c"}, "names the labels False, 1, 2; the"),
        ({0: "a", 1: "b", 2: "a"}, "holds 'a'; every class must have a name (`str`) of its own."),
        ({0: "a", 1: "b", 2: 2}, "holds 2; every class"),
        (["a", None, "b"], "holds None; every class"),
        ("abc", "is 'abc'; valid is a dict of labels and names, or a list of names."),
        ({"a", "b", "c"}, "is {"),
        (3, "is 3; valid is a dict"),
    ],
)
def test_class_names(pipe, id2label, text):
    assert message(ValueError, DiMPipeline, pipe.generator, id2label).startswith(f"`id2label` {text}")


INVALID_NETWORKS = [None, "out/x", Path("out/x"), {}, DiMGenerator, torch.nn.Linear(1, 1), DiMDiscriminator(3, 8, 1)]


@pytest.mark.parametrize("network", INVALID_NETWORKS, ids=lambda value: repr(value)[:20])
def test_networks(pipe, network):
    for other, expected in ((network, "DiMGenerator"), (pipe, "DiMGenerator")):
        text = message(ValueError, DiMPipeline, other)
        assert text.startswith("`generator` is ") and f"; valid is a {expected}. `DiMPipeline.from_pretrained`" in text
    if network is not None:
        assert "; valid is a DiMLabeler." in message(ValueError, DiMPipeline, pipe.generator, labeler=network)


def test_a_labeler_of_other_images(pipe):
    text = message(ValueError, DiMPipeline, pipe.generator, labeler=DiMLabeler(3, 8, 3, width=4))
    assert text == "`labeler` takes 3 classes, 8 pixels and 3 channels; the generator makes 3, 8 and 1."


def test_from_pipe(pipe):
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(sample_size=8, block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, **blocks)
    for other in (None, "out/x", pipe.generator, DDPMPipeline(unet, DDPMScheduler())):
        text = message(ValueError, DiMPipeline.from_pipe, other)
        assert text.startswith("`pipeline` is ") and text.endswith("; valid is a DiMPipeline.")


# Folders


@pytest.mark.parametrize("name", ["./nothere", "../nothere", "/nothere", "/a/b/c", "a/b/c", "nothere/", "~/nothere",
                                  "", "a b", "C:\\x", Path("nothere"), Path("~/nothere"), "n" * 1000])  # fmt: skip
def test_a_folder_that_does_not_exist(name):
    text = message(FileNotFoundError, DiMPipeline.from_pretrained, name)
    assert text.startswith(f"`pretrained_model_name_or_path` {str(name)!r}"[:100]) and "does not exist" in text
    assert "valid is the folder of a saved pipeline, or the id of a repository on the Hub" in text


@pytest.mark.parametrize("name", [None, 3, True, b"x", ["x"], {}, float("nan"), Odd()], ids=lambda v: repr(v)[:20])
def test_values_that_are_not_paths_or_ids(name):
    text = message(ValueError, DiMPipeline.from_pretrained, name)
    assert "is neither a path nor an id; valid is the folder of a saved pipeline" in text


def test_a_file_in_place_of_a_folder(pipe, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for name in (file, str(file)):
        assert "is a file; valid is the folder" in message(NotADirectoryError, DiMPipeline.from_pretrained, name)
        expected = f"`save_directory` {file} is a file; valid is the path of a folder."
        assert message(NotADirectoryError, pipe.save_pretrained, name) == expected
    assert file.read_text() == "mine"


@pytest.mark.parametrize("name", [None, 3, b"x", []])
def test_a_folder_to_save_to(pipe, name):
    expected = f"`save_directory` is {name!r}; valid is the path of a folder."
    assert message(ValueError, pipe.save_pretrained, name) == expected


@pytest.mark.parametrize("variant", ["../up", "a/b", "a.b", "", "-a", 8, "a\n"])
def test_a_variant_that_is_no_part_of_a_file_name(pipe, tmp_path, variant):
    assert f"`variant` is {variant!r}; valid are letters" in message(
        ValueError, pipe.save_pretrained, tmp_path / "new", variant=variant
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["10 gigs", "5", "-1GB", "0KB", -1, 0, 1.5, True, b"1KB", []])
def test_a_size_of_files_that_diffusers_cannot_read(pipe, tmp_path, size):
    text = message(ValueError, pipe.save_pretrained, tmp_path / "new", max_shard_size=size)
    assert f"`max_shard_size` is {size!r}; valid are a number of bytes from 1" in text
    assert not (tmp_path / "new").exists()


def test_arguments_that_do_not_exist(pipe, tmp_path):
    text = message(TypeError, pipe.save_pretrained, tmp_path / "new", foo=1, repo_id="x")
    assert text == "`save_pretrained` takes no foo, repo_id without `push_to_hub`."
    assert not (tmp_path / "new").exists()
    pipe.save_pretrained(tmp_path)
    # diffusers would load the usual weights.
    text = message(TypeError, DiMPipeline.from_pretrained, tmp_path, varient="int4", storage="int8")
    assert text == "`from_pretrained` takes no storage, varient."


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", ["float16", "int8", torch.int8, torch.float8_e4m3fn, {"generator": "half"}, 16])
def test_dtypes(pipe, tmp_path, name, value):
    pipe.save_pretrained(tmp_path)
    text = message(ValueError, DiMPipeline.from_pretrained, tmp_path, **{name: value})
    assert text.startswith(f"`{name}` is or holds ") and "valid are torch.float32" in text


@pytest.mark.parametrize("variant", [5, True, b"x", []])
def test_a_variant_to_load(pipe, tmp_path, variant):
    pipe.save_pretrained(tmp_path)
    assert f"`variant` is {variant!r}" in message(ValueError, DiMPipeline.from_pretrained, tmp_path, variant=variant)


def test_a_source_file_without_a_pipeline_is_kept(pipe, tmp_path):
    (tmp_path / "pipeline.py").write_text("mine")
    assert "holds a pipeline.py without a pipeline" in message(FileExistsError, pipe.save_pretrained, tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("subfolder", [3, True, b"x", []])
def test_subfolder(pipe, tmp_path, subfolder):
    pipe.save_pretrained(tmp_path)
    expected = f"`subfolder` is {subfolder!r}; valid is the path of a folder, or None."
    assert message(ValueError, DiMPipeline.from_pretrained, tmp_path, subfolder=subfolder) == expected


def test_a_tilde_is_the_home_folder(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~/saved", Path("~/saved")):
        pipe.save_pretrained(name)
        assert (tmp_path / "saved" / "model_index.json").is_file()
        assert DiMPipeline.from_pretrained(name).class_names == pipe.class_names
    assert not os.path.exists("~")


@pytest.mark.parametrize("content", ["", "{", "[]", "3"])
@pytest.mark.parametrize("name", ["model_index.json", "generator/model.safetensors.index.json"])
def test_broken_json(pipe, tmp_path, name, content):
    pipe.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    assert message(OSError, DiMPipeline.from_pretrained, tmp_path).startswith(str(tmp_path / name))


# Many classes


def test_messages_stay_short_with_many_classes(tmp_path):
    names = [f"class number {label}, whose name is long" for label in range(5000)]
    pipe = DiMPipeline(DiMGenerator(5000, 8, 1, 6, 4, (8,), (0,)), names)
    text = message(ValueError, pipe, "Cot")
    assert "'class number 0" in text and "and 4,994 more" in text
    message(ValueError, pipe, [])
    message(ValueError, DiMPipeline, pipe.generator, names[:-1])
    other = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names[1:])})
    message(ValueError, pipe.to_dataset, 1, features=other)
    other = datasets.Features({f"image {number}": datasets.Image() for number in range(100)})
    message(ValueError, pipe.to_dataset, 1, features=other)
