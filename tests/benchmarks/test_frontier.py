"""The frontier of accuracy and bytes, run on tiny pipelines of the embedded digits."""

import json
from types import SimpleNamespace

import frontier
import protocol_c
import pytest
import torch
from PIL import Image
from transformers import ResNetConfig

from dim_hf.classifiers.external import find_source, plan
from dim_hf.data import load_image_data
from dim_hf.evaluation.results import EVALUATION_FORMAT
from dim_hf.evaluation.tables import Row, results_table
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import module_bytes, module_digest, stored_form


def make_pipeline(folder, width=4, size=8, first="0"):
    torch.manual_seed(0)
    generator = DiMGenerator(10, size, 1, 4, 4, (width,), (0,))
    DiMPipeline(generator, {0: first} | {label: str(label) for label in range(1, 10)}).save_pretrained(folder)
    return module_bytes(generator)


def add_teacher(folder):
    torch.manual_seed(1)
    pipeline = DiMPipeline.from_pretrained(folder)
    DiMPipeline(pipeline.generator, pipeline.config.id2label, DiMLabeler(10, 8, 1, 4)).save_pretrained(folder)
    return module_bytes(DiMPipeline.from_pretrained(folder).labeler)


def run(folder, *more):
    arguments = ["--output_dir", str(folder / "out"), "--cache_dir", str(folder / "cache"), "--epochs", "1"]
    arguments += ["--ipc", "1", "--classifiers", "convnet3", "--seeds", "0"]
    return frontier.main(frontier.parse_args([*arguments, *more]))


@pytest.mark.slow
def test_the_frontier_is_drawn_and_goes_on_where_it_ended(tmp_path, capsys):
    small, large = make_pipeline(tmp_path / "small"), make_pipeline(tmp_path / "large", 8)
    rows = run(tmp_path, "--pipelines", str(tmp_path / "small"))
    named = [row.source.split(",")[0] for row in rows]
    assert named == ["generated images", *["real subset of equal bytes"] * 2, "real images"]
    generated, png, coded, limit = rows
    assert generated.bytes == small and generated.source == "generated images, small"
    assert png.bytes <= small and coded.bytes <= small and limit.bytes > 10 * small
    results = tmp_path / "out" / "results.jsonl"
    assert len(results.read_text().splitlines()) == 4
    text = (tmp_path / "out" / "frontier.md").read_text()
    assert results_table(rows) in text
    points = [100 * (generated.mean - row.mean) for row in (png, coded)]
    assert (
        f"- generated images, small, {small:,} bytes, convnet3: {points[0]:+.2f} to {png.source}, {points[1]:+.2f} to "
        f"{coded.source}\n"
    ) in text
    with Image.open(tmp_path / "out" / "frontier.png") as plot:
        assert plot.format == "PNG" and plot.width > 500

    # An interruption cuts the last line; only what it was of is run again, beside what is new.
    results.write_bytes(results.read_bytes()[:-20])
    capsys.readouterr()
    budgets = [str(size / 1e6) for size in (small, large, 2 * large)]
    more = ["--pipelines", str(tmp_path / "large"), str(tmp_path / "small"), "--budgets", *budgets]
    again = run(tmp_path, *more, "--published", "cifar10")
    shared = [row for row in again if row.bytes in {row.bytes for row in rows}]
    assert [row.accuracies for row in shared] == [row.accuracies for row in rows]
    ran = [line for line in capsys.readouterr().out.splitlines() if line.endswith(" %") and "seed 0" in line]
    # The limit again; the larger pipeline; PNG and best codec of two more sizes.
    assert len(ran) == 6 and sum("real images, streamed" in line for line in ran) == 1
    assert len(again) == 9 and [row.bytes for row in again[:2]] == [small, large]
    whole = [json.loads(line) for line in results.read_text().splitlines() if line.endswith("}")]
    assert len(whole) == 3 + 6
    assert "GSDD, arXiv 2509.26219" in (tmp_path / "out" / "frontier.md").read_text()


