"""Training runs forked from a process that has imported the libraries, as benchmarks/faults.py breaks them."""

import atexit
import ctypes
import os
import runpy
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any


SCRIPT = Path(__file__).resolve().parents[1] / "training" / "train_dim.py"
TIMEOUT = 90
# Audit events of what changes a folder; each comes before its operation.
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")


def fork_server() -> tuple[Connection | None, dict[str, Any]]:
    """
    Forks a process that forks one of its own for each run asked for, and answers with its id and then its end.

    Returns:
        In the campaign, the connection to the server and nothing. In the process of a run, `None` and what was asked.
    """
    ours, theirs = Pipe()
    if os.fork():
        theirs.close()
        return ours, {}
    ours.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        try:
            request = theirs.recv()
        except EOFError:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            theirs.close()
            return None, request
        theirs.send(pid)
        _, status, usage = os.wait4(pid, 0)
        theirs.send((os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime))


def become_run(request: dict[str, Any]) -> None:
    """Gives a forked process the arguments, the files and the signals of one that was started from a shell."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [str(SCRIPT), *request["arguments"]]
    if request["modes"]:
        obey_modes()
    if request["operations"] or request["die_at"] is not None:
        watch_operations(request)


def run_script() -> None:
    """
    Executes the training script and ends the process as Python does, but for taking all modules apart, which would
    take as long as the run.
    """
    code: Any = None
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code or 0)


def obey_modes() -> None:
    """Gives up what lets root write where the modes of a folder forbid it (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    libc = ctypes.CDLL(None)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for i in range(3):
        sets[i] &= ~0b110
    libc.capset(header, sets)


def watch_operations(request: dict[str, Any]) -> None:
    """Lists what a run does to its folders, or ends it before the operation of a number, or just after an opening."""
    log = os.open(request["operations"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if request["operations"] else None
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in OPERATIONS or count < 0:
            return
        path = str(arguments[0])
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        # Where a folder is removed, names are relative to it.
        if not writes or (os.path.isabs(path) and not path.startswith(tuple(request["folders"]))):
            return
        if log is not None:
            os.write(log, f"{event} {path}\n".encode())
        if count == request["die_at"]:
            count = -1
            if event == "open" and request["opened"] and not arguments[2] & os.O_APPEND:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    sys.addaudithook(hook)


@dataclass
class Run:
    """A process that trains. `status` is its exit status, negative for a signal, and `None` until it has ended."""

    pid: int
    connection: Connection
    folder: Path
    name: str
    status: int | None = None
    cpu_seconds: float = 0.0

    def ended(self, seconds: float = 0.0) -> bool:
        """Waits so long for its end."""
        if self.status is None and self.connection.poll(seconds):
            self.status, self.cpu_seconds = self.connection.recv()
        return self.status is not None

    def end(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal, to a whole session if it is SIGKILL, and waits."""
        if not self.ended():
            (os.killpg if number == signal.SIGKILL else os.kill)(self.pid, number)
        if not self.ended(TIMEOUT):
            os.killpg(self.pid, signal.SIGKILL)
            self.ended(TIMEOUT)
            raise TimeoutError(f"{self.name}: no end within {TIMEOUT} s of signal {number}")

    def read(self, stream: str) -> str:
        return (self.folder / f"{self.name}.{stream}").read_text(errors="replace")
