"""The evaluation script, run for real on a tiny pipeline of the digits."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings

import evaluate_dim
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from processes import run_as_two

from dim_hf.audit.report import AUDIT_FORMAT
from dim_hf.data import holdout, load_image_data
from dim_hf.evaluation.fixed_sets import latents_settings, load_latents, save_latents
from dim_hf.evaluation.metrics import label_robust_score
from dim_hf.evaluation.names import BEFORE_MATCHING, GENERATED, REAL
from dim_hf.evaluation.results import EVALUATION_FORMAT
from dim_hf.files import lock_output_dir
from dim_hf.hub.card import model_card
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import module_bytes, weights_digest


DIGITS = {label: str(label) for label in range(10)}


def make_pipeline(folder, seed=0, id2label=DIGITS, **config):
    torch.manual_seed(seed)
    settings = {"num_classes": len(id2label), "sample_size": 8, "out_channels": 1, "latent_dim": 4}
    generator = DiMGenerator(**settings | {"block_out_channels": (4,), "layers_per_block": (0,)} | config)
    DiMPipeline(generator, id2label).save_pretrained(folder)


@pytest.fixture(autouse=True, scope="module")
def float32():
    """What is chosen by itself on any processor, so that the tests are the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate_dim, "bfloat16_unit", lambda: None)
        yield


@pytest.fixture
def evaluate(tmp_path):
    make_pipeline(tmp_path / "run")
    make_pipeline(tmp_path / "run" / "before_matching", seed=1)

    def evaluate(*more):
        # Accelerate keeps its settings for the life of a process.
        AcceleratorState._reset_state(reset_partial_state=True)
        arguments = [
            "--pipeline", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--classifiers", "convnet3",
            "--seeds", "0", "1", "--ipc", "2", "--epochs", "2",
        ]  # fmt: skip
        return evaluate_dim.main(evaluate_dim.parse_args([*arguments, *more]))

    return evaluate


def test_rows_have_equal_steps_and_say_what_they_saw(evaluate, tmp_path):
    rows = {row.source: row for row in evaluate("--train_batch_size", "8")}
    usual = [REAL[kind] for kind in REAL if kind != "equal_bytes_lossy"]
    assert list(rows) == [GENERATED, BEFORE_MATCHING, *usual]
    # 20 images per epoch in batches of at most 8: 3 steps in each of 2 epochs.
    assert {row.steps for row in rows.values()} == {6}
    seen = {source: row.distinct_images for source, row in rows.items()}
    # Of a larger subset, four images per class are drawn.
    assert 20 < seen.pop(REAL["equal_bytes"]) <= 40
    assert list(seen.values()) == [40, 40, 40, 20, 40]
    assert all(len(row.accuracies) == 2 for row in rows.values())
    assert [source for source, row in rows.items() if not row.control] == [GENERATED]
    generated, subset, equal, whole = (
        rows[source].bytes for source in (GENERATED, REAL["random"], REAL["equal_bytes"], REAL["whole"])
    )
    weights = (tmp_path / "run" / "generator" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert generated == weights
    assert 0 < subset < whole / 50
    # One image more would be more than the weights.
    assert generated - 200 < equal <= generated


def test_the_report_has_the_audit_of_these_weights(evaluate, tmp_path):
    run = tmp_path / "run"
    weights = weights_digest(DiMPipeline.from_pretrained(run))
    finding = {"level": "leak", "text": "It knows <everyone>."}
    audit = {"format": AUDIT_FORMAT, "weights": weights, "privacy": None, "copies": None, "membership": None,
             "folder": None, "findings": [finding]}  # fmt: skip
    (run / "audit").mkdir()
    page = run / "evaluation" / "report.html"
    for told in (True, False):
        (run / "audit" / "audit.json").write_text(json.dumps(audit if told else audit | {"weights": "0"}))
        evaluate("--controls")
        assert ("It knows &lt;everyone&gt;." in page.read_text()) == told
        assert ("What this gives away" in page.read_text()) == told


def test_the_output_is_complete_and_agrees_with_the_table(evaluate, tmp_path, capsys):
    rows = evaluate("--controls")
    capsys_out = capsys.readouterr().out
    folder = tmp_path / "run" / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        ".made_by",
        "metrics.json",
        "report.html",
        "report.md",
        "results.jsonl",
        "samples.png",
    ]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["rows"][0]["accuracies"] == rows[0].accuracies
    assert metrics["options"]["epochs"] == [2] and metrics["environment"]["torch"] == torch.__version__
    for name in ("report.md", "report.html"):
        assert f"{100 * rows[0].mean:.2f}" in (folder / name).read_text()
        assert name in capsys_out
    results = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for result in results:
        confusion = torch.tensor(result["confusion"])
        assert confusion.sum() == 360 and confusion.trace().item() / 360 == result["accuracy"]
        assert torch.equal(confusion.sum(dim=1), load_image_data("digits", "test").labels.bincount())
    assert "Confusion" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_the_best_codec_is_searched_for_once(evaluate, tmp_path, capsys):
    given = evaluate("--controls", "equal_bytes_lossy", "--codec", "LZMA, 4 colours")
    assert [row.source for row in given] == [GENERATED, "real subset of equal bytes, LZMA, 4 colours"]
    searches = tmp_path / "run" / "evaluation" / "codecs.jsonl"
    assert not searches.exists() and "best of" not in capsys.readouterr().out
    found = evaluate("--controls", "equal_bytes_lossy")
    assert "codecs for" in capsys.readouterr().out
    records = [json.loads(line) for line in searches.read_text().splitlines()]
    train = load_image_data("digits", cache_dir=tmp_path / "cache")
    assert {(r["job"]["budget"], r["job"]["data"]) for r in records} == {(given[0].bytes, train.fingerprint)}
    assert found[1].bytes <= found[0].bytes and found[1].bits_per_class == 8 * found[1].bytes / 10
    text = searches.read_bytes()
    assert evaluate("--controls", "equal_bytes_lossy") == found and searches.read_bytes() == text


