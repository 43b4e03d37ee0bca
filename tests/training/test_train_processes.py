"""Several processes: they train what one process trains with all of their images."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import processes
import psutil
import pytest
import torch
import train_dim
from continuation import may_still_change, recorded
from preparation import read_data
from safetensors.torch import load_file
from test_train_dim import SCRIPT, run, tiny_arguments

from dim_hf.data import load_image_data
from dim_hf.distillation.checkpointing import damage
from dim_hf.streams.randomness import ShuffledOrder


# The losses of every step, in both phases, one of them of pairs and one of features.
EVERY_STEP = ["--logging_steps", "1", "--match_loss", "energy", "features=0.1", "--class_loss_weight", "0.1"]
EVERY_STEP += ["--mixed_precision", "no"]
# Runs the script, and leaves what each process has at the end.
WATCHED = f"""
import os, sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import torch, train_dim
make_pool, finish = train_dim.make_pool, train_dim.finish
pools = []

def watched_pool(run):
    pools.append(make_pool(run))
    return pools[-1]

def watched_finish(run):
    networks = [*run.networks.saved.values(), *pools[0]]
    torch.save([network.state_dict() for network in networks], run.output_dir / f"rank{{os.environ['RANK']}}")
    finish(run)

train_dim.make_pool, train_dim.finish = watched_pool, watched_finish
train_dim.main(train_dim.parse_args(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(cache_dir, tmp_path):
    return tiny_arguments(cache_dir, tmp_path)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss/")} for line in lines]


def weights(folder):
    return {
        f"{network}.{name}": value
        for network in ("generator", "discriminator", "ema_generator")
        for name, value in load_file(
            folder / "checkpoint-10" / network / "diffusion_pytorch_model.safetensors"
        ).items()
    }


def assert_same_training(one, two):
    first, second = losses(one), losses(two)
    assert len(first) == 10
    for step, (expected, found) in enumerate(zip(first, second, strict=True), 1):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), step
    expected, found = weights(one), weights(two)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--preset", "paper", "--pool", "convnet3", "--match_loss", "pairwise", "--augmentation", "shift", "flip"],
        ["--gradient_accumulation_steps", "2", "--storage", "int4", "--rounded_steps", "5"],
    ],
    ids=["base", "paper", "accumulation"],
)
def test_two_processes_train_what_one_does(tiny, tmp_path, more):
    run(tiny("one", *EVERY_STEP, *more, "--train_batch_size", "16"))
    processes.run_as_two(["-c", WATCHED, *tiny("two", *EVERY_STEP, *more, "--train_batch_size", "8")])
    assert_same_training(tmp_path / "one", tmp_path / "two")
    # Generator, discriminator, average and pool, bit for bit.
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}") for rank in range(2)]
    assert len(ranks[0]) > 3
    for first, second in zip(*ranks, strict=True):
        assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_images(tiny, tmp_path):
    arguments = [*EVERY_STEP, "--checkpointing_steps", "5", "--checkpoints_total_limit", "3"]
    run(tiny("one", *arguments, "--train_batch_size", "16"))
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "checkpoint-5").rename(tmp_path / "two" / "checkpoint-5")
    (tmp_path / "two" / "metrics.jsonl").write_text((tmp_path / "one" / "metrics.jsonl").read_text())
    more = ["--train_batch_size", "8", "--resume_from_checkpoint", "latest"]
    processes.run_as_two([SCRIPT, *tiny("two", *arguments, *more)])
    assert_same_training(tmp_path / "one", tmp_path / "two")
    with pytest.raises(ValueError, match="of 2 processes with `--train_batch_size` 8, and now there are 1 with 8; "):
        run(tiny("two", *arguments, "--max_match_steps", "5", *more))


def test_the_division_of_a_step_among_processes_is_looked_at():
    now = recorded(train_dim.parse_args(["--train_batch_size", "8"])) | {"rounded_from": None, "adversarial_steps": 6}
    then = now | {"num_processes": 2}
    division = {"train_batch_size", "num_processes"}
    assert division <= may_still_change(8, then, now | {"num_processes": 4, "train_batch_size": 4})
    for count, valid in ((1, "valid is 16, for the same 16 images"), (3, "a number of processes that divides 16")):
        with pytest.raises(ValueError, match=valid):
            may_still_change(8, then, now | {"num_processes": count})
    # One process with other batches is another setting, as ever.
    assert not division & may_still_change(8, then, then | {"train_batch_size": 4})


def test_a_step_is_the_same_however_it_is_divided():
    data = load_image_data("digits", "train")
    networks = SimpleNamespace(plain_generator=SimpleNamespace(config=SimpleNamespace(latent_dim=5)))
    order = ShuffledOrder(len(data), 3, torch.device("cpu"))

    def draws(num_processes, batches, batch_size, step):
        by_rank = []
        for rank in range(num_processes):
            drawn = SimpleNamespace(
                args=argparse.Namespace(gradient_accumulation_steps=batches, train_batch_size=batch_size),
                accelerator=SimpleNamespace(
                    num_processes=num_processes, process_index=rank, device=torch.device("cpu")
                ),
                plan=SimpleNamespace(global_batch_size=12),
                data=SimpleNamespace(train=data),
                networks=networks,
            )
            by_rank.append(train_dim.draw_batches(drawn, step, order, torch.Generator().manual_seed(step)))
        parts = [drawn[number] for number in range(batches) for drawn in by_rank]
        return [torch.cat([getattr(part, name) for part in parts]) for name in ("images", "labels", "latents", "mix")]

    for step in (0, 7):
        expected = draws(1, 1, 12, step)
        assert len(expected[0]) == 12
        for division in ((2, 1, 6), (1, 3, 4), (2, 3, 2), (12, 1, 1)):
            for value, other in zip(expected, draws(*division, step), strict=True):
                assert torch.equal(value, other), division
    assert not torch.equal(draws(1, 1, 12, 0)[2], draws(1, 1, 12, 7)[2])


