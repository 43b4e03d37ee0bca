"""What a benchmark says when it is interrupted."""

import runpy
import signal
import sys

import frontier
import gap
import gpu
import protocol_c
import pytest
import shares


@pytest.mark.parametrize(
    ("script", "arguments", "kept"),
    [
        (frontier, [], "Every classifier that was finished is kept in results.jsonl, and every search in"),
        (protocol_c, ["--pipeline", "run"], "Every classifier that was finished is kept in results.jsonl"),
        (gap, ["--run", "run", "--steps", "1"], "Rows that were finished are kept in --output"),
        (gpu, ["--output_dir", "out"], "Rows that were finished are in out/results.json."),
        (gpu, ["--prepare", "arrays"], "Nothing was written."),
        (shares, [], "Nothing is kept."),
        (shares, ["--json", "shares.json"], "Rows that were finished are in shares.json."),
    ],
)
def test_an_interruption_ends_in_one_message_that_says_what_is_kept(
    monkeypatch, tmp_path, capsys, script, arguments, kept
):
    def interrupt(frame, event, _):
        if event == "call" and frame.f_code.co_name == "main" and frame.f_code.co_filename == script.__file__:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)

    def end(number, _):
        pytest.fail("the signal would have ended the process")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script.__file__, *arguments])
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    sys.setprofile(interrupt)
    try:
        with pytest.raises(SystemExit, match="130"):
            runpy.run_path(script.__file__, run_name="__main__")
    finally:
        sys.setprofile(None)
        for number, handler in before.items():
            signal.signal(number, handler)
    name = script.__file__.rpartition("/")[2]
    assert capsys.readouterr().err.startswith(f"\n{name}: interrupted. {kept}")
