"""What the scripts have in common: which flags were given, bounds of numbers, pipelines, and how a script ends."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from accelerate.utils.memory import should_reduce_batch_size

from dim_hf.files import NEXT_PIPELINE, read_json
from dim_hf.messages import listed
from dim_hf.pipelines import DiMPipeline


# The type of a flag that takes a path: `~` is the home folder.
local_path = os.path.expanduser


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help that adds the default of a flag where it has one and does not tell of it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        untold = action.default not in (None, False, argparse.SUPPRESS) and "default:" not in (action.help or "")
        return super()._get_help_string(action) if untold else action.help


def given_flags(parser: argparse.ArgumentParser, input_args: Sequence[str] | None) -> set[str]:
    """The flags of a command line that were given, whatever their values."""
    # A default is set only where a namespace has no value.
    unset = object()
    found = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args(input_args)), unset))
    return {name for name, value in vars(parser.parse_args(input_args, found)).items() if value is not unset}


def refuse_idle_flags(given: Collection[str], rules: Iterable[tuple[bool, Collection[str], str]]) -> None:
    """
    Refuses flags that others switch off.

    Args:
        given: Those of the command line.
        rules: Whether some flags are switched off, which ones, and where that is so.

    Raises:
        ValueError: If one of them was given.
    """
    for off, names, where in rules:
        if off and (idle := [f"`--{name}`" for name in names if name in given]):
            raise ValueError(f"{' and '.join(idle)} {'has' if len(idle) == 1 else 'have'} no effect {where}.")


def check_numbers(args: argparse.Namespace, bounds: Mapping[str, tuple[int, int]]) -> None:
    """
    Refuses numbers out of bounds, in flags that take one or several.

    Args:
        bounds: For each flag the least valid number, and a power of two that it must be below.
    """
    for name, (least, limit) in bounds.items():
        value = getattr(args, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < least:
                raise ValueError(f"`--{name}` is {number}; it must be at least {least}.")
            if number is not None and number >= limit:
                raise ValueError(f"`--{name}` is {number}; it must be below 2**{limit.bit_length() - 1}.")


def check_once(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Refuses a value that is given twice in a flag that takes several."""
    for name in names:
        values = getattr(args, name)
        if len(set(values)) != len(values):
            raise ValueError(f"`--{name}` names {listed(values)}; each must be given once.")


def check_pipeline(argument: str, name: str) -> None:
    """Refuses what is no pipeline, from the files of a folder and from the name of what would be on the Hub."""
    path = Path(name)
    if path.is_file():
        raise ValueError(f"`--{argument}` {name} is a file; valid is the folder of a pipeline, or its id on the Hub.")
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~")) or not name):
        raise FileNotFoundError(f"`--{argument}` {name or repr(name)} is not a folder, and not an id on the Hub.")
    if path.is_dir() and not any((path / file).exists() for file in ("model_index.json", NEXT_PIPELINE)):
        if (path / "options.json").is_file() or any(path.glob("checkpoint-*")):
            raise FileNotFoundError(
                f"`--{argument}` {name} holds no pipeline: its run has not been validated yet. The first validation "
                "(--validation_steps of train_dim.py) writes one."
            )
        raise FileNotFoundError(f"`--{argument}` {name} holds no pipeline (model_index.json).")


def load_pipeline(argument: str, name: str) -> DiMPipeline:
    """
    Raises:
        ValueError: If it cannot be loaded, naming the flag.
    """
    check_pipeline(argument, name)
    try:
        return DiMPipeline.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"`--{argument}` {name} cannot be loaded: {reason if len(reason) < 500 else f'{reason[:500]}...'}"
        ) from error


def check_json_file(path: str | None, entries: Collection[str]) -> None:
    """
    Refuses, before any work, a `--json` that cannot be written or that is something else than earlier figures.

    Args:
        entries: What the figures of this script have.
    """
    if path is None:
        return
    folder = Path(path).absolute().parent
    if Path(path).is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"`--json` {path} cannot be written; valid is a file in a folder that exists.")
    try:
        content = read_json(path)
    except ValueError:
        content = ""
    if content is not None and not (isinstance(content, dict) and content.keys() >= set(entries)):
        raise FileExistsError(f"`--json` {path} exists and does not hold figures of this script; name another file.")


def run_script(script: str, program: Callable[[], object], kept: str) -> None:
    """
    Runs a script to its end. What a user can put right ends in one message and exit status 1, an interruption in exit
    status 130; a fault of ours shows where it is.

    Args:
        script (`str`): Its name.
        program: What it does.
        kept (`str`): What an interruption leaves, and how to go on.
    """
    # Asked to end, a script leaves nothing half written, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        program()
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted. {kept}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"{script}: {error}") from error
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        raise SystemExit(f"{script}: out of memory; lower the batch size or the resolution.") from error
