"""The rate of two processes over one, run as a user runs it."""

import json

import evaluate_arguments
import processes
import pytest
import scaling

from dim_hf.machine import usable_cores


@pytest.mark.slow
@pytest.mark.skipif(usable_cores() < 2, reason="two processes need two cores")
def test_generation(tmp_path):
    arguments = ["--rows", "generation", "--shards", "4", "--shard_size", "50", "--repeats", "1"]
    result = processes.run([scaling.__file__, *arguments, "--json", tmp_path / "out.json"])
    assert result.returncode == 0, result.stderr[-2000:]
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["row"] == "generation" and [len(row["taken"][count]) for count in ("1", "2")] == [1, 1]


def test_an_evaluation_has_a_job_per_seed(tmp_path):
    command = scaling.command(scaling.parse_args(["--epochs", "7"]), "evaluation", 3, tmp_path, "0-1-3")
    assert command[0].endswith("training/evaluate_dim.py")
    args = evaluate_arguments.parse_args(command[1:])
    assert (args.seeds, args.epochs, args.classifiers, args.controls) == ([0, 1, 2], [7], ["convnet3"], [])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--jobs", "5"], "`--jobs` is 5; valid are even numbers"),
        (["--shards", "2"], "`--shards` is 2; it must be at least 4"),
    ],
)
def test_a_wrong_argument_is_named(more, message):
    with pytest.raises(ValueError, match=message):
        scaling.parse_args(more)