def test_a_second_evaluation_gives_the_same_figures(evaluate, tmp_path):
    first = [row.accuracies for row in evaluate()]
    assert [row.accuracies for row in evaluate("--output_dir", str(tmp_path / "again"))] == first


def test_a_generator_that_matching_did_not_change_is_trained_on_once(evaluate, tmp_path):
    rows = evaluate("--controls", "before_matching", "--before_matching", str(tmp_path / "run"))
    assert [row.source for row in rows] == [GENERATED, BEFORE_MATCHING]
    assert rows[0].accuracies == rows[1].accuracies
    assert "Confusion" in (tmp_path / "run" / "evaluation" / "report.html").read_text()
    assert len((tmp_path / "run" / "evaluation" / "results.jsonl").read_text().splitlines()) == 2


def test_what_is_finished_is_not_run_again(evaluate, tmp_path):
    results = tmp_path / "run" / "evaluation" / "results.jsonl"
    first = {row.source: row.accuracies for row in evaluate("--controls", "random")}
    lines = results.read_text().splitlines()
    assert len(lines) == 4
    # An interruption has cut the last line short, and a control and a seed are added.
    results.write_text("\n".join(lines[:3]) + "\n" + lines[3][:20])
    again = {row.source: row.accuracies for row in evaluate("--controls", "random", "whole", "--seeds", "0", "1", "2")}
    assert all(again[source][:2] == accuracies for source, accuracies in first.items())
    assert len(results.read_text().splitlines()) == 3 + 1 + 1 + 2 + 3
    # Another generator and another recipe are other jobs.
    make_pipeline(tmp_path / "run", seed=5)
    evaluate("--controls", "random", "--epochs", "3")
    assert len(results.read_text().splitlines()) == 3 + 1 + 1 + 2 + 3 + 4


def test_each_ipc_has_its_epochs(evaluate, tmp_path):
    more = ["--protocols", "B", "C", "--controls", "streamed", "--seeds", "0", "--train_batch_size", "10"]
    rows = evaluate(*more, "--ipc", "3", "1", "--epochs", "1", "4")
    # 30 and 10 images per epoch: 3 batches for one epoch and 1 for each of four.
    assert [(row.ipc, row.protocol, row.steps, row.distinct_images) for row in rows] == [
        *((3, name, 3, 30) for name in ("B", "B", "C", "C")),
        *((1, name, 4, 40) for name in ("B", "B", "C", "C")),
    ]
    folder = tmp_path / "run" / "evaluation"
    assert "Epochs of training: 4 at ipc 1, 1 at ipc 3." in (folder / "report.md").read_text()
    # The same jobs whatever the order: one epoch for all leaves those of ipc 3 as they are.
    evaluate(*more, "--ipc", "1", "3", "--epochs", "1")
    assert len((folder / "results.jsonl").read_text().splitlines()) == len(rows) + 4
    assert "Epochs of training: 1." in (folder / "report.md").read_text()
    # The matrix is that of the most images.
    assert "Generated images, convnet3, ipc 3: percent" in (folder / "report.html").read_text()


def test_validation_scores_the_very_images_that_training_held_out(evaluate, tmp_path):
    training = {"train_split": "train", "max_train_samples": 500, "validation_fraction": 0.2, "seed": 3}
    used = load_image_data("digits", cache_dir=tmp_path / "cache", max_samples=500)
    training |= {"dataset_name": "digits", "data_fingerprint": used.fingerprint}
    (tmp_path / "run" / "options.json").write_text(json.dumps(training))
    args = evaluate_dim.parse_args(["--validation", "--cache_dir", str(tmp_path / "cache")])
    pipeline = DiMPipeline.from_pretrained(tmp_path / "run")
    train, test = evaluate_dim.load_splits(args, pipeline, Accelerator(), training)
    for found, expected in zip((train, test), holdout(used, 0.2, seed=3), strict=True):
        assert torch.equal(found.images, expected.images) and torch.equal(found.labels, expected.labels)
    evaluate("--validation", "--controls", "random")
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert f"Accuracy on the {len(test)} images of the part of train that training held out" in report
    training["max_train_samples"] = 400
    (tmp_path / "run" / "options.json").write_text(json.dumps(training))
    with pytest.raises(ValueError, match="`--validation` .* `--dataset_name` digits is not the data that it was tr"):
        evaluate("--validation")


