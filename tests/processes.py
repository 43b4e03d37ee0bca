"""
Processes of their own that start fast: they are forked from one that has imported torch and what else takes long.

Nothing of Hugging Face is imported before a process has its environment, which those libraries read as they are.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.process import BaseProcess
from pathlib import Path


ROOT = Path(__file__).parents[1]
FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["torch._dynamo", "torch._inductor.standalone_compile", "torchvision", "scipy.stats", "sklearn.datasets",
     "sklearn.model_selection", "sklearn.cluster", "pandas", "pyarrow.dataset", "matplotlib.figure"]
)  # fmt: skip


def run(
    command: Sequence[str | os.PathLike], *, cwd: str | os.PathLike = ".", env: Mapping[str, str] = os.environ
) -> subprocess.CompletedProcess[str]:
    """
    What `subprocess.run([sys.executable, *command], capture_output=True, text=True)` would give.

    Args:
        command: The path of a script, or `"-c"` and code, and its arguments.
    """
    (finished,) = _run_together([str(part) for part in command], cwd, [dict(env)])
    return finished


def run_as_two(command: Sequence[str | os.PathLike]) -> None:
    """Runs a script as the two processes on CPUs that torchrun would start, and asserts that they end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [
        os.environ | group | {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"} for rank in ("0", "1")
    ]
    finished = _run_together([str(part) for part in command], ".", environments)
    assert [process.returncode for process in finished] == [0, 0], [process.stderr for process in finished]


def _run_together(
    command: list[str], cwd: str | os.PathLike, environments: list[dict[str, str]]
) -> list[subprocess.CompletedProcess[str]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes: list[BaseProcess] = []
        for number, environment in enumerate(environments):
            logs = [folder / f"{number}.{stream}" for stream in ("stdout", "stderr")]
            processes.append(process := FORKED.Process(target=_become, args=(command, str(cwd), environment, logs)))
            process.start()
            stack.callback(process.kill)
        finished = []
        for number, process in enumerate(processes):
            process.join(600)
            assert process.exitcode is not None, f"{command} takes more than 600 s"
            output, errors = ((folder / f"{number}.{stream}").read_text() for stream in ("stdout", "stderr"))
            finished.append(subprocess.CompletedProcess(command, process.exitcode, output, errors))
        return finished


def _become(command: list[str], cwd: str, environment: dict[str, str], logs: list[Path]) -> None:
    # Its own processes start as in one that Python starts, not as it was started itself.
    multiprocessing.set_start_method(None, force=True)
    for number, log in enumerate(logs, 1):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
    # Nor has it the folders that pytest puts on the path.
    sys.path[:] = [path for path in sys.path if "site-packages" in path or ROOT not in Path(path).parents]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    if command[0] == "-c":
        sys.argv = ["-c", *command[2:]]
        exec(command[1], {"__name__": "__main__"})
    else:
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        runpy.run_path(command[0], run_name="__main__")