def test_a_generator_is_compared_with_the_smallest_budget_that_it_fits_in(tmp_path):
    def row(curve, budget, accuracy):
        source = SimpleNamespace()
        table = Row(f"{curve}, {budget}", "convnet3", 10, 1, 1, budget, 10, [accuracy], 1.0, "B", "hard", True, False)
        return frontier.Point(curve, source, budget), table

    ours = [row(frontier.OURS, size, 0.8) for size in (100, 101, 301)]
    real = [row(curve, size, 0.7) for size in (100, 300) for curve in (frontier.PNG, frontier.CODED)]
    lines = frontier.describe_margins([*ours, *real])
    assert lines == [
        f"- {frontier.OURS}, {size}, {size} bytes, convnet3: +10.00 to {frontier.PNG}, {budget}, +10.00 to "
        f"{frontier.CODED}, {budget}"
        for size, budget in ((100, 100), (101, 300))
    ]


@pytest.mark.slow
def test_each_form_of_storage_is_a_size_of_its_own(tmp_path):
    make_pipeline(tmp_path / "small", 16)
    rows = run(tmp_path, "--pipelines", str(tmp_path / "small"), "--storage", "float16", "int4")
    pipeline = DiMPipeline.from_pretrained(tmp_path / "small")
    forms = {form: stored_form(pipeline, form).generator for form in ("int4", "float16")}
    ours = [row for row in rows if not row.control]
    assert [(row.source, row.bytes) for row in ours] == [
        (f"generated images, small, {form}", module_bytes(generator)) for form, generator in forms.items()
    ]
    # Weights that differ are jobs that differ, and each has as many bytes of real images beside it.
    jobs = [json.loads(line)["job"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {job["content"] for job in jobs if job["source"] == "generated"} == set(map(module_digest, forms.values()))
    assert {job["format"] for job in jobs} == {EVALUATION_FORMAT}
    budgets = {int(job["content"].split("/")[1]) for job in jobs if job["source"] == "equal_bytes"}
    assert budgets == set(map(module_bytes, forms.values()))


@pytest.mark.slow
def test_pipelines_in_folders_of_one_name_are_told_apart(tmp_path):
    folders = [str(tmp_path / parent / "small") for parent in ("a", "b")]
    for width, folder in zip((4, 8), folders, strict=True):
        make_pipeline(folder, width)
    rows = run(tmp_path, "--pipelines", *folders, "--budgets", "0.001")
    assert [row.source for row in rows if not row.control] == [f"generated images, {folder}" for folder in folders]


@pytest.mark.slow
def test_a_teacher_filters_and_its_bytes_count(tmp_path):
    plain, taught = make_pipeline(tmp_path / "plain"), make_pipeline(tmp_path / "taught", 8)
    teacher = add_teacher(tmp_path / "taught")
    folders = [str(tmp_path / name) for name in ("plain", "taught")]
    rows = run(tmp_path, "--pipelines", *folders, "--max_attempts", "1", "3", "3")
    assert [(row.source, row.bytes) for row in rows if not row.control] == [
        ("generated images, plain", plain),
        ("generated images, taught", taught),
        ("generated images, taught, teacher's filter (3 draws)", taught + teacher),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_attempts", "1", "0"], "`--max_attempts` has 0; each must be at least 1"),
        (["--max_attempts", "8"], "`--max_attempts` 8 takes a teacher, which no pipeline here has"),
        (["--budgets", "1", "0"], "`--budgets` has 0 MB; valid are finite numbers from"),
        (["--budgets", "nan"], "`--budgets` has nan MB"),
        (["--budgets", "1", "inf"], "`--budgets` has inf MB"),
        (["--budgets", "1e-9"], "`--budgets` has 1e-09 MB"),
        (["--test_split", "train"], "`--test_split` is 'train'"),
        (["--train_split", "train+test"], r"`--test_split` is 'test', and `--train_split`, .*, 'train\+test'"),
        (["--seeds", "0", "0"], "`--seeds` names 0, 0; each must be given once"),
        (["--classifiers", "convnet3", "convnet3"], "`--classifiers` names convnet3, convnet3; each must"),
        (["--ipc", "0"], "`--ipc` is 0; it must be at least 1"),
        (["--seeds", "-1"], "`--seeds` is -1; it must be at least 0"),
        (["--pipelines", "nowhere"], "`--pipelines` has nowhere, which holds no pipeline"),
        (["--epochs", "0"], "`--epochs` is 0; it must be at least 1"),
        (["--storage", "int4"], "`--storage` int4 has no effect without `--pipelines`"),
    ],
)
def test_wrong_settings_are_named_before_any_work(tmp_path, arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        run(tmp_path, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_test_split_that_holds_the_training_images_is_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        Image.new("L", (8, 8), ord(name)).save(tmp_path / "data" / "train" / name / "0.png")
    # The same split by another name.
    with pytest.raises(ValueError, match="`--test_split` Train of .* holds the images of `--train_split` train"):
        run(tmp_path, "--dataset_name", str(tmp_path / "data"), "--test_split", "Train")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script", ["frontier", "protocol_c"])
def test_a_split_that_a_pipeline_was_trained_on_is_refused(script, tmp_path):
    make_pipeline(tmp_path / "swapped")
    flag = "--pipelines" if script == "frontier" else "--pipeline"
    arguments = [flag, str(tmp_path / "swapped"), "--output_dir", str(tmp_path / "out")]
    module = {"frontier": frontier, "protocol_c": protocol_c}[script]
    copy = {"data_fingerprint": load_image_data("digits", "test").fingerprint}
    for options in (
        {"dataset_name": "digits", "train_split": "test"},
        {"dataset_name": "digits", "train_split": "train+test"},
        # The same images by another name.
        {"dataset_name": "me/copy", "train_split": "train"} | copy,
    ):
        (tmp_path / "swapped" / "options.json").write_text(json.dumps(options))
        with pytest.raises(ValueError, match="`--test_split` is 'test', which the pipeline .*swapped was trained on"):
            module.main(module.parse_args(arguments))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_local_classifier_that_has_changed_is_measured_again(tmp_path):
    model, results = tmp_path / "model", tmp_path / "out" / "results.jsonl"
    more = ["--budgets", "0.001", "--classifiers", "convnet3", f"transformers/{model}"]
    for width in (8, 4):
        find_source.cache_clear()
        plan.cache_clear()
        shape = {"hidden_sizes": [width, 8], "depths": [1, 1], "layer_type": "basic"}
        ResNetConfig(embedding_size=8, **shape).save_pretrained(model)
        run(tmp_path, *more)
    jobs = [json.loads(line)["job"] for line in results.read_text().splitlines()]
    # Other names mean the same everywhere, and their keys are those of before.
    assert [job["classifier"] for job in jobs if "local" not in job] == ["convnet3"] * 3
    assert len(jobs) == 9 and len({job["local"] for job in jobs if "local" in job}) == 2


def test_pipelines_of_different_images_cannot_be_compared(tmp_path):
    make_pipeline(tmp_path / "small")
    make_pipeline(tmp_path / "sixteen", size=16)
    with pytest.raises(ValueError, match=r"\[\(8, 1, 10\), \(16, 1, 10\)\]"):
        run(tmp_path, "--pipelines", str(tmp_path / "small"), str(tmp_path / "sixteen"))


def test_a_pipeline_of_other_classes_is_refused(tmp_path):
    make_pipeline(tmp_path / "digits")
    make_pipeline(tmp_path / "other", first="zero")
    with pytest.raises(ValueError, match=r"has the classes 0, 1, .*; of `--pipelines`, one generates zero, 1"):
        run(tmp_path, "--pipelines", str(tmp_path / "digits"), str(tmp_path / "other"))