def test_an_evaluation_on_other_data_says_so(evaluate, tmp_path):
    own = load_image_data("digits", cache_dir=tmp_path / "cache")
    options = {"dataset_name": "ylecun/mnist", "data_fingerprint": own.fingerprint}
    path = tmp_path / "run" / "options.json"
    path.write_text(json.dumps(options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The same images under another name, and fewer of the same name.
        evaluate("--controls", "--seeds", "0")
        path.write_text(json.dumps(options | {"dataset_name": "digits"}))
        same = options | {"dataset_name": "digits", "train_split": "train"}
        path.write_text(json.dumps(same))
        evaluate("--controls", "--seeds", "0", "--max_train_samples", "50")
    path.write_text(json.dumps(same | {"data_fingerprint": "0", "label_column": "kind"}))
    told = "images or labels of split 'train' of `--dataset_name` digits are not those .* --label_column kind.*changed"
    with pytest.warns(UserWarning, match=told):
        evaluate("--controls", "--seeds", "0")
    path.write_text(json.dumps(options | {"data_fingerprint": "0"}))
    with pytest.warns(
        UserWarning, match="`--dataset_name` digits does not seem to be the data .* trained on, ylecun/mnist"
    ):
        evaluate("--controls", "--seeds", "0")
    assert "of split test of digits;" in (tmp_path / "run" / "evaluation" / "report.md").read_text()
    (result,) = model_card(DiMPipeline.from_pretrained(tmp_path / "run"), "me/digits").data.eval_results
    assert result.dataset_type == "digits"


@pytest.mark.parametrize("trained", ["test", "train+test"])
def test_a_split_that_the_pipeline_was_trained_on_is_refused(evaluate, tmp_path, trained):
    options = {"dataset_name": "digits", "train_split": trained}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="`--test_split` is 'test', which the pipeline .* was trained on"):
        evaluate()
    # Of another data set, a split of that name is another one, unless it holds the same images.
    options |= {"dataset_name": "ylecun/mnist", "data_fingerprint": load_image_data("digits", "test").fingerprint}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="`--test_split` is 'test', which the pipeline .* was trained on"):
        evaluate()


