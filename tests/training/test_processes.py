"""Several processes: they train what one process trains with all of their images."""

import json

import processes
import pytest
import torch
from safetensors.torch import load_file
from test_train_dim import SCRIPT, run, tiny_arguments


# The first ten steps, in both phases, on few enough threads for two processes.
LENGTH = ["--logging_steps", "1", "--match_loss", "energy", "features=0.1", "--class_loss_weight", "0.1"]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name.startswith("loss/")} for line in lines]


def weights(folder, step=10):
    networks = ("generator", "discriminator", "ema_generator")
    return {
        f"{network}.{name}": value
        for network in networks
        for name, value in load_file(
            folder / f"checkpoint-{step}" / network / "diffusion_pytorch_model.safetensors"
        ).items()
    }


def assert_same_training(one, two):
    first, second = losses(one), losses(two)
    assert len(first) == 10
    for step, (expected, found) in enumerate(zip(first, second, strict=True), 1):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5), step
    expected, found = weights(one), weights(two)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--preset", "paper", "--pool", "convnet3", "--match_loss", "pairwise", "--augmentation", "shift", "flip"],
        ["--gradient_accumulation_steps", "2"],
    ],
    ids=["base", "paper", "accumulation"],
)
def test_two_processes_train_what_one_does(cache_dir, tmp_path, more):
    tiny = tiny_arguments(cache_dir, tmp_path)
    run(tiny("one", *LENGTH, *more, "--train_batch_size", "16"))
    processes.run_as_two([SCRIPT, *tiny("two", *LENGTH, *more, "--train_batch_size", "8")])
    assert_same_training(tmp_path / "one", tmp_path / "two")
