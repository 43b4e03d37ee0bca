"""
What the scripts have in common: types of arguments, shared groups of them, pipelines, and how a script ends. The
module loads no library, so that a script can read its arguments before it does.
"""

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dim_hf.messages import listed, one_line


if TYPE_CHECKING:
    from dim_hf.pipelines import DiMPipeline

T = TypeVar("T")

# Larger numbers have no use; the second leaves an optimiser room within float32.
MOST = 10**9
MOST_FLOAT = 1e30

# A split, or a slice of one, as `datasets` reads it: `train`, `train[:10%]`, `train[500:1_000]`.
SLICE = re.compile(
    r"(?P<split>[^\[(]+)(\[((?P<start>-?\d+(_\d+)*)%?)?:((?P<end>-?\d+(_\d+)*)%?)?\])?(\((?P<rounding>[^)]*)\))?"
)


class Parser(argparse.ArgumentParser):
    """A parser whose messages are short, whatever the number of flags and the length of a value."""

    def __init__(self, description: str):
        super().__init__(
            usage="%(prog)s [--FLAG VALUE ...]",
            description=description,
            formatter_class=HelpWithDefaults,
            # The start of a flag could mean another one in a later release.
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        end_if_told(status=2)
        super().error(one_line(message, 500))


class HelpWithDefaults(argparse.ArgumentDefaultsHelpFormatter):
    """Help that adds the default of a flag unless its text already has it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # A default of 0 is told, too, though it equals False.
        has_default = action.default is not None and action.default is not False
        untold = has_default and action.default != argparse.SUPPRESS and "default:" not in (action.help or "")
        return super()._get_help_string(action) if untold else action.help


# Types of arguments. A message of argparse begins with the argument; these add the value and what is valid.


def local_path(text: str) -> str:
    """The type of an argument that takes a path, where `~` is the home folder, or the id of a repository."""
    if not text:
        # From an unset variable of the shell; as a path it would be the current folder.
        raise argparse.ArgumentTypeError("it is empty")
    return os.path.expanduser(text)


def whole_number(least: int, most: int = MOST) -> Callable[[str], int]:
    """The type of an argument that takes an integer from `least` to `most`."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{listed([repr(text)])} is not a whole number from {least} to {most:,}")
        return value

    return convert