def test_a_split_that_the_pipeline_was_trained_on_a_sample_of_is_refused(evaluate, tmp_path):
    sample = load_image_data("digits", "test", max_samples=120)
    options = {"dataset_name": "my/digits", "max_train_samples": 120, "data_fingerprint": sample.fingerprint}
    (tmp_path / "run" / "options.json").write_text(json.dumps(options))
    with pytest.raises(ValueError, match="`--test_split` is 'test', which the pipeline .* was trained on"):
        evaluate()
    # Training images are those of the sample too, whatever the name.
    sample = load_image_data("digits", "train", max_samples=120)
    (tmp_path / "run" / "options.json").write_text(json.dumps(options | {"data_fingerprint": sample.fingerprint}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate("--controls", "--seeds", "0")


def test_test_images_that_are_training_images_too_are_told_of(evaluate, tmp_path):
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / "data" / split / str(label)
            folder.mkdir(parents=True)
            for number in range(3):
                shade = 3 * label + number + (0 if split == "train" or label == 4 else 100)
                Image.new("L", (8, 8), shade).save(folder / f"{number}.png")
    with pytest.warns(UserWarning, match="3 of the 30 images that classifiers are scored on are also among"):
        evaluate("--dataset_name", str(tmp_path / "data"), "--controls", "--seeds", "0", "--ipc", "1")


def test_draws_are_chosen_on_what_training_held_out(evaluate, tmp_path):
    pipeline = DiMPipeline.from_pretrained(tmp_path / "run")
    torch.manual_seed(0)
    pipeline = DiMPipeline(pipeline.generator, DIGITS, DiMLabeler(10, 8, 1, width=4))
    pipeline.save_pretrained(tmp_path / "run")
    used = load_image_data("digits", cache_dir=tmp_path / "cache")
    training = {"train_split": "train", "max_train_samples": None, "validation_fraction": 0.2, "seed": 0}
    training |= {"dataset_name": "digits", "data_fingerprint": used.fingerprint}
    (tmp_path / "run" / "options.json").write_text(json.dumps(training))
    draws = ["--noise_scale", "1", "1.5", "--max_attempts", "1", "3", "--min_confidence", "0", "0.2"]
    rows = evaluate("--controls", "--seeds", "0", "--validation", *draws)
    filters = "", "teacher's filter (3 draws)", "teacher's filter (3 draws, confidence 0.2)"
    titles = [", ".join(filter(None, (GENERATED, noise, name))) for noise in ("", "noise x 1.5") for name in filters]
    assert [row.source for row in rows] == titles
    weights, teacher = (module_bytes(network) for network in (pipeline.generator, pipeline.labeler))
    assert [row.bits_per_class for row in rows] == [8 * each / 10 for each in [weights, *[weights + teacher] * 2] * 2]
    folder = tmp_path / "run" / "evaluation"
    jobs = [json.loads(line)["job"] for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [(job.get("noise_scale"), job.get("max_attempts"), job.get("min_confidence")) for job in jobs] == [
        *((None, None, None), (None, 3, None), (None, 3, 0.2)), *((1.5, None, None), (1.5, 3, None), (1.5, 3, 0.2))
    ]  # fmt: skip
    report = (folder / "report.md").read_text()
    assert all(f"| {title} " in report for title in titles) and "the latents are multiplied by that" in report
    # The one that was chosen is scored on the test split, and its name is on the card.
    rows = evaluate("--controls", "--seeds", "0", "--noise_scale", "1.5")
    assert [row.source for row in rows] == [f"{GENERATED}, noise x 1.5"]
    (result,) = model_card(DiMPipeline.from_pretrained(tmp_path / "run"), "me/digits").data.eval_results
    assert result.metric_name == "accuracy of convnet3 trained on 2 images per class and epoch, noise x 1.5"


def test_labels_of_the_test_split_mean_what_those_of_train_do(tmp_path):
    make_pipeline(tmp_path / "run")
    folder = tmp_path / "data" / "data"
    folder.mkdir(parents=True)
    splits = {"train": "0123456789", "test": "987654321", "other": "012z", "again": "0123456789"}
    for split, names in splits.items():
        # The image tells the place of its class among the digits.
        images = [Image.fromarray(np.full((8, 8), "0123456789z".index(name), np.uint8)) for name in names]
        features = Features({"image": ImageFeature(), "label": Value("string")})
        content = Dataset.from_dict({"image": images, "label": list(names)}, features=features)
        content.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    more = ["--dataset_name", str(folder.parent), "--cache_dir", str(tmp_path / "cache")]
    pipeline = DiMPipeline.from_pretrained(tmp_path / "run")
    _, test = evaluate_dim.load_splits(evaluate_dim.parse_args(more), pipeline, Accelerator(), None)
    assert test.labels.tolist() == test.images[:, 0, 0, 0].tolist() == list(range(9, 0, -1))
    args = evaluate_dim.parse_args([*more, "--test_split", "other"])
    with pytest.raises(ValueError, match="of split 'other' of .* has the unknown classes z; valid are 0, 1"):
        evaluate_dim.load_splits(args, pipeline, Accelerator(), None)
    args = evaluate_dim.parse_args([*more, "--test_split", "again"])
    with pytest.raises(ValueError, match="`--test_split` again of .* holds the images of `--train_split` train"):
        evaluate_dim.load_splits(args, pipeline, Accelerator(), None)


def test_controls_from_part_of_train(evaluate):
    rows = {row.source: row for row in evaluate("--max_train_samples", "30", "--ipc", "4")}
    assert rows[REAL["streamed"]].distinct_images == 30
    assert rows[REAL["whole"]].distinct_images == 30
    # About three images of a class, of which the set can hold no more.
    assert rows[REAL["random"]].distinct_images <= 30


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_recipe_takes_the_precision_and_the_report_names_it(evaluate, tmp_path, precision):
    evaluate("--controls", "--mixed_precision", precision)
    assert f"mixed precision: {precision}." in (tmp_path / "run" / "evaluation" / "report.md").read_text()


def test_the_report_weighs_the_generator_in_real_images(evaluate, tmp_path):
    rows = {row.source: row for row in evaluate("--ipc", "3")}
    generated, whole = rows[GENERATED].bytes, rows[REAL["whole"]].bytes
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert f"takes {generated:,} bytes, the size of {generated / (whole / 1437):,.0f} real images" in report


def test_without_a_pipeline_from_before_matching_there_is_no_such_row(evaluate, tmp_path):
    (tmp_path / "run" / "before_matching").rename(tmp_path / "elsewhere")
    assert len(evaluate()) == 5
    report = tmp_path / "run" / "evaluation" / "report.md"
    assert "There is no control from before matching" in report.read_text()
    # What the report says goes on the model card, where a path of this machine has no place.
    assert str(tmp_path) not in report.read_text()
    rows = evaluate("--before_matching", str(tmp_path / "elsewhere"), "--protocols", "A", "B", "--controls",
                    "before_matching")  # fmt: skip
    assert [row.source for row in rows] == [
        GENERATED, "fixed set, random", BEFORE_MATCHING, "fixed set, random, before matching",
    ]  # fmt: skip
    assert "There is no control from before matching" not in report.read_text()


# What is wrong, and the message; `{tmp}` holds the folders of `odd_folders`.
BAD = [
    ("--classifiers convnet4", "classifier 'convnet4' is unknown; valid are convnet3"),
    ("--ipc 0", "argument --ipc: '0' is not a whole number from 1"),
    ("--ipc 1 1", "`--ipc` names 1, 1; each must be given once"),
    ("--ipc 2147483648", "argument --ipc: '2147483648' is not a whole number from 1 to 1,000,000,000"),
    ("--ipc 100000000", "`ipc` asks for 1,000,000,000 images in an epoch; valid are at most 100,000,000"),
    ("--protocols A --ipc 200000", "`--ipc` .* asks for 2,000,000 images in memory"),
    ("--protocols A --selection kmeans --candidates 1000000", "`--candidates` 1000000 asks for 2,000,000 images"),
    ("--seeds 0 0", "`--seeds` names 0, 0"),
    ("--seeds -1", "argument --seeds: '-1' is not a whole number from 0"),
    ("--seeds 0 4294967296", "argument --seeds: '4294967296' is not a whole number from 0 to 4,294,967,295"),
    ("--seeds " + " ".join(["3"] * 2000), "`--seeds` names 3, 3, 3, 3, 3, 3, 3, 3 and 1,992 more"),
    ("--epochs 0", "argument --epochs: '0' is not a whole"),
    ("--ipc 1 2 --epochs 3 0", "argument --epochs: '0'"),
    (
        "--ipc 1 2 3 --epochs 3 2",
        "`--epochs` has 2 numbers, 3, 2, and `--ipc` 3, 1, 2, 3; valid is one number for all, or one for each",
    ),
    ("--train_batch_size 0", "argument --train_batch_size: '0'"),
    ("--learning_rate nan", "argument --learning_rate: 'nan' is not a number above 0"),
    ("--learning_rate inf", "argument --learning_rate: 'inf'"),
    ("--learning_rate -1", "argument --learning_rate: '-1'"),
    ("--max_train_samples 0", "argument --max_train_samples: '0'"),
    ("--dataloader_num_workers=-1", "argument --dataloader_num_workers: '-1'"),
    ("--protocols A --selection kmeans --candidates 0", "argument --candidates: '0'"),
    ("--protocols A --latent_steps=-1", "argument --latent_steps: '-1' is not a whole number from 0"),
    ("--protocols A --latent_steps 5 5", "`--latent_steps` names 5, 5"),
    ("--protocols A --latent_steps 5 --pool_steps 0", "argument --pool_steps: '0'"),
    ("--protocols A A", "`--protocols` names A, A"),
    ("--protocols A --selection random random", "`--selection` names"),
    ("--protocols A --selection kmeans --pool convnet4", "`--pool`: .*'convnet4' is unknown"),
    ("--protocols A --selection kmeans --pool convnet3@0", "argument --pool: 'convnet3@0' has the weight '0'"),
    ("--soft_labels", "`--soft_labels` takes a teacher, .* has no `labeler`; training/train_labeler.py adds one"),
    ("--classifiers timm/mixer_s32_224:input_size=30", "input_size.* 30"),
    ("--protocols A --selection kmeans --pool timm/mixer_s32_224:input_size=30", "`--pool`: .*input_size.* 30"),
    ("--max_train_samples 5", "`max_samples` is 5, and there are 10 classes; valid are at least"),
    ("--test_split train", "`--test_split` is 'train', and `--train_split`, of the real controls, 'train'"),
    ("--train_split train+test", "`--test_split` is 'test', and `--train_split`, of the real controls, 'train.test'"),
    ("--test_split testing", "no split 'testing'; valid are train, test"),
    ("--protocols A --noise_scale 1.5", "`--noise_scale` has no effect without protocol B"),
    ("--min_confidence 0.5", "`--min_confidence` has no effect without `--max_attempts` above 1"),
    ("--max_attempts 3 --min_confidence 1", "argument --min_confidence: '1' is not a number from 0 to below 1"),
    ("--noise_scale 0", "argument --noise_scale: '0' is not a number above 0"),
    ("--noise_scale 1 1.0", "`--noise_scale` names 1.0, 1.0"),
    ("--choose_from 4", "`--choose_from` 4 takes a teacher, .* has no `labeler`"),
    ("--choose_from 101", "`--choose_from` is 101; valid are 1 to 100"),
    ("--protocols A --choose_from 2", "`--choose_from` has no effect without protocol B"),
    ("--choose_from 1 2 3", "ask for chosen from 2 times as many, chosen from 3 times as many on a test split"),
    ("--max_attempts 1 3", "`--max_attempts` 1, 3 takes a teacher, .* has no `labeler`"),
    ("--noise_scale 1 1.2 1.4", "ask for noise x 1.2, noise x 1.4 on a test split; .* or --validation to choose"),
    ("--controls equal_bytes_lossy --codec AVIF", "`--codec` is 'AVIF'; valid are PNG files, "),
    ("--codec PNG", "that of the control equal_bytes_lossy"),
    ("--protocols D", r"argument --protocols: invalid choice: 'D' \(choose from '?A'?, '?B'?, '?C'?\)"),
    # A flag that another one switches off.
    ("--selection kmeans", "`--selection` has no effect without the fixed sets of protocol A"),
    ("--latent_steps 5 --selection herding", "`--selection` and `--latent_steps` have no effect without the fixed"),
    ("--candidates 7", "`--candidates` has no effect without protocol A .* and kmeans or herding"),
    ("--protocols A --candidates 7", "`--candidates` has no effect"),
    ("--pool convnet3", "`--pool` has no effect without protocol A"),
    ("--protocols A --pool_steps 9", "`--pool_steps` has no effect"),
    ("--before_matching {tmp}/run --controls random", "`--before_matching` has no effect without before_matching in"),
    (
        "--protocols C --controls random",
        "`--controls` has no effect for names other than streamed without protocol A or B",
    ),
    ("--protocols C --learning_rate 0.1", "`--learning_rate` has no effect without protocol A or B in"),
    ("--protocols C --without_augmentation", "`--without_augmentation` has no effect without protocol A or B in"),
    ("--hub_model_id me/x --hub_private_repo", "`--hub_model_id` and `--hub_private_repo` have no effect without"),
    ("--train_data_dir {tmp} --dataset_name digits", "`--dataset_name` has no effect with `--train_data_dir`"),
    ("--train_data_dir {tmp}/theirs/fixed --dataset_config_name x", "`dataset_config_name` is 'x', but .* has none"),
    ("--export_dir {tmp}/run", "the export folder .*run would hold `--output_dir` .*run/evaluation"),
    ("--validation --train_split train", "`--train_split` has no effect with `--validation`"),
    ("--validation --max_train_samples 9 --test_split x", "`--test_split` and `--max_train_samples` have no effect"),
    ("--classifiers resnet10 --ipc 1 --train_batch_size 1", "`--train_batch_size` 1 makes a batch of one image at"),
    # Pipelines and folders.
    ("--validation", "`--validation` needs options.json"),
    ("--validation --pipeline {tmp}/torn_options", "torn_options/options.json is damaged, it is not JSON"),
    (
        "--validation --pipeline {tmp}/other_options",
        "other_options/options.json as train_dim.py writes it; .* lacks d",
    ),
    ("--pipeline {tmp}/empty", "`--pipeline` .*empty holds no pipeline"),
    ("--pipeline {tmp}/begun", "`--pipeline` .*begun holds no pipeline: its run has not been validated yet"),
    (
        "--pipeline {tmp}/file",
        "`--pipeline` .*file is a file; valid is the folder of a pipeline, or its id on the Hub",
    ),
    ("--pipeline out/nowhere", "`--pipeline` out/nowhere is not a local folder"),
    ("--pipeline out/nowhere --output_dir {tmp}/new", "`--pipeline` out/nowhere cannot be loaded: .* HF_HUB_OFFLINE"),
    ("--pipeline {tmp}/nowhere --output_dir {tmp}/new", "`--pipeline` .*nowhere is not a folder, and not an id on"),
    ("--pipeline {tmp}/torn_index", "`--pipeline` .*torn_index cannot be loaded: .*model_index.json is .*not JSON"),
    ("--pipeline {tmp}/torn_config", "`--pipeline` .*torn_config cannot be loaded: "),
    ("--pipeline {tmp}/cut_weights", "`--pipeline` .*cut_weights cannot be loaded: "),
    ("--before_matching {tmp}/empty", "`--before_matching` .*empty holds no pipeline"),
    ("--before_matching /nowhere", "`--before_matching` /nowhere is not a folder"),
    (
        "--output_dir {tmp}/theirs",
        "`--output_dir` .*theirs holds fixed, metrics.json, report.md, which evaluate_dim.py",
    ),
    ("--output_dir {tmp}/file", "`--output_dir` .*file cannot be written to: Not a directory"),
    ("--output_dir {tmp}/file/report", "`--output_dir` .*file/report cannot be written to: Not a directory"),
    ("--export_dir {tmp}/file/x", "the export folder .*file/x cannot be written to: Not a directory"),
    ("--export_dir {tmp}/torn_card", ".*torn_card/README.md"),
    ("--export_dir {tmp}/new --pipeline {tmp}/other_options", "other_options/options.json is damaged"),
    ("--pipeline {tmp}/torn_audit", "torn_audit/audit/audit.json"),
    ("--train_data_dir {tmp}/begun --output_dir {tmp}/begun", "`--output_dir` .*begun is the data folder .*begun"),
    ("--train_data_dir {tmp}/nowhere", "`train_data_dir` .*nowhere"),
    ("--dataset_name ~/nowhere/at/all", f"{re.escape(os.path.expanduser('~'))}/nowhere/at/all"),
]


def odd_folders(root):
    for name in ("empty", "begun", "theirs/fixed", "torn_options", "other_options", "torn_card", "torn_audit/audit"):
        (root / name).mkdir(parents=True)
    (root / "file").touch()
    (root / "begun" / "options.json").write_text("{}")
    for name in ("report.md", "metrics.json", "fixed/mine.txt", "notes.txt"):
        (root / "theirs" / name).write_text("{}")
    (root / "torn_card" / "README.md").write_text("---\n[broken\n---\n")
    (root / "torn_audit" / "audit" / "audit.json").write_text('{"findings": ')
    for name in ("torn_options", "other_options", "torn_index", "torn_config", "cut_weights", "torn_audit"):
        shutil.copytree(root / "run", root / name, dirs_exist_ok=True)
    (root / "torn_options" / "options.json").write_text('{"preset": "ba')
    (root / "other_options" / "options.json").write_text('{"seed": 1}')
    (root / "torn_index" / "model_index.json").write_text('{"_class')
    (root / "torn_config" / "generator" / "config.json").write_text('{"_class')
    weights = root / "cut_weights" / "generator" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])


@pytest.mark.parametrize(("more", "message"), BAD, ids=[more[:60] for more, _ in BAD])
def test_bad_settings_are_refused_before_anything_is_made(evaluate, tmp_path, monkeypatch, capsys, more, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    odd_folders(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, OSError, SystemExit)) as refusal:
        evaluate(*more.format(tmp=tmp_path).split())
    # What argparse refuses, it says itself.
    said = capsys.readouterr().err if refusal.type is SystemExit else str(refusal.value)
    assert re.search(message, said)
    # The tests' own folders have long names.
    assert len(said.replace(str(tmp_path), "")) <= 600
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and "cache" not in path.parts] == []


