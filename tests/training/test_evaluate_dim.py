"""The evaluation script, run for real on a tiny pipeline of the digits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import evaluate_dim
import pytest
import torch

from dim_hf.data import holdout, load_image_data
from dim_hf.models import DiMGenerator
from dim_hf.pipelines.pipeline_dim import DiMPipeline


DIGITS = {label: str(label) for label in range(10)}


def make_pipeline(folder, seed=0, id2label=DIGITS, **config):
    torch.manual_seed(seed)
    settings = {"num_classes": len(id2label), "sample_size": 8, "out_channels": 1, "latent_dim": 4}
    generator = DiMGenerator(**settings | {"block_out_channels": (4,), "layers_per_block": (0,)} | config)
    DiMPipeline(generator, id2label).save_pretrained(folder)


@pytest.fixture
def evaluate(tmp_path):
    make_pipeline(tmp_path / "run")
    make_pipeline(tmp_path / "run" / "before_matching", seed=1)

    def evaluate(*more):
        arguments = [
            "--pipeline", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--classifiers", "convnet3",
            "--seeds", "0", "1", "--ipc", "2", "--epochs", "2",
        ]  # fmt: skip
        return evaluate_dim.main(evaluate_dim.parse_args([*arguments, *more]))

    return evaluate


def test_rows_have_equal_steps_and_say_what_they_saw(evaluate, tmp_path):
    rows = {row.source: row for row in evaluate("--train_batch_size", "8")}
    assert list(rows) == list(evaluate_dim.SOURCES.values())
    # 20 images per epoch in batches of at most 8: 3 steps in each of 2 epochs.
    assert {row.steps for row in rows.values()} == {6}
    assert [row.distinct_images for row in rows.values()] == [40, 40, 40, 20, 48]
    assert all(len(row.accuracies) == 2 for row in rows.values())
    generated, subset, whole = (
        rows[evaluate_dim.SOURCES[name]].bytes for name in (evaluate_dim.GENERATED, "random", "whole")
    )
    weights = (tmp_path / "run" / "generator" / "diffusion_pytorch_model.safetensors").stat().st_size
    # The file has a header on top of the numbers.
    assert 0 < weights - generated < 4096
    assert 0 < subset < whole / 50


def test_the_output_is_complete_and_agrees_with_the_table(evaluate, tmp_path, capsys):
    rows = evaluate("--controls")
    folder = tmp_path / "run" / "evaluation"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "report.md", "samples.png"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["rows"][0]["accuracies"] == rows[0].accuracies
    assert metrics["options"]["epochs"] == 2 and metrics["environment"]["torch"] == torch.__version__
    assert f"{100 * rows[0].mean:.2f}" in (folder / "report.md").read_text()
    assert "report.md" in capsys.readouterr().out


def test_a_second_evaluation_gives_the_same_figures(evaluate, tmp_path):
    first = [row.accuracies for row in evaluate()]
    assert [row.accuracies for row in evaluate("--output_dir", str(tmp_path / "again"))] == first


def test_validation_scores_the_part_that_training_held_out(evaluate, tmp_path):
    evaluate("--validation", "--controls", "random")
    held_out = holdout(load_image_data("digits", cache_dir=tmp_path / "cache"), 0.1, seed=0)[1]
    report = (tmp_path / "run" / "evaluation" / "report.md").read_text()
    assert f"Accuracy on the {len(held_out)} images of the held-out part of train" in report


def test_without_a_pipeline_from_before_matching_there_is_no_such_row(evaluate, tmp_path):
    (tmp_path / "run" / "before_matching").rename(tmp_path / "elsewhere")
    assert len(evaluate()) == 4
    sources = [row.source for row in evaluate("--before_matching", str(tmp_path / "elsewhere"))]
    assert "generated, before matching" in sources


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classifiers", "convnet4"], "classifier 'convnet4' is unknown; valid are convnet3"),
        (["--ipc", "0"], "`--ipc` is 0; it must be at least 1"),
        (["--ipc", "1", "1"], r"`--ipc` names \[1, 1\]; each must be given once"),
        (["--seeds", "0", "0"], r"`--seeds` names \[0, 0\]"),
        (["--seeds", "-1"], "`--seeds` has -1"),
        (["--epochs", "0"], "`epochs` is 0"),
        (["--pipeline", "/"], "`--pipeline` / holds no pipeline"),
        (["--test_split", "testing"], "no split 'testing'; valid are train, test"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(evaluate, tmp_path, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        evaluate(*more)
    assert not (tmp_path / "run" / "evaluation").exists()


def test_other_classes_are_refused(evaluate, tmp_path):
    make_pipeline(tmp_path / "letters", id2label={label: "abcdefghij"[label] for label in range(10)})
    with pytest.raises(ValueError, match="has the classes 0, 1, .*; the pipeline generates a, b, "):
        evaluate("--pipeline", str(tmp_path / "letters"))


def test_real_images_come_at_the_size_and_channels_of_the_pipeline(evaluate, tmp_path):
    make_pipeline(
        tmp_path / "large", sample_size=16, out_channels=3, block_out_channels=(4, 4), layers_per_block=(0, 0)
    )
    assert len(evaluate("--pipeline", str(tmp_path / "large"), "--controls", "random")) == 2


@pytest.mark.slow
def test_two_processes_share_the_work(evaluate, tmp_path):
    expected = [row.accuracies for row in evaluate("--controls", "random")]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29613",
        str(Path(evaluate_dim.__file__)), "--pipeline", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"),
        "--classifiers", "convnet3", "--seeds", "0", "1", "--ipc", "2", "--epochs", "2", "--controls", "random",
        "--output_dir", str(tmp_path / "two"),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    metrics = json.loads((tmp_path / "two" / "metrics.json").read_text())
    assert [row["accuracies"] for row in metrics["rows"]] == expected
