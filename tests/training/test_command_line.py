"""What the scripts have in common: how they end, and which flags were given."""

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import command_line
import pytest
import train_arguments
from command_line import (
    Parser,
    add_data_arguments,
    below_one,
    fraction,
    given_flags,
    non_negative_float,
    non_negative_int,
    overlap,
    positive_float,
    positive_int,
    refuse_idle_flags,
    run_script,
    seed,
)
from datasets import ReadInstruction
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.choices import STORAGE_FORMS
from dim_hf.models import generator_dim


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("`--a` is 1"), "script.py: `--a` is 1"),
        (OSError("full"), "script.py: full"),
        (KeyboardInterrupt(), 130),
    ],
)
def test_a_script_ends_in_one_message(capsys, error, status):
    def program():
        raise error

    with pytest.raises(SystemExit) as end:
        run_script("script.py", program, "All is kept.")
    assert end.value.code == status
    assert capsys.readouterr().err == ("\nscript.py: interrupted. All is kept.\n" if status == 130 else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("os.kill(os.getpid(), {number}); import json", "Nothing was written."),
        (
            "run_script('script.py', lambda: os.kill(os.getpid(), {number}) or time.sleep(9), 'All is kept.')",
            "All is kept.",
        ),
    ],
)
def test_a_signal_during_the_imports_ends_in_one_message(number, script, message):
    # Whoever runs the tests may ignore Ctrl-C.
    begin = "import os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); "
    begin += "from command_line import *; parse_before_imports('script.py', lambda: 1); "
    folder = Path(command_line.__file__).parent
    command = [sys.executable, "-c", begin + script.format(number=int(number)) + "; print('it went on')"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == f"\nscript.py: interrupted. {message}\n"


def test_a_fault_of_ours_shows_where_it_is():
    with pytest.raises(KeyError):
        run_script("script.py", lambda: {}["a"], "")


def test_help_tells_a_default_once_and_zero_too():
    parser = Parser("A script.")
    parser.add_argument("--zero", type=float, default=0.0, help="a weight")
    parser.add_argument("--told", type=int, default=3, help="default: three")
    parser.add_argument("--on", action="store_true", help="a switch")
    parser.add_argument("--unset", help="a name")
    text = " ".join(parser.format_help().split())
    assert "--zero ZERO a weight (default: 0.0) --told TOLD default: three --on a switch --unset UNSET a name" in text


def test_a_flag_is_given_whatever_its_value():
    parser = argparse.ArgumentParser()
    parser.add_argument("--a", type=int, default=1)
    parser.add_argument("--b", nargs="+", default=["x"])
    parser.add_argument("--c", action="store_true")
    parser.add_argument("--d", action=argparse.BooleanOptionalAction, default=False)
    assert given_flags(parser, []) == set()
    assert given_flags(parser, ["--a", "1", "--b", "x", "--no-d"]) == {"a", "b", "d"}
    refuse_idle_flags({"a"}, [(False, ("a",), ""), (True, ("b",), "")])
    with pytest.raises(ValueError, match="^`--a` and `--c` have no effect without `--b`.$"):
        refuse_idle_flags({"a", "c"}, [(True, ("a", "b", "c"), "without `--b`")])


@pytest.mark.parametrize(
    ("kind", "valid", "wrong", "described"),
    [
        (positive_int, ["1", "1000000000"], ["0", "-1", "1.5", "x", "1000000001", "9" * 5000], "whole number from 1"),
        (non_negative_int, ["0"], ["-1", "", "nan"], "whole number from 0 to 1,000,000,000"),
        (seed, ["0", "4294967295"], ["-1", "4294967296"], "whole number from 0 to 4,294,967,295"),
        (positive_float, ["1e-9", "1e30"], ["0", "-1", "nan", "inf", "1e31", "x"], "number above 0, up to 1e30"),
        (non_negative_float, ["0", "2"], ["-0.1", "nan", "inf"], "number from 0 to 1e30"),
        (fraction, ["0.5"], ["0", "1", "nan", "-inf"], "number between 0 and 1"),
        (below_one, ["0", "0.999"], ["1", "-0.1", "nan"], "number from 0 to below 1"),
    ],
)
def test_numbers_are_refused_with_argument_value_and_what_is_valid(capsys, kind, valid, wrong, described):
    parser = Parser("")
    parser.add_argument("--value", type=kind)
    for text in valid:
        assert parser.parse_args(["--value", text]).value == float(text)
    for text in wrong:
        with pytest.raises(SystemExit) as end:
            parser.parse_args([f"--value={text}"])
        message = capsys.readouterr().err
        assert end.value.code == 2 and f"error: argument --value: '{text[:50]}" in message and described in message
        assert len(message) < 300


def test_messages_stay_short_whatever_is_typed(capsys):
    parser = Parser("")
    add_data_arguments(parser, "train", "")
    for arguments in (["--no_such_flag", "x" * 10_000], ["--dataloader_num_workers", "\n" * 10_000]):
        with pytest.raises(SystemExit):
            parser.parse_args(arguments)
        message = capsys.readouterr().err
        assert len(message) < 700 and message.count("\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_dim", "generate_dim", "train_labeler", "audit_dim"])