def number(valid: Callable[[float], bool], described: str) -> Callable[[str], float]:
    """The type of an argument that takes a number, up to 1e30, for which `valid` holds."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        # NaN is not valid either.
        if not (valid(value) and value <= MOST_FLOAT):
            raise argparse.ArgumentTypeError(f"{listed([repr(text)])} is not a number {described}")
        return value

    return convert


positive_int = whole_number(1)
non_negative_int = whole_number(0)
seed = whole_number(0, 2**32 - 1)
positive_float = number(lambda value: value > 0, "above 0, up to 1e30")
non_negative_float = number(lambda value: value >= 0, "from 0 to 1e30")
fraction = number(lambda value: 0 < value < 1, "between 0 and 1")
below_one = number(lambda value: 0 <= value < 1, "from 0 to below 1")


# Groups of arguments that several scripts have.


def add_pipeline_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pipeline", type=local_path, default="out/digits", help="folder or Hub id of a distilled data set"
    )


def add_data_arguments(
    parser: argparse._ActionsContainer, train_split: str | None, train_split_help: str, cached: str = "decoded images"
) -> None:
    """
    Adds the arguments that determine which images are read, and how.

    Args:
        parser: A parser, or a group of one.
        train_split: The default of `--train_split`.
        cached: What is kept in `--cache_dir`.
    """
    parser.add_argument(
        "--dataset_name",
        type=local_path,
        default="digits",
        help="Hub id, local folder or file, or 'digits' (embedded)",
    )
    parser.add_argument("--dataset_config_name", help="configuration of the data set, where it has several")
    parser.add_argument(
        "--train_data_dir", type=local_path, help="folder of images, one sub-folder per class, instead of a data set"
    )
    parser.add_argument("--revision", help="revision of a data set on the Hub")
    parser.add_argument("--train_split", default=train_split, help=train_split_help)
    parser.add_argument("--image_column", help="default: found from the features")
    parser.add_argument("--label_column", help="default: found from the features")
    parser.add_argument("--cache_dir", type=local_path, help=f"where {cached} are kept")
    parser.add_argument(
        "--dataloader_num_workers",
        type=non_negative_int,
        help="processes that decode images; default: one per core; 0: none",
    )


def idle_data_flags(given: Collection[str]) -> tuple[bool, tuple[str, ...], str]:
    """The rule of [`refuse_idle_flags`] for [`add_data_arguments`]."""
    return "train_data_dir" in given, ("dataset_name", "revision"), "with `--train_data_dir`"


def data_flag(args: argparse.Namespace) -> str:
    """The flag that names the data, with its value, for messages."""
    if args.train_data_dir:
        return f"`--train_data_dir` {args.train_data_dir}"
    return f"`--dataset_name` {args.dataset_name}"


def overlap(one: str, other: str) -> bool:
    """
    Whether two splits may share images, by their names: `train+test` and `test` do, and so do `train` and
    `train[:10%]`. Slices such as `train[:90%]` and `train[90%:]` do not.
    """
    return any(_share(*parts) for parts in product(one.split("+"), other.split("+")))


def _share(one: str, other: str) -> bool:
    """Whether two splits or slices, as `datasets` reads their names, may share images."""
    first, second = SLICE.fullmatch(one.strip()), SLICE.fullmatch(other.strip())
    if first is None or second is None:
        return one.strip() == other.strip()
    # All splits, to `datasets`.
    if "all" in (first["split"], second["split"]):
        return True
    if first["split"] != second["split"]:
        return False
    # Numbers and percentages cannot be compared, nor those from the front and those from the back.
    if ("%" in first[0], first["rounding"]) != ("%" in second[0], second["rounding"]):
        return True
    ends = ((first["end"], second["start"] or "0"), (second["end"], first["start"] or "0"))
    return not any(
        end and end.startswith("-") == start.startswith("-") and int(end) <= int(start) for end, start in ends
    )


def trained_on(options: dict[str, Any]) -> str:
    """What a run's options say that it was trained on, for messages."""
    config = f", configuration {options['dataset_config_name']}" if options.get("dataset_config_name") else ""
    return f"{options.get('train_data_dir') or options.get('dataset_name')}{config} (options.json in `--pipeline`)"


def add_hub_arguments(parser: argparse._ActionsContainer, what: str, repository: str, default: str) -> None:
    """
    Adds the arguments of a push.

    Args:
        parser: A parser, or a group of one.
        what: What is pushed.
        repository: The flag that names the repository, without dashes.
        default: The name of the repository without that flag.
    """
    parser.add_argument("--push_to_hub", action="store_true", help=f"push {what}")
    parser.add_argument(f"--{repository}", help=f"repository; default: {default}")
    parser.add_argument("--hub_token", help="default: the token of `hf auth login` or of HF_TOKEN")
    parser.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")


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
        given: Flags on the command line.
        rules: Whether some flags are switched off, which ones, and the circumstance, for the message.

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


