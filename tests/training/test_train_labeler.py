"""The teacher's script: what it learns, where it is saved, what it leaves alone."""

import json

import pytest
import torch
import train_labeler

from dim_hf import DiMDataset, DiMGenerator, DiMPipeline
from dim_hf.data import holdout, load_image_data
from dim_hf.evaluation.judges import evaluate_accuracy
from dim_hf.files import lock_output_dir
from dim_hf.machine import bfloat16_unit


def save_pipeline(folder, names=tuple("0123456789")):
    torch.manual_seed(0)
    generator = DiMGenerator(len(names), 8, 1, 4, 4, (4,), (0,))
    DiMPipeline(generator, dict(enumerate(names))).save_pretrained(folder)


def run(tmp_path, *more):
    arguments = [
        "--pipeline",
        str(tmp_path / "run"),
        "--cache_dir",
        str(tmp_path / "cache"),
        "--num_train_epochs",
        "1",
    ]
    return train_labeler.main(train_labeler.parse_args([*arguments, *more]))


def test_the_pipeline_gets_a_teacher_that_knows_what_was_held_out(tmp_path):
    save_pipeline(tmp_path / "run")
    # What the training run held out, of a part of train.
    data = load_image_data("digits", cache_dir=tmp_path / "cache", max_samples=500)
    options = {"seed": 3, "validation_fraction": 0.2, "train_split": "train", "max_train_samples": 500}
    options = json.dumps(options | {"dataset_name": "digits", "data_fingerprint": data.fingerprint})
    (tmp_path / "run" / "options.json").write_text(options)
    before = DiMPipeline.from_pretrained(tmp_path / "run").generator.state_dict()
    accuracy = run(tmp_path, "--num_train_epochs", "12")
    pipe = DiMPipeline.from_pretrained(tmp_path / "run")
    held_out = holdout(data, 0.2, 3)[1]
    assert len(held_out) == 100
    assert accuracy > 0.3
    assert accuracy == evaluate_accuracy(Logits(pipe.labeler), held_out)
    assert all(torch.equal(value, before[name]) for name, value in pipe.generator.state_dict().items())
    assert (tmp_path / "run" / "options.json").read_text() == options
    assert DiMDataset(pipe, 1, soft_labels=True)[0]["labels"].shape == (10,)


def test_a_teacher_is_trained_in_the_precision_asked_for_which_is_recorded(tmp_path):
    save_pipeline(tmp_path / "run")
    teachers = []
    for asked in (["--mixed_precision", "no"], ["--mixed_precision", "bf16"], []):
        run(tmp_path, *asked)
        record = json.loads((tmp_path / "run" / "labeler.json").read_text())
        assert record["mixed_precision"] == (asked[1] if asked else "bf16" if bfloat16_unit() else "no")
        teachers.append(DiMPipeline.from_pretrained(tmp_path / "run").labeler.network[0].weight)
    assert not torch.equal(teachers[0], teachers[1])
    assert torch.equal(teachers[2], teachers[1 if bfloat16_unit() else 0])


def test_its_seed_and_share_do_not_change_what_is_held_out(tmp_path):
    save_pipeline(tmp_path / "run")
    data = load_image_data("digits", cache_dir=tmp_path / "cache", max_samples=500)
    options = {"seed": 3, "validation_fraction": 0.2, "train_split": "train", "max_train_samples": 500}
    (tmp_path / "run" / "options.json").write_text(
        json.dumps(options | {"dataset_name": "digits", "data_fingerprint": data.fingerprint})
    )
    teachers = []
    for seed in ("3", "4"):
        accuracy = run(tmp_path, "--num_train_epochs", "4", "--seed", seed)
        teachers.append(DiMPipeline.from_pretrained(tmp_path / "run").labeler)
        assert accuracy == evaluate_accuracy(Logits(teachers[-1]), holdout(data, 0.2, 3)[1])
    first, second = (each.state_dict() for each in teachers)
    assert not all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(ValueError, match="`--validation_fraction` is 0.3, and the run in .* held out 0.2"):
        run(tmp_path, "--validation_fraction", "0.3")


