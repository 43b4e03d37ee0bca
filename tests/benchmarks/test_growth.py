"""What grows with classes and images, run as a user runs it."""

import json

import growth
import processes
import pytest


@pytest.mark.slow
def test_every_row_for_every_size(tmp_path):
    arguments = ["--classes", "2", "40", "--images", "1000", "1500", "--json", tmp_path / "out.json"]
    result = processes.run([growth.__file__, *arguments])
    assert result.returncode == 0, result.stderr[-2000:]
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert list(rows) == [*growth.SECONDS, *growth.COUNTS]
    for name, row in rows.items():
        assert [len(row["classes"]), len(row["images"])] == [2, 2] and min(row["classes"] + row["images"]) > 0, name
    # A message names a few of many classes.
    assert max(rows["message on an unknown class, characters"]["classes"]) < 300
    assert all(f"| {name} |" in result.stdout for name in rows)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--classes", "10"], "`--classes` and `--images` must have two numbers each"),
        (["--classes", "10", "1000", "--images", "1000", "5000"], "two for each of the most classes"),
        (["--images", "10", "20"], "`--images` is 10; it must be at least 1000"),
    ],
)
def test_a_wrong_argument_is_named(more, message):
    with pytest.raises(ValueError, match=message):
        growth.parse_args(more)
