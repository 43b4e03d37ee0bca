"""Training runs forked from a process that has imported the libraries, and the folders they are broken in."""

import atexit
import ctypes
import os
import random
import runpy
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

import numpy as np
from fault_checks import check_messages


SCRIPT = Path(__file__).resolve().parents[1] / "training" / "train_dim.py"
TIMEOUT = 90
TINY = [
    "--train_batch_size", "8", "--logging_steps", "5", "--checkpointing_steps", "7", "--checkpoints_total_limit", "2",
    "--report_to", "none", "--validation_steps", "8", "--validation_epochs", "4", "--match_interval", "2",
    "--pool_steps", "8",
    # So fast that validation sees a difference, and the pipeline is replaced several times.
    "--learning_rate", "5e-3", "--discr_learning_rate", "5e-3", "--match_learning_rate", "5e-3", "--ema_decay", "0.5",
]  # fmt: skip
PLAIN = ["--max_train_steps", "28", "--max_match_steps", "0"]
MATCHING = ["--max_train_steps", "16", "--max_match_steps", "12"]
CONFIGURATIONS = {
    "plain": PLAIN,
    "matching": MATCHING,
    "parquet": [*PLAIN, "--dataloader_num_workers", "2"],
    "two processes": MATCHING,
}
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
            if event == "open" and request["opened"] and arguments[2] & os.O_TRUNC:
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


@dataclass
class Trial:
    """One fault: the folder that it happens in and what is written down of it."""

    kind: str
    configuration: str
    folder: Path
    campaign: "Campaign"
    rng: random.Random
    record: dict[str, Any] = field(default_factory=lambda: {"lost": [], "rough": [], "status": [], "cpu_seconds": 0.0})
    cleanup: ExitStack = field(default_factory=ExitStack)
    # Where set, a message must name one of these to be a refusal.
    damaged: tuple[str, ...] = ()
    stopped_at: list[int] = field(default_factory=list)
    started: int = 0

    @property
    def output(self) -> Path:
        return self.folder / "output"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def reference(self) -> "Trial":
        return self.campaign.reference(self.configuration)

    def lost(self, what: str) -> None:
        self.record["lost"].append(what)

    def rough(self, what: str) -> None:
        self.record["rough"].append(what)

    def arguments(self) -> list[str]:
        root = self.campaign.root
        data = ["--dataset_name", str(root / "images.parquet")] if self.configuration == "parquet" else []
        return [
            *TINY, *CONFIGURATIONS[self.configuration], *data, "--output_dir", str(self.output), "--cache_dir",
            str(self.cache), "--generator_config", str(root / "network.json"), "--discriminator_config",
            str(root / "network.json"), "--resume_from_checkpoint", "latest",
        ]  # fmt: skip

    def start(
        self, *, operations: str = "", die_at: int | None = None, opened: bool = False, modes: bool = False
    ) -> Run:
        self.started += 1
        name = f"run-{self.started}"
        self.campaign.connection.send(
            {
                "arguments": self.arguments(),
                "stdout": str(self.folder / f"{name}.stdout"),
                "stderr": str(self.folder / f"{name}.stderr"),
                "folders": [str(self.output), str(self.cache)],
                "operations": operations,
                "die_at": die_at,
                "opened": opened,
                "modes": modes,
            }
        )
        return Run(self.campaign.connection.recv(), self.campaign.connection, self.folder, name)

    def wait(self, run: Run) -> str:
        """Waits for the end of a run that nothing ends any more, and returns its message."""
        if not run.ended(TIMEOUT):
            run.end()
            self.lost(f"{run.name} hangs")
        return self.note(run)

    def note(self, run: Run) -> str:
        """Writes down how a run ended, with what is wrong with its message, and returns that."""
        self.record["status"].append(run.status)
        self.record["cpu_seconds"] += run.cpu_seconds
        errors = run.read("stderr")
        message, wrong = check_messages(errors, run.status)
        self.record["rough"] += [f"{run.name}: {what}" for what in wrong]
        if message:
            self.record.setdefault("messages", []).append(message)
        return message


def torchrun(trial: Trial) -> subprocess.Popen:
    trial.started += 1
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--local_addr",
        "localhost", str(SCRIPT), *trial.arguments(),
    ]  # fmt: skip
    with (trial.folder / f"run-{trial.started}.stderr").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)


class Campaign:
    """The folder of a campaign, with the undisturbed and the interrupted run of each configuration, made when due."""

    def __init__(self, root: Path, seed: int, connection: Connection) -> None:
        self.root, self.seed, self.connection = root, seed, connection
        self.references: dict[str, Trial] = {}
        self.halves: dict[str, Trial] = {}
        (root / "network.json").write_text('{"block_out_channels": [16], "layers_per_block": [0]}')

    def trial(self, kind: str, configuration: str, name: str) -> Trial:
        folder = self.root / name.replace(" ", "-").replace(",", "")
        folder.mkdir()
        return Trial(kind, configuration, folder, self, random.Random(f"{self.seed}/{name}"))

    def reference(self, configuration: str) -> Trial:
        """The undisturbed run."""
        if configuration not in self.references:
            if configuration == "parquet" and not (self.root / "images.parquet").exists():
                write_images(self.root / "images.parquet")
            self.references[configuration] = trial = self.trial("none", configuration, f"undisturbed {configuration}")
            if configuration == "two processes":
                status: int | None = torchrun(trial).wait(2 * TIMEOUT)
            else:
                run = trial.start(operations=str(trial.folder / "operations"))
                trial.wait(run)
                status = run.status
            if status or trial.record["rough"]:
                raise SystemExit(f"faults.py: the undisturbed run in {trial.folder} fails: {trial.record}")
        return self.references[configuration]

    def half(self, configuration: str) -> Trial:
        """A run killed after its second checkpoint."""
        self.reference(configuration)
        if configuration not in self.halves:
            self.halves[configuration] = trial = self.trial("none", configuration, f"half of {configuration}")
            run = trial.start()
            while not (trial.output / "checkpoint-14").exists() and not run.ended(0.001):
                pass
            run.end()
        return self.halves[configuration]


def write_images(path: Path) -> None:
    """So many tiny images that two processes decode them."""
    import datasets
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (4100, 8, 8), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [Image.fromarray(image) for image in pixels], "label": [i % 2 for i in range(len(pixels))]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