def test_a_pipeline_with_a_guarantee_is_known_by_its_card(tmp_path):
    save_pipeline(tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("---\ndifferential_privacy:\n  epsilon: 1.0\n---\n# Mine\n")
    with pytest.raises(ValueError, match="has a guarantee of privacy"):
        run(tmp_path)


class Logits(torch.nn.Module):
    def __init__(self, labeler):
        super().__init__()
        self.labeler = labeler

    def forward(self, images):
        return self.labeler(images).logits


@pytest.mark.parametrize(
    ("flag", "value", "valid"),
    [
        ("--num_train_epochs", "0", "a whole number from 1 to 1,000,000,000"),
        ("--validation_fraction", "1.5", "a number between 0 and 1"),
        ("--learning_rate", "nan", "a number above 0, up to 1e30"),
        ("--seed", "-1", "a whole number from 0 to 4,294,967,295"),
    ],
)
def test_wrong_numbers_are_refused_by_argparse(capsys, flag, value, valid):
    with pytest.raises(SystemExit):
        train_labeler.parse_args([flag, value])
    assert f"error: argument {flag}: '{value}' is not {valid}\n" in capsys.readouterr().err


def test_a_data_set_beside_a_folder_is_refused():
    with pytest.raises(ValueError, match="`--dataset_name` and `--revision` have no effect with `--train_data_dir`"):
        train_labeler.parse_args(["--train_data_dir", "x", "--dataset_name", "mnist", "--revision", "main"])


def test_several_processes_are_refused(tmp_path, monkeypatch):
    save_pipeline(tmp_path / "run")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="train_labeler.py runs in one process; valid are python"):
        run(tmp_path)


def test_a_wrong_split_is_refused_before_anything_is_made(tmp_path):
    save_pipeline(tmp_path / "run")
    with pytest.raises(ValueError, match="no split 'training'"):
        run(tmp_path, "--train_split", "training")
    assert not (tmp_path / "run" / "labeler").exists()


def test_a_teacher_that_diverged_replaces_nothing(tmp_path):
    save_pipeline(tmp_path / "run")
    run(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(FloatingPointError, match="became NaN or infinite in training; .* which is 1e.12"):
        run(tmp_path, "--learning_rate", "1e12")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_damaged_options_are_named(tmp_path):
    save_pipeline(tmp_path / "run")
    for content in ('{"seed": ', "[]"):
        (tmp_path / "run" / "options.json").write_text(content)
        with pytest.raises(ValueError, match="run/options.json is damaged"):
            run(tmp_path)


def test_other_data_and_the_folder_of_another_run_are_refused(tmp_path):
    for name in ("run", "other"):
        save_pipeline(tmp_path / name)
        (tmp_path / name / "options.json").write_text('{"dataset_name": "mine", "data_fingerprint": "0"}')
    with pytest.raises(ValueError, match="`--dataset_name` digits is not the data that .* was trained on, mine"):
        run(tmp_path)
    with pytest.raises(FileExistsError, match="`--output_dir` .*other holds another training run"):
        run(tmp_path, "--output_dir", str(tmp_path / "other"))
    assert not (tmp_path / "run" / "labeler").exists() and not (tmp_path / "other" / "labeler").exists()


def test_a_folder_that_another_process_writes_to_is_refused(tmp_path):
    save_pipeline(tmp_path / "run")
    with lock_output_dir(tmp_path / "run"), pytest.raises(FileExistsError, match="is being written to by another"):
        run(tmp_path)


def test_other_classes_are_refused(tmp_path):
    save_pipeline(tmp_path / "run", names=tuple("abcdefghij"))
    with pytest.raises(ValueError, match="the unknown classes .*; valid are a, b"):
        run(tmp_path)
