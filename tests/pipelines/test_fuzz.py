"""A short run of the fuzzer that follows branches, where it is installed."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_files_of_strangers_are_read_or_refused(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed")
    script = Path(__file__).with_name("fuzz_untrusted.py")
    arguments = [
        tmp_path / "corpus",
        "-runs=400",
        "-len_control=0",
        "-max_total_time=20",
        "-seed=1",
        "-rss_limit_mb=4096",
    ]
    finished = subprocess.run(
        [sys.executable, script, *map(str, arguments)], capture_output=True, text=True, cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert not [*tmp_path.glob("crash-*")] and "Done " in finished.stderr