def test_help_and_wrong_flags_answer_before_libraries_are_loaded(script):
    # As `python script.py` runs it, but the process tells at its end what it has loaded.
    path = Path(command_line.__file__).with_name(f"{script}.py")
    code = f"""
import runpy, sys
sys.path.insert(0, {str(path.parent)!r})
sys.argv[0] = {str(path)!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    slow = {{"torch", "numpy", "diffusers", "accelerate", "datasets"}} & sys.modules.keys()
    print("loaded", *sorted(slow), file=sys.stderr)
"""
    for arguments, status in ((["--help"], 0), (["--no_such_flag"], 2), (["--seed", "x"], 2)):
        result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert result.returncode == status, result.stderr
        assert result.stderr.splitlines()[-1] == "loaded"
        assert ("--output_dir" in result.stdout) == (status == 0)


def test_choices_are_those_of_what_repositories_carry():
    assert STORAGE_FORMS == generator_dim.STORAGE_FORMS


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("train", "test", False),
        ("train+test", "test", True),
        ("train[:10%]", "train", True),
        ("train[:50%]", "train[:60%]", True),
        ("train[:90%]", "train[90%:]", False),
        ("train[:90%]+test", "train[90%:]", False),
        ("train[:90%] + test", "test", True),
        ("train[90%:]", "train[:1000]", True),
        ("train[:-1_000]", "train[-1000:]", False),
        ("train[:-10%]", "train[90%:]", True),
        ("train[:50%](pct1_dropremainder)", "train[50%:]", True),
        ("train[10:20]", "test[10:20]", False),
        ("odd]", "odd]", True),
        ("all", "test", True),
        ("all[:10%]", "train[10%:]", True),
        ("train[:_]", "train[1__0:]", False),  # Not slices; `datasets` refuses them.
    ],
)
def test_splits_that_may_share_images(one, other, shared):
    assert overlap(one, other) is overlap(other, one) is shared


def ends(unit):
    return st.one_of(st.just(""), st.integers(-100, 100).map(lambda number: f"{number}{unit}"))


SLICES = st.one_of(st.builds("train[{}:{}]".format, ends(unit), ends(unit)) for unit in ("", "%"))


@settings(deadline=None)
@given(one=SLICES, other=SLICES, size=st.integers(1, 120))
def test_slices_that_are_taken_for_disjoint_share_no_image(one, other, size):
    def images(split):
        (part,) = ReadInstruction.from_spec(split).to_absolute({"train": size})
        return set(range(part.from_, part.to))

    if not overlap(one, other):
        assert images(one).isdisjoint(images(other))


def test_processes_that_nothing_joins_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    command_line.check_processes(2)
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, but the processes are not joined; .*ACCELERATE_USE_CPU"):
        command_line.check_processes(1)
    monkeypatch.delenv("WORLD_SIZE")
    command_line.check_processes(1)


@pytest.mark.parametrize("strategy", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
@pytest.mark.parametrize("script", ["train_dim.py", "evaluate_dim.py"])
def test_strategies_that_split_a_network_are_refused(script, strategy, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{strategy}", "true")
    arguments = [] if script == "train_dim.py" else ["--pipeline", "none"]
    command = [sys.executable, str(Path(command_line.__file__).with_name(script)), *arguments]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.startswith(f"{script}: accelerate's configuration asks for "), run.stderr
    assert "valid are one process, and several that each hold" in run.stderr and "Traceback" not in run.stderr


def test_flags_are_not_abbreviated(capsys):
    with pytest.raises(SystemExit):
        train_arguments.parse_args(["--max_train", "5"])
    assert "unrecognized arguments: --max_train 5" in capsys.readouterr().err
