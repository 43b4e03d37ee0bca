"""The ablation, run as a user runs it, on the embedded digits."""

import json

import ablation
import processes
import pytest


def run(folder, *more):
    arguments = [
        "--output_dir", str(folder), "--cache_dir", str(folder / "cache"), "--max_train_steps", "21",
        "--max_match_steps", "21", "--pool_steps", "20", "--seeds", "3", "--validation_epochs", "1",
        "--validation_classifier", "convnet3", "--json", str(folder / "out.json"), *more,
    ]  # fmt: skip
    return processes.run([ablation.__file__, *arguments])


def log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_rows_about_matching_branch_off_one_run_and_are_not_run_twice(tmp_path):
    rows = ["--rows", "no matching, as long", "energy", "no matching"]
    result = run(tmp_path, *rows)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "out.json").read_text())
    plain, energy, as_long = report["results"]
    assert [row["row"] for row in report["results"]] == ["no matching", "energy", "no matching, as long"]
    assert plain["steps"] == energy["steps"] == [42]
    branch = log(tmp_path / "energy-seed-3")
    # So many steps of the first phase as take the time of the second, by what passed between the first two lines.
    adversarial, matching = (
        lines[1]["seconds"] - lines[0]["seconds"] for lines in (log(tmp_path / "trunk-seed-3"), branch)
    )
    assert as_long["steps"] == [21 + round(21 * matching / adversarial)]
    assert energy["ms_per_step"][1] == pytest.approx(100 * matching) and plain["ms_per_step"][0] > 0
    assert branch[0]["step"] == 30 and all(line["matching"] for line in branch)
    assert branch[-1]["validation/accuracy"] == energy["mean"] == energy["accuracies"][0]

    again = run(tmp_path, "--rows", "energy")
    assert again.stdout.splitlines()[-1] in result.stdout.splitlines()
    assert log(tmp_path / "energy-seed-3") == branch


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["matching"], "invalid choice: 'matching'"),
        (["no matching, as long"], "takes the time of the first row that matches"),
        (["no matching, as long", ablation.RATE_ALONE], "takes the time of the first row that matches"),
        (["no matching, as long", "energy", "--max_match_steps", "20"], "must be 21 or more"),
    ],
)
def test_a_wrong_row_is_named_before_any_run(capsys, rows, message):
    with pytest.raises(SystemExit, match="2"):
        ablation.parse_args(["--rows", *rows])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seeds", "0", "0"], "`--seeds` names 0, 0"),
        (["--max_train_steps", "0"], "`--max_train_steps` is 0"),
        (["--validation_fraction", "nan"], "`--validation_fraction` is nan"),
        (["--validation_classifier", "convnet4"], "'convnet4' is unknown"),
        (["--json", "/nowhere/out.json"], "`--json` /nowhere/out.json cannot be written"),
    ],
)
def test_a_wrong_argument_is_named_before_any_run(more, message):
    with pytest.raises((ValueError, OSError), match=message):
        ablation.parse_args(more)


def test_runs_of_another_precision_are_not_taken_for_these(tmp_path):
    run_of_before = tmp_path / "energy-seed-0"
    run_of_before.mkdir()
    (run_of_before / "options.json").write_text('{"mixed_precision": "bf16"}')
    message = "`--mixed_precision` is 'no', and `--output_dir` holds energy-seed-0, which is in 'bf16'"
    with pytest.raises(ValueError, match=message):
        ablation.main(ablation.parse_args(["--output_dir", str(tmp_path), "--dataset_name", str(tmp_path / "none")]))
    assert [path.name for path in tmp_path.iterdir()] == ["energy-seed-0"]


def test_a_file_of_someone_else_is_not_written_over(tmp_path):
    (tmp_path / "no-batch-std.json").write_text("mine")
    with pytest.raises(FileExistsError, match="`--output_dir` holds .*no-batch-std.json, which is not by ablation.py"):
        ablation.main(ablation.parse_args(["--output_dir", str(tmp_path), "--rows", "no batch std"]))
    assert [path.name for path in tmp_path.iterdir()] == ["no-batch-std.json"]
