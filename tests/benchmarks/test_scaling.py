"""The rate of two processes over one, run as a user runs it."""

import json
import os

import processes
import pytest
import scaling


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")
def test_evaluation_and_generation(tmp_path):
    arguments = ["--jobs", "4", "--epochs", "2", "--shards", "4", "--shard_size", "50", "--repeats", "1"]
    result = processes.run([scaling.__file__, *arguments, "--json", tmp_path / "out.json"])
    assert result.returncode == 0, result.stderr[-2000:]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["row"] for row in rows] == ["evaluation", "generation"]
    assert all([len(row["taken"][count]) for count in ("1", "2")] == [1, 1] for row in rows)


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