def test_help_and_a_wrong_flag_answer_without_the_libraries():
    for arguments, status, said in ((["--help"], 0, "--latent_steps"), (["--ipc", "x"], 2, "--ipc: 'x' is not")):
        code = (
            "import os, runpy, sys\nsys.argv = sys.argv[1:]\nsys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
            "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end:\n"
            "    print(end.code, *{'torch', 'diffusers', 'numpy'} & sys.modules.keys())"
        )
        script = evaluate_dim.__file__
        finished = subprocess.run([sys.executable, "-c", code, script, *arguments], capture_output=True, text=True)
        assert finished.stdout.splitlines()[-1] == str(status), finished.stderr
        assert said in finished.stdout + finished.stderr


def test_many_classes_are_not_all_named(evaluate, tmp_path):
    make_pipeline(tmp_path / "many", id2label={label: f"class {label}" for label in range(1000)})
    with pytest.raises(ValueError, match="the pipeline generates class 0, .* and 992 more") as refusal:
        evaluate("--pipeline", str(tmp_path / "many"))
    assert len(str(refusal.value)) < 600


def test_the_home_folder_has_its_short_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    flags = ["pipeline", "before_matching", "output_dir", "train_data_dir", "cache_dir"]
    args = evaluate_dim.parse_args([part for flag in flags for part in (f"--{flag}", f"~/{flag}")])
    assert [vars(args)[flag] for flag in flags] == [f"/home/me/{flag}" for flag in flags]
    assert evaluate_dim.parse_args(["--dataset_name", "~/x"]).dataset_name == "/home/me/x"


