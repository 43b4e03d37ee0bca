"""The generation script: what it writes, that it goes on, and that one folder has one writer."""

import subprocess
import sys

import datasets
import generate_dim
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import load_dataset
from huggingface_hub import DatasetCard
from processes import run_as_two

from dim_hf import DiMDataset, DiMGenerator, DiMLabeler, DiMPipeline
from dim_hf.files import lock_output_dir
from dim_hf.streams.dim_dataset import to_pil


NAMES = ["T-shirt", "Coat", "7"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    save_pipeline(folder, seed=0)
    return folder


def save_pipeline(folder, seed, channels=1):
    torch.manual_seed(seed)
    generator = DiMGenerator(3, 8, channels, 6, 4, (8,), (0,))
    DiMPipeline(generator, dict(enumerate(NAMES))).save_pretrained(folder)


@pytest.fixture
def generate(pipeline, tmp_path):
    def generate(*more):
        # Accelerate keeps its settings for the life of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = ["--pipeline", str(pipeline), "--output_dir", str(tmp_path / "out"), "--ipc", "7"]
        generate_dim.main(generate_dim.parse_args([*arguments, "--shard_size", "8", "--batch_size", "3", *more]))
        return tmp_path / "out"

    return generate


def content(folder):
    return {path.name: path.read_bytes() for path in (folder / "data").iterdir()}


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_shards_hold_the_images_of_the_stream(generate, tmp_path, channels, mode):
    pipeline = tmp_path / "pipeline"
    save_pipeline(pipeline, 0, channels)
    passes = []

    def record(module, inputs):
        if isinstance(module, DiMGenerator):
            passes.append(len(inputs[0]))

    with torch.nn.modules.module.register_module_forward_pre_hook(record):
        folder = generate("--seed", "3", "--pipeline", str(pipeline))
    # Whatever is asked for, so many images are made at once.
    assert max(passes) == 3 and sum(passes) == 21
    assert sorted(content(folder)) == [f"train-{n:05d}-of-00003.parquet" for n in range(3)]
    dataset = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset.features == datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    )
    assert dataset["label"] == [0, 1, 2] * 7
    stream = DiMDataset(DiMPipeline.from_pretrained(pipeline), 7, seed=3)
    images = torch.stack([item["pixel_values"] for item in stream])
    for row, (image, label) in enumerate(zip(dataset["image"], dataset["label"], strict=True)):
        wanted = to_pil(images[7 * label + row // 3][None])[0]
        assert image.mode == mode
        np.testing.assert_allclose(np.asarray(image, int), np.asarray(wanted, int), atol=1)


def test_images_that_the_teacher_rejects_are_drawn_again(generate, tmp_path):
    torch.manual_seed(0)
    pipe = DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), dict(enumerate(NAMES)), DiMLabeler(3, 8, 1, 4))
    pipe.save_pretrained(tmp_path / "pipeline")
    folder = generate("--pipeline", str(tmp_path / "pipeline"), "--max_attempts", "5", "--min_confidence", "0.34")
    dataset = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    pipe = DiMPipeline.from_pretrained(tmp_path / "pipeline")
    filtered, drawn = (
        DiMDataset(pipe, 7, seed=0, **more) for more in ({"max_attempts": 5, "min_confidence": 0.34}, {})
    )
    images = [np.asarray(image, int) for image in dataset["image"]]
    order = [7 * (row % 3) + row // 3 for row in range(21)]
    expected, others = (
        [np.asarray(to_pil(stream[i]["pixel_values"][None])[0], int) for i in order] for stream in (filtered, drawn)
    )
    np.testing.assert_allclose(images, expected, atol=1)
    assert not np.allclose(images, others, atol=1)
    assert (
        "that a teacher took for another class, or gave its class a probability below 0.34, was drawn again, up to 5 "
        "draws in all." in (folder / "README.md").read_text()
    )


def test_a_finished_shard_is_not_made_again_and_the_rest_is_the_same(generate):
    folder = generate()
    first = content(folder)
    lost = folder / "data" / "train-00001-of-00003.parquet"
    kept = folder / "data" / "train-00000-of-00003.parquet"
    lost.rename(lost.with_name(f".{lost.name}.incomplete"))
    written = kept.stat().st_mtime_ns
    generate()
    assert content(folder) == first and kept.stat().st_mtime_ns == written


def test_another_setting_or_other_weights_are_refused_for_the_same_folder(generate, tmp_path):
    first = content(generate())
    save_pipeline(tmp_path / "other", seed=1)
    for more, named in ((["--seed", "1"], "`seed`"), (["--pipeline", str(tmp_path / "other")], "`weights`")):
        with pytest.raises(FileExistsError, match=rf"holds what was made with other settings \({named}\)"):
            generate(*more)
    assert content(tmp_path / "out") == first


def test_a_teacher_that_is_not_asked_does_not_count_and_names_do(generate, tmp_path):
    save_pipeline(tmp_path / "pipe", seed=0)
    pipe = DiMPipeline.from_pretrained(tmp_path / "pipe")
    first = content(generate("--pipeline", str(tmp_path / "pipe")))
    DiMPipeline(pipe.generator, dict(enumerate(NAMES)), DiMLabeler(3, 8, 1, 4)).save_pretrained(tmp_path / "pipe")
    assert content(generate("--pipeline", str(tmp_path / "pipe"))) == first
    DiMPipeline(pipe.generator, {0: "one", 1: "two", 2: "three"}).save_pretrained(tmp_path / "renamed")
    with pytest.raises(FileExistsError, match=r"other settings \(`class_names`\)"):
        generate("--pipeline", str(tmp_path / "renamed"))


def test_classes_of_the_command_line(generate, tmp_path):
    folder = generate("--class_labels", "7", "1")
    dataset = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert dataset["label"] == [1, 2] * 7 and dataset.features["label"].names == NAMES


def test_one_folder_has_one_writer(generate, tmp_path):
    (tmp_path / "out").mkdir()
    holder = f"""
import sys
from filelock import FileLock
(lock := FileLock({str(tmp_path / "out" / ".lock")!r})).acquire()
print("locked", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(FileExistsError, match="`--output_dir` .*out is being written to by another process"):
            generate()
        assert not (tmp_path / "out" / "data").exists()
        # However it ends.
        process.kill()
    assert len(content(generate())) == 3
    with lock_output_dir(tmp_path / "out"), pytest.raises(FileExistsError):
        lock_output_dir(tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ("--ipc 0", "a whole number from 1 to 4,294,967,295"),
        ("--ipc 1099511627776", "a whole number from 1 to 4,294,967,295"),
        ("--shard_size 0", "a whole number from 1 to 1,000,000,000"),
        ("--batch_size 9223372036854775808", "a whole number from 1 to 1,000,000,000"),
        ("--seed 9223372036854775808", "a whole number from 0 to 9,223,372,036,854,775,807"),
        ("--max_attempts 0", "a whole number from 1 to 1,000,000,000"),
        ("--noise_scale nan", "a number above 0, up to 1e30"),
        ("--noise_scale 0", "a number above 0, up to 1e30"),
    ],
)
def test_wrong_numbers_are_refused_by_argparse(capsys, arguments, valid):
    flag, value = arguments.split()
    with pytest.raises(SystemExit):
        generate_dim.parse_args([flag, value])
    assert f"error: argument {flag}: '{value}' is not {valid}\n" in capsys.readouterr().err


# What is wrong, and the message; `{tmp}` holds the folders of `odd_folders`.
BAD = [
    ("--ipc 1000000000 --shard_size 1000000000", "MiB free; this run needs"),
    ("--max_attempts 2", "`max_attempts` is 2, which needs a teacher"),
    ("--min_confidence 0.5", "`--min_confidence` has no effect without `--max_attempts` above 1"),
    ("--class_labels Cot", "holds 'Cot'; valid are"),
    ("--class_labels 2²", "holds '2²'; valid are"),
    ("--hub_dataset_id me/x", "`--hub_dataset_id` has no effect without `--push_to_hub`"),
    ("--pipeline /", "`--pipeline` / holds no pipeline"),
    ("--pipeline {tmp}/file", "`--pipeline` .*file is a file; valid is the folder of a pipeline"),
    ("--pipeline {tmp}/begun", "`--pipeline` .*begun holds no pipeline: its run has not been validated yet"),
    ("--pipeline {tmp}/theirs", r"`--pipeline` .*theirs holds no pipeline \(model_index.json\)"),
    ("--pipeline {tmp}/nowhere", "`--pipeline` .*nowhere is not a folder, and not an id on the Hub"),
    ("--pipeline out/nowhere", "`--pipeline` out/nowhere cannot be loaded: .* HF_HUB_OFFLINE"),
    (
        "--output_dir {tmp}/theirs",
        "`--output_dir` .*theirs holds README.md, data, options.json, which generate_dim.py",
    ),
    (
        "--output_dir {tmp}/begun",
        "`--output_dir` .*begun holds options.json, which generate_dim.py would overwrite but did not",
    ),
    ("--output_dir {tmp}/file", "`--output_dir` .*file cannot be written to: Not a directory"),
    ("--output_dir {tmp}/torn", "torn/options.json is damaged, it is not JSON"),
    ("--output_dir {tmp}/list", "list/options.json is damaged"),
]


def odd_folders(root):
    for name in ("begun", "theirs/data", "torn", "list"):
        (root / name).mkdir(parents=True)
    (root / "file").touch()
    (root / "begun" / "options.json").write_text('{"preset": "base", "data_fingerprint": "0"}')
    for name in ("README.md", "options.json", "data/mine.parquet", "notes.txt"):
        (root / "theirs" / name).write_text("{}")
    for name, content in (("torn", '{"weig'), ("list", "[1]")):
        (root / name / ".made_by").write_text("generate_dim.py\n")
        (root / name / "options.json").write_text(content)


@pytest.mark.parametrize(("more", "message"), BAD, ids=[more[:60] for more, _ in BAD])
def test_refusals_before_anything_is_made(generate, tmp_path, monkeypatch, more, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    odd_folders(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises((ValueError, OSError), match=message) as refusal:
        generate(*more.format(tmp=tmp_path).split())
    assert len(str(refusal.value).replace(str(tmp_path), "")) <= 600
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_the_card_names_a_hundred_of_many_classes():
    card = str(generate_dim.dataset_card(generate_dim.parse_args([]), 1, [f"class {label}" for label in range(1000)]))
    assert "class 99 and 900 more)" in card and "class 100" not in card


def test_what_the_user_wrote_into_the_card_stays(generate):
    folder = generate()
    card = folder / "README.md"
    assert "seed 0" in card.read_text()
    mine = (
        card.read_text().replace("# Generated images", "# My images\n\nFor the course.").replace("- dim_hf", "- mine")
    )
    card.write_text(mine)
    generate()
    assert "# My images\n\nFor the course." in card.read_text() and "# Generated images" not in card.read_text()
    assert DatasetCard.load(card).data.tags == ["mine", "synthetic-data", "dim_hf"]
    card.write_text("Only words.")
    generate()
    assert "Only words." in card.read_text() and DatasetCard.load(card).data.tags == ["dim_hf", "synthetic-data"]
    once = card.read_text()
    generate()
    assert card.read_text() == once
    card.write_text("---\ntags: [a\n---\nmine")
    with pytest.raises(ValueError, match=r"README.md has metadata that is not YAML \(while parsing"):
        generate("--seed", "5")
    assert card.read_text() == "---\ntags: [a\n---\nmine"


def test_a_folder_of_a_release_without_a_marker_goes_on(generate):
    folder = generate()
    assert (folder / ".made_by").read_text() == "generate_dim.py\n"
    (folder / ".made_by").unlink()
    first = content(folder)
    (folder / "data" / "train-00001-of-00003.parquet").unlink()
    assert content(generate()) == first
    assert sorted(path.name for path in folder.iterdir()) == [".lock", ".made_by", "README.md", "data", "options.json"]


def test_a_push_without_a_token_is_refused(generate, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match="`--push_to_hub` needs a token"):
        generate("--push_to_hub")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_share_the_shards(generate, pipeline, tmp_path):
    alone = content(generate("--shard_size", "5"))
    run_as_two([
        generate_dim.__file__, "--pipeline", pipeline, "--output_dir", tmp_path / "two", "--ipc", "7", "--shard_size",
        "5", "--batch_size", "3",
    ])  # fmt: skip
    assert content(tmp_path / "two") == alone


@pytest.mark.parametrize("file", ["cat/1.JPG", "train.parquet", "photos.zip"])
def test_images_do_not_go_among_other_data(generate, tmp_path, file):
    path = tmp_path / "out" / file
    path.parent.mkdir(parents=True)
    path.write_text("theirs")
    with pytest.raises(FileExistsError, match=rf"`--output_dir` .* holds other data \({file}\), in whose place"):
        generate()
    assert [each for each in (tmp_path / "out").rglob("*") if each.is_file()] == [path]
    path.unlink()
    # What is not data may be there, and later anything.
    (tmp_path / "out" / "LICENSE").write_text("mine")
    generate()
    path.parent.mkdir(exist_ok=True)
    path.write_text("theirs")
    generate()


def test_a_class_that_is_named_twice_is_refused(generate, tmp_path):
    with pytest.raises(ValueError, match="`--class_labels` names Coat more than once"):
        generate("--class_labels", "Coat", "1")
    assert not (tmp_path / "out").exists()