def test_accumulated_batches_are_one_batch_but_for_its_statistics(tiny, tmp_path):
    config = tmp_path / "plain.json"
    config.write_text('{"block_out_channels": [8], "layers_per_block": [0], "norm": "none", "batch_std": false}')
    arguments = [*EVERY_STEP, "--discriminator_config", str(config), "--max_train_steps", "1", "--max_match_steps"]
    run(tiny("one", *arguments, "0", "--train_batch_size", "16"))
    run(tiny("parts", *arguments, "0", "--train_batch_size", "4", "--gradient_accumulation_steps", "4"))
    (one,), (parts,) = losses(tmp_path / "one"), losses(tmp_path / "parts")
    # What real images alone decide is equal; generated ones differ by the statistics of their batch norms.
    for name in ("loss/class_real", "loss/r1"):
        assert parts[name] == pytest.approx(one[name], rel=1e-5)
    assert parts["loss/discriminator"] == pytest.approx(one["loss/discriminator"], rel=0.2)


def test_more_processes_than_images_are_refused():
    accelerator = SimpleNamespace(
        num_processes=2000, device=torch.device("cpu"), print=print, main_process_first=contextlib.nullcontext
    )
    with pytest.raises(ValueError, match="`--num_processes` is 2000, and there are 1295 images to train on; valid"):
        read_data(train_dim.parse_args([]), accelerator)


@pytest.mark.slow
def test_a_process_that_dies_ends_the_job_with_one_message(tiny, tmp_path):
    more = ["--checkpointing_steps", "2", "--max_train_steps", "100000", "--validation_steps", "100000"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--local_addr",
        "localhost", str(SCRIPT), *tiny("run", *more),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 240
    while not [*(tmp_path / "run").glob("checkpoint-*")]:
        assert launcher.poll() is None and time.monotonic() < deadline, launcher.communicate()[1]
        time.sleep(0.05)
    ranks = [each for each in psutil.Process(launcher.pid).children() if each.environ().get("RANK") == "1"]
    ranks[0].send_signal(signal.SIGKILL)
    _, errors = launcher.communicate(timeout=60)
    assert launcher.returncode != 0
    told = [line for line in errors.replace("\r", "\n").splitlines() if line.startswith("train_dim.py: ")]
    assert len(told) == 1 and "another process of this job has ended. What was saved before is whole" in told[0]
    # Nor does a process that notices it show where it was.
    assert "gloo" not in errors
    saved = [*(tmp_path / "run").glob("checkpoint-*")]
    assert saved and not any(damage(path) for path in saved)


@pytest.mark.slow
def test_processes_with_different_batches_are_refused_once(tiny, tmp_path):
    script = (
        f"import os, sys, runpy; sys.argv += ['--train_batch_size', str(8 * (1 + int(os.environ['RANK'])))]; "
        f"sys.argv[0] = {str(SCRIPT)!r}; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as error:\n"
        f"    open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(str(error.code))"
    )
    processes.run_as_two(["-c", script, *tiny("run")])
    told = "`--train_batch_size` is 8 in process 0 and 16 in process 1; it must be the same in all 2."
    assert told in (tmp_path / "0").read_text() + (tmp_path / "1").read_text()
    assert not (tmp_path / "run").exists()


def run_on_two_machines(arguments):
    """Runs the script by `accelerate launch` in two network namespaces that one virtual cable joins."""
    names = [f"dim{os.getpid()}{side}" for side in "ab"]
    cables = [f"d{os.getpid()}{side}" for side in "ab"]
    ip = partial(subprocess.run, check=True, capture_output=True)
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launchers = []
    try:
        try:
            for name in names:
                ip(["ip", "netns", "add", name])
            ip(
                [
                    "ip",
                    "link",
                    "add",
                    cables[0],
                    "netns",
                    names[0],
                    "type",
                    "veth",
                    "peer",
                    cables[1],
                    "netns",
                    names[1],
                ]
            )
            for side, (name, cable) in enumerate(zip(names, cables, strict=True)):
                ip(["ip", "-n", name, "addr", "add", f"10.9.8.{side + 1}/24", "dev", cable])
                for device in (cable, "lo"):
                    ip(["ip", "-n", name, "link", "set", device, "up"])
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', None) or error}")
        for side, (name, cable) in enumerate(zip(names, cables, strict=True)):
            command = [
                "ip", "netns", "exec", name, sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
                "--num_machines", "2", "--num_processes", "2", "--machine_rank", str(side), "--main_process_ip",
                "10.9.8.1", "--main_process_port", "29511", str(SCRIPT), *arguments,
            ]  # fmt: skip
            launchers.append(
                subprocess.Popen(
                    command, env=environment | {"GLOO_SOCKET_IFNAME": cable}, stderr=subprocess.PIPE, text=True
                )
            )
        errors = [launcher.communicate(timeout=400)[1] for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0, 0], errors
    finally:
        for launcher in launchers:
            # The launcher ends its own processes.
            launcher.terminate()
            launcher.wait()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are of Linux")
def test_two_machines_train_what_one_does(tiny, tmp_path):
    run(tiny("one", *EVERY_STEP, "--train_batch_size", "16"))
    run_on_two_machines(tiny("two", *EVERY_STEP, "--train_batch_size", "8"))
    assert_same_training(tmp_path / "one", tmp_path / "two")