def test_results_of_another_format_stay_and_are_not_used(evaluate, tmp_path, capsys):
    results = tmp_path / "run" / "evaluation" / "results.jsonl"
    first = evaluate("--controls")
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(lines) == 2 and all(line["job"].pop("format") == EVALUATION_FORMAT for line in lines)
    # As a release without the number wrote them, and wrong.
    old = "".join(json.dumps(line | {"accuracy": 0.0}) + "\n" for line in lines)
    results.write_text(old)
    capsys.readouterr()
    assert [row.accuracies for row in evaluate("--controls")] == [row.accuracies for row in first]
    assert f"{results} has 2 results of a release with other figures; they stay" in capsys.readouterr().out
    assert results.read_text().startswith(old) and len(results.read_text().splitlines()) == 4
    # Another number is another job, and another set.
    assert evaluate("--controls") and len(results.read_text().splitlines()) == 4


def test_a_damaged_fixed_set_is_made_anew(evaluate, tmp_path, capsys):
    more = ["--protocols", "A", "--controls", "--seeds", "0"]
    rows = evaluate(*more)
    (path,) = (tmp_path / "run" / "evaluation" / "fixed").iterdir()
    whole = path.read_bytes()
    latents, labels = load_latents(path)
    damages = {"cut": whole[:-9], "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:], "empty": b""}
    damages["header"] = whole.replace(b"seed", b"sead", 1)
    for damage in damages.values():
        path.write_bytes(damage)
        assert evaluate(*more) == rows
        # But for how long it took.
        assert f"{path} is damaged" in capsys.readouterr().out
        assert all(torch.equal(*pair) for pair in zip(load_latents(path), (latents, labels), strict=True))
    save_latents(path, latents[:, :3], labels, latents_settings(path))
    assert evaluate(*more) == rows
    assert "holds latents (20, 3) where (20, 4) are due. It is made anew." in capsys.readouterr().out


def test_torn_lines_of_the_training_log_are_left_out(evaluate, tmp_path):
    (tmp_path / "run" / "metrics.jsonl").write_bytes(
        b'{"step": 5, "validation/accuracy": 0.5}\n7\n{"loss/a": 1}\n\xff\xfe\n{"step": 10, "valid'
    )
    evaluate("--controls", "--seeds", "0")
    assert "Training" in (tmp_path / "run" / "evaluation" / "report.html").read_text()


def test_a_control_of_another_shape_is_refused(evaluate, tmp_path):
    make_pipeline(tmp_path / "colour", out_channels=3)
    with pytest.raises(ValueError, match=r"`--before_matching` .*: .* are \(8, 1, 10\) and \(8, 3, 10\)"):
        evaluate("--before_matching", str(tmp_path / "colour"))


def test_a_control_of_other_classes_is_refused(evaluate, tmp_path):
    make_pipeline(tmp_path / "letters", id2label={label: "abcdefghij"[label] for label in range(10)})
    with pytest.raises(ValueError, match=r"`--before_matching` .* generates a, b, .*; `--pipeline` .* generates 0, 1"):
        evaluate("--before_matching", str(tmp_path / "letters"))


def test_results_of_something_else_are_refused(evaluate, tmp_path):
    evaluate("--controls", "--seeds", "0")
    results = tmp_path / "run" / "evaluation" / "results.jsonl"
    for line in ('{"loss": 1}', "5", '{"job": 1, "accuracy": 0.5, "seconds": 1.0}'):
        results.write_text(f"{line}\n")
        with pytest.raises(
            ValueError, match=f"`--output_dir` holds .*results.jsonl, .* has the line {re.escape(line[:5])}"
        ):
            evaluate("--controls", "--seeds", "0")
        assert results.read_text() == f"{line}\n"


def test_a_folder_that_another_evaluation_writes_to_is_refused(evaluate, tmp_path):
    folder = tmp_path / "run" / "evaluation"
    folder.mkdir()
    with lock_output_dir(folder), pytest.raises(FileExistsError, match="is being written to by another process"):
        evaluate()
    assert not (folder / "results.jsonl").exists()


def test_other_classes_are_refused(evaluate, tmp_path):
    make_pipeline(tmp_path / "letters", id2label={label: "abcdefghij"[label] for label in range(10)})
    with pytest.raises(ValueError, match="has the classes 0, 1, .*; the pipeline generates a, b, "):
        evaluate("--pipeline", str(tmp_path / "letters"))


def test_real_images_come_at_the_size_and_channels_of_the_pipeline(evaluate, tmp_path):
    make_pipeline(
        tmp_path / "large", sample_size=16, out_channels=3, block_out_channels=(4, 4), layers_per_block=(0, 0)
    )
    assert len(evaluate("--pipeline", str(tmp_path / "large"), "--controls", "random")) == 2


def test_fixed_sets_are_rows_of_their_own_and_their_latents_are_kept(evaluate, tmp_path):
    more = ["--protocols", "A", "--selection", "random", "herding", "--candidates", "3", "--pool_steps", "2"]
    rows = evaluate(*more, "--latent_steps", "2", "--controls", "random")
    names = "fixed set, random, 2 latent steps", "fixed set, herding, 2 latent steps"
    assert [(row.source, row.protocol) for row in rows] == [
        (names[0], "A"),
        (names[1], "A"),
        (REAL["random"], "A"),
    ]
    assert {(row.steps, row.distinct_images) for row in rows} == {(2, 20)}
    folder = tmp_path / "run" / "evaluation"
    files = sorted((folder / "fixed").iterdir())
    assert [path.name.rpartition("-")[0] for path in files] == [
        f"{selection}-ipc2-seed{seed}" for selection in ("herding", "random") for seed in (0, 1)
    ]
    latents, labels = load_latents(files[0])
    assert latents.shape == (20, 4) and labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert (
        DiMPipeline.from_pretrained(tmp_path / "run")(class_labels=labels, latents=latents).labels == labels.tolist()
    )
    report = (folder / "report.md").read_text()
    assert "3 samples for each image, by the features of convnet3" in report
    # The files are those of two seeds of herding, then of random.
    seconds = [latents_settings(path)["seconds"] for path in files]
    assert (
        f"Seconds to make one fixed set: random, 2 latent steps {sum(seconds[2:]) / 2:,.1f} at ipc 2; "
        f"herding, 2 latent steps {sum(seconds[:2]) / 2:,.1f} at ipc 2."
    ) in report
    # What is there is not made again, and other settings leave it alone.
    before = {path: path.stat().st_mtime_ns for path in files}
    lines = (folder / "results.jsonl").read_text()
    assert evaluate(*more, "--latent_steps", "2", "--controls", "random") == rows
    assert (folder / "results.jsonl").read_text() == lines
    # Sets of several numbers of steps begin with the same latents.
    rows = evaluate(*more, "--latent_steps", "0", "2", "--controls")
    assert [row.source for row in rows] == ["fixed set, random", names[0], "fixed set, herding", names[1]]
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    files = sorted((folder / "fixed").iterdir())
    assert len(files) == 8
    sets = [load_latents(path)[0] for path in files if path.name.startswith("herding-ipc2-seed0")]
    # Adam's first two steps are each of the learning rate, 0.03.
    assert 0 < (sets[0] - sets[1]).abs().max() < 0.061


def test_every_kind_of_row_and_its_scores(evaluate, tmp_path):
    pipeline = DiMPipeline.from_pretrained(tmp_path / "run")
    torch.manual_seed(0)
    DiMPipeline(pipeline.generator, DIGITS, DiMLabeler(10, 8, 1, width=4)).save_pretrained(tmp_path / "run")
    rows = evaluate(
        "--protocols", "A", "B", "C", "--soft_labels", "--without_augmentation", "--controls", "random", "whole",
        "--seeds", "0",
    )  # fmt: skip
    found = [(row.title, row.protocol) for row in rows]
    assert found == [
        (GENERATED, "B"),
        ("fixed set, random", "A"),
        (REAL["random"], "A, B"),
        (REAL["whole"], "A, B"),
        (f"{GENERATED}, soft labels", "B"),
        ("fixed set, random, soft labels", "A"),
        (f"{REAL['random']}, soft labels", "A, B"),
        (f"{GENERATED}, no augmentation", "B"),
        ("fixed set, random, no augmentation", "A"),
        (f"{REAL['random']}, no augmentation", "A, B"),
        (GENERATED, "C"),
    ]
    assert {row.steps for row in rows} == {2}
    folder = tmp_path / "run" / "evaluation"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [(score["source"], score["labels"]) for score in metrics["scores"]] == [
        (GENERATED, "hard"), ("fixed set, random", "hard"), (GENERATED, "soft"), ("fixed set, random", "soft"),
    ]  # fmt: skip
    means = {row.title: row.mean for row in rows if row.protocol != "C"}
    assert metrics["scores"][2]["lrs"] == label_robust_score(
        real=means[REAL["whole"]],
        hard=means[GENERATED],
        own=means[f"{GENERATED}, soft labels"],
        random=means[f"{REAL['random']}, soft labels"],
    )
    report = (folder / "report.md").read_text()
    assert f"{metrics['scores'][0]['lrs']:.4f} | {metrics['scores'][0]['ars']:.4f} |" in report
    assert all(f"Protocol {name}" in report for name in "ABC")
    # A figure that was chosen on the test split is no result of the model.
    card = DiMPipeline.from_pretrained(tmp_path / "run")
    names = [result.metric_name for result in model_card(card, "me/digits").data.eval_results]
    assert names == [
        "accuracy of convnet3 trained on 2 images per class and epoch",
        "accuracy of convnet3 trained on a fixed set, random, of 2 images per class",
        "accuracy of convnet3 trained on 2 images per class and epoch with a teacher's soft labels",
        "accuracy of convnet3 trained on a fixed set, random, of 2 images per class with a teacher's soft labels",
    ]


@pytest.mark.slow
def test_two_processes_share_the_work(evaluate, tmp_path):
    more = ["--controls", "random", "--protocols", "A", "B", "--selection", "random", "kmeans", "--candidates", "2"]
    # The two processes would choose bfloat16 where it is fast.
    more += ["--pool_steps", "2", "--latent_steps", "0", "1", "--mixed_precision", "no"]
    expected = [row.accuracies for row in evaluate(*more)]
    run_as_two([
        evaluate_dim.__file__, "--pipeline", tmp_path / "run", "--cache_dir", tmp_path / "cache", "--classifiers",
        "convnet3", "--seeds", "0", "1", "--ipc", "2", "--epochs", "2", "--output_dir", tmp_path / "two", *more,
    ])  # fmt: skip
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert [row["accuracies"] for row in metrics["rows"]] == expected
    # Each of six rows and two seeds was run by one of them.
    assert len(expected) == 6 and len((tmp_path / "two" / "results.jsonl").read_text().splitlines()) == 12
