"""The throughput benchmark, run as a user runs it."""

import json
import os

import processes
import pytest
import throughput


@pytest.mark.slow
def test_every_row_beside_its_naive_one(tmp_path):
    arguments = ["--batch_size", "16", "--intervals", "2", "--interval_steps", "2"]
    # All rows are in float32, whatever accelerate is configured for; on a CPU, training in fp16 is refused.
    configured = os.environ | {"ACCELERATE_MIXED_PRECISION": "fp16"}
    result = processes.run([throughput.__file__, *arguments, "--json", tmp_path / "out.json"], env=configured)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads((tmp_path / "out.json").read_text())
    rows = [(row["row"], row["kind"]) for row in report["rows"]]
    assert rows == [
        (name, kind) for name in ("phase 1", "phase 2", "generation", "data reading") for kind in ("ours", "naive")
    ]
    for row in report["rows"]:
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"]
        assert row["peak_memory_mib"] > 10 and row["intervals"] == 2
    assert report["phase_2_over_phase_1"] > 0 and report["environment"]["torch"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--intervals", "0"], "`--intervals` is 0; it must be at least 1"),
        (["--json", "/nowhere/out.json"], "`--json` /nowhere/out.json cannot be written"),
        (["--json", __file__], "`--json` .* exists and does not hold figures of this script"),
    ],
)
def test_a_wrong_argument_is_named(more, message):
    with pytest.raises((ValueError, OSError), match=message):
        throughput.parse_args(more)
