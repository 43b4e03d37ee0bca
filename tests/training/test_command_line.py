"""What the scripts have in common: how they end, and which flags were given."""

import argparse

import pytest
from command_line import given_flags, refuse_idle_flags, run_script


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


def test_a_fault_of_ours_shows_where_it_is():
    with pytest.raises(KeyError):
        run_script("script.py", lambda: {}["a"], "")


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
