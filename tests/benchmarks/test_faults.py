"""A small campaign of faults on real runs, and what its judges call half written, different and rough."""

import json
import shutil
import subprocess
import sys

import faults
import pytest
import torch
from fault_checks import check_messages, differences, half_written, is_aside
from safetensors.torch import save_file


@pytest.mark.slow
def test_what_is_killed_or_damaged_goes_on_to_the_same_weights(tmp_path):
    kinds = ["kill at a file operation", "kill inside a save", "SIGTERM", "damaged checkpoint"]
    arguments = ["--runs", "4", "--folder", str(tmp_path / "runs"), "--output", str(tmp_path / "faults.json")]
    command = [sys.executable, faults.__file__, *arguments, "--kinds", *kinds]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    records = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert {record["kind"] for record in records} == set(kinds)
    for record in records:
        assert record["outcome"] in ("recovered", "refused") and record["moment"]
        if record["outcome"] == "recovered":
            assert record["status"][-1] == 0
        if record["kind"] == "kill at a file operation":
            assert record["status"][0] == -9
        if record["kind"] == "SIGTERM":
            # Before the first step, in the loop, or after the last.
            assert record["status"][0] in (-15, 130, 0)
    # The folders of what is right are removed.
    assert not list((tmp_path / "runs").glob("kill-*"))


@pytest.fixture
def run(tmp_path):
    """A folder such as a run leaves, as far as the judges read it."""
    folder = tmp_path / "run"
    for name in ("checkpoint-7", "checkpoint-14"):
        (folder / name / "generator").mkdir(parents=True)
        save_file({"weight": torch.arange(6.0).reshape(2, 3)}, folder / name / "generator" / "model.safetensors")
        step = int(name.removeprefix("checkpoint-"))
        (folder / name / "progress.json").write_text(json.dumps({"step": step, "best": {"step": 7}, "seconds": 1.5}))
    lines = [{"step": step, "seconds": 1.0, "loss/generator": 0.5} for step in (5, 7, 14)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / ".lock").touch()
    return folder


@pytest.fixture
def other(run, tmp_path):
    return shutil.copytree(run, tmp_path / "other")


def test_an_equal_run_has_no_differences_whatever_time_it_took(run, other):
    progress = json.loads((other / "checkpoint-14" / "progress.json").read_text())
    (other / "checkpoint-14" / "progress.json").write_text(json.dumps(progress | {"seconds": 9.0}))
    shutil.rmtree(other / "checkpoint-7")
    assert differences(other, run, []) == [] and half_written(other, run) == []


def test_one_other_weight_is_a_difference(run, other):
    path = other / "checkpoint-14" / "generator" / "model.safetensors"
    save_file({"weight": torch.arange(6.0).reshape(2, 3).nextafter(torch.tensor(9.0))}, path)
    assert differences(other, run, []) == ["checkpoint-14/generator/model.safetensors differs"]
    path.unlink()
    assert differences(other, run, []) == ["checkpoint-14/generator/model.safetensors is not there"]


def test_a_step_that_is_logged_twice_or_lost_is_a_difference(run, other):
    log = other / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    for wrong in (lines[:2] + lines[1:], lines[:1] + lines[2:], [*lines[:2], '{"step": 9}\n', lines[2]]):
        log.write_text("".join(wrong))
        (found,) = differences(other, run, [])
        assert found.startswith("metrics.jsonl has the steps")
    # A run that was asked to stop after step 9 says so in its log.
    assert differences(other, run, [9]) == []
    log.write_text("".join(lines).replace("0.5", "0.25", 1))
    assert differences(other, run, []) == ["metrics.jsonl: loss/generator of step 5 differs"]
    log.write_text("".join(lines)[:-5])
    assert differences(other, run, [])[0].startswith("metrics.jsonl cannot be read")


def test_half_written_files_are_seen_under_their_final_names_only(run, other):
    weights = other / "checkpoint-7" / "generator" / "model.safetensors"
    whole = weights.read_bytes()
    aside = other / ".checkpoint-21.incomplete"
    aside.mkdir()
    for name in ("progress.json", "model_index.json"):
        (aside / name).write_text('{"step": ')
    assert half_written(other, run) == []
    (other / "options.json").write_text('{"seed": ')
    weights.write_bytes(whole[:-4])
    (other / "checkpoint-14" / "progress.json").unlink()
    found = half_written(other, run)
    assert [what.split(":")[0] for what in found] == [
        "checkpoint-7/generator/model.safetensors", "options.json", "checkpoint-14 lacks progress.json",
    ]  # fmt: skip
    save_file({"weight": torch.zeros(3, 2)}, weights)
    assert "checkpoint-7/generator/model.safetensors has other shapes" in half_written(other, run)


@pytest.mark.parametrize(
    ("name", "aside"),
    [
        (".lock", False),
        (".made_by", False),
        ("images/abc.npy.lock", False),
        ("checkpoint-7/progress.json", False),
        (".checkpoint-7.incomplete/progress.json", True),
        ("options.json.incomplete", True),
        ("images/tmpx3k1/abc.npy", True),
    ],
)
def test_what_lies_aside(tmp_path, name, aside):
    assert is_aside(tmp_path / name, tmp_path) == aside


@pytest.mark.parametrize(
    ("errors", "status", "wrong"),
    [
        ("  5%|#    |\rtrain_dim.py: a message\n", 1, []),
        ("", 0, []),
        ("", 1, ["exit status 1 without a message"]),
        ("  5%|#    |train_dim.py: a message\n", 1, ["its message does not begin a line"]),
        ("train_dim.py: one\ntrain_dim.py: two\n", 1, ["2 messages"]),
        (f"train_dim.py: {'x' * 600}\n", 1, ["a message of 614 characters"]),
        ("Traceback (most recent call last):\n  File\nKeyError: 'step'\n", 1, ["traceback: KeyError: 'step'"]),
    ],
)
def test_a_run_says_one_thing(errors, status, wrong):
    assert check_messages(errors, status)[1] == wrong


def test_every_kind_has_its_share_and_at_least_one():
    numbers = faults.numbers_of(200, list(faults.KINDS))
    assert min(numbers.values()) >= 1 and 195 <= sum(numbers.values()) <= 205
    assert sum(number for kind, number in numbers.items() if kind.startswith("kill")) >= 100
    assert faults.numbers_of(1, ["SIGTERM", "SIGINT"]) == {"SIGTERM": 1, "SIGINT": 1}