def check_processes(num_processes: int) -> None:
    """Refuses processes that a launcher started and that accelerate does not join, as those of torchrun on a CPU."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if num_processes == 1 < started:
        raise ValueError(
            f"WORLD_SIZE is {started}, but the processes are not joined; start them with accelerate launch, or with "
            "torchrun (on a CPU with ACCELERATE_USE_CPU=true)."
        )


# What accelerate's launcher sets for strategies that split a network among processes.
STRATEGIES = {
    "ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM", "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}  # fmt: skip


def check_strategy() -> None:
    """Refuses strategies of accelerate that the scripts do not support."""
    for variable, name in STRATEGIES.items():
        if os.environ.get(variable, "false").lower() == "true":
            raise ValueError(
                f"accelerate's configuration asks for {name}; valid are one process, and several that each hold the "
                "whole networks (--multi_gpu, or --cpu)."
            )


def check_pipeline(argument: str, name: str) -> None:
    """Refuses a folder that is not a pipeline, by its files, and an invalid Hub id, by its form."""
    from dim_hf.files import NEXT_PIPELINE

    path = Path(name)
    if path.is_file():
        raise ValueError(f"`--{argument}` {name} is a file; valid is the folder of a pipeline, or its id on the Hub.")
    if not path.is_dir() and (name.count("/") > 1 or name.startswith((".", "/", "~")) or not name):
        raise FileNotFoundError(f"`--{argument}` {name or repr(name)} is not a folder, and not an id on the Hub.")
    if path.is_dir() and not any((path / file).exists() for file in ("model_index.json", NEXT_PIPELINE)):
        # Not a folder of generate_dim.py, which has the other file of that name.
        begun = (path / "options.json").is_file() and not (path / "data").is_dir()
        if begun or any(path.glob("checkpoint-*")):
            raise FileNotFoundError(
                f"`--{argument}` {name} holds no pipeline: its run has not been validated yet. The first validation "
                "(--validation_steps of train_dim.py) writes one."
            )
        raise FileNotFoundError(f"`--{argument}` {name} holds no pipeline (model_index.json).")


def load_pipeline(argument: str, name: str) -> "DiMPipeline":
    """
    Raises:
        ValueError: If it cannot be loaded, naming the flag.
    """
    from dim_hf.pipelines import DiMPipeline

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
    Refuses, before any work, a `--json` that cannot be written or holds anything but earlier figures.

    Args:
        entries: Keys that figures of this script have.
    """
    from dim_hf.files import read_json

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


def run_script(script: str, program: Callable[[], T], kept: str = "Nothing was written.") -> T:
    """
    Runs a script, or a part of it, and returns its result. An error that a user can correct ends in one message and
    exit status 1, an interruption in exit status 130; any other error keeps its traceback.

    Args:
        script (`str`): Name of the script.
        program: The script's function.
        kept (`str`): What an interruption leaves, and how to go on.
    """
    # SIGTERM is handled like Ctrl-C, so that nothing is left half written.
    handle_signals(signal.default_int_handler)
    try:
        return program()
    except KeyboardInterrupt:
        end_if_told(status=130)
        print(f"\n{script}: interrupted. {kept}", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        end_if_told()
        raise SystemExit(f"{script}: {error}") from error
    except RuntimeError as error:
        from accelerate.utils.memory import should_reduce_batch_size

        if lost_a_process(error):
            end_if_told()
            raise SystemExit(f"{script}: another process of this job has ended. {kept}") from error
        if not should_reduce_batch_size(error):
            raise
        raise SystemExit(f"{script}: out of memory; lower the batch size or the resolution.") from error


def parse_before_imports(script: str, parse_args: Callable[[], T]) -> T:
    """
    Reads the arguments of a script before its imports, which take seconds, so that `--help` and a wrong flag answer at
    once. Until [`run_script`] runs the script, an interruption ends the process with one message.
    """

    def parse() -> T:
        args = parse_args()
        check_strategy()
        return args

    args = run_script(script, parse)

    def end(*_: Any) -> None:
        os.write(2, f"\n{script}: interrupted. Nothing was written.\n".encode())
        # An exception in the middle of an import would be taken for one of the imported library.
        os._exit(130)

    handle_signals(end)
    return args


def handle_signals(handler: Callable[..., Any]) -> None:
    """Sets the handler of Ctrl-C, unless it is ignored as by `nohup`, and of SIGTERM."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def lost_a_process(error: RuntimeError) -> bool:
    """Whether an error of a collective says that another process is gone."""
    from torch.distributed import DistError

    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    return several and (isinstance(error, DistError) or "gloo" in str(error) or "by peer" in str(error))


def end_if_told(status: int = 1) -> None:
    """Ends this process if another one of the job has told why it ends; the launcher's store keeps count."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    # The launcher ends the others when one has ended.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from torch.distributed import TCPStore

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        told = store.add("dim_hf/told", 1) > 1
    except (KeyError, ValueError, RuntimeError):
        # There is no launcher, or it has gone.
        return
    if told:
        raise SystemExit(status)
