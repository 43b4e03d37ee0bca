"""Checkpoints: whole or named as damaged, pruned, found, and compared with the settings of a run."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from dim_hf import DiMGenerator
from dim_hf.distillation.checkpointing import (
    changed_settings,
    checkpoints,
    damage,
    find_checkpoint,
    leave_models_to_diffusers,
    load_models,
    load_optimizers,
    read_progress,
    save_checkpoint,
    writing,
)
from dim_hf.models import DiMDiscriminator


@pytest.fixture
def save(tmp_path):
    """Saves a checkpoint of tiny networks after a step of both optimisers."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    torch.manual_seed(0)
    generator, discriminator = DiMGenerator(2, 8, 1, 4, 4, (4,), (0,)), DiMDiscriminator(2, 8, 1, (4,), (0,))
    optimizers = [torch.optim.Adam(model.parameters()) for model in (generator, discriminator)]
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare(generator, discriminator, *optimizers)
    leave_models_to_diffusers(accelerator)
    models = {"generator": generator, "discriminator": discriminator, "ema_generator": generator}
    for model, optimizer in zip(prepared[:2], prepared[2:], strict=True):
        sum(parameter.sum() for parameter in model.parameters()).backward()
        optimizer.step()

    def saved(step, limit=20, folder=tmp_path):
        progress = {"step": step, "seconds": 1.5, "best": {"accuracy": -1.0}, "options": {"seed": 0}}
        return save_checkpoint(accelerator, models, folder, progress, limit)

    saved.models, saved.accelerator = models, accelerator
    return saved


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_saved_is_whole_and_comes_back(save, tmp_path):
    path = save(3)
    assert path == tmp_path / "checkpoint-3" and damage(path) is None
    assert [each.name for each in tmp_path.iterdir()] == ["checkpoint-3"]
    assert read_progress(path, {"seed": 0})["seconds"] == 1.5
    before = {name: value.clone() for name, value in save.models["generator"].state_dict().items()}
    torch.nn.init.zeros_(save.models["generator"].proj_in.weight)
    load_models(save.models, path)
    assert all(torch.equal(value, before[name]) for name, value in save.models["generator"].state_dict().items())


def test_any_change_of_any_file_is_found_and_named(save):
    path = save(1)
    for file in files(path):
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 4
        for damaged in (bytes(flipped), content[: len(content) // 2], b""):
            file.write_bytes(damaged)
            # A flipped digest in the manifest blames the file that it is of.
            assert (reason := damage(path)) and (file.name in reason or file.name == "manifest.json"), reason
        file.unlink()
        assert (reason := damage(path)) and reason == f"{file.relative_to(path)} is missing", reason
        file.write_bytes(content)
    assert damage(path) is None
    shutil.rmtree(path)
    path.mkdir()
    assert damage(path) == "it is empty"


def test_latest_is_the_last_whole_one_by_number(save, tmp_path):
    assert find_checkpoint(tmp_path / "nowhere", "latest") == (None, [])
    for step in (2, 9, 10):
        save(step)
    (tmp_path / "checkpoint-11").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "checkpoint-12").write_text("")
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in (2, 9, 10, 11)]
    (tmp_path / "checkpoint-10" / "optimizer.bin").write_bytes(b"cut")
    path, damaged = find_checkpoint(tmp_path, "latest")
    assert path == tmp_path / "checkpoint-9"
    assert damaged[0] == "checkpoint-11 is damaged (it is empty)" and "(optimizer.bin has 3 of " in damaged[1]
    # Named, it is taken where all that follow are damaged.
    assert find_checkpoint(tmp_path, "checkpoint-9") == (path, [])
    with pytest.raises(ValueError, match="checkpoint-10 is damaged: optimizer.bin has 3 of "):
        find_checkpoint(tmp_path, "checkpoint-10")
    with pytest.raises(FileExistsError, match="checkpoint-2 is followed by checkpoint-9 in .*branch off"):
        find_checkpoint(tmp_path, "checkpoint-2")
    assert find_checkpoint(tmp_path / "other", str(tmp_path / "checkpoint-2")) == (tmp_path / "checkpoint-2", [])
    with pytest.raises(FileNotFoundError, match="'checkpoint-3' is not a checkpoint; valid are latest, checkpoint-11"):
        find_checkpoint(tmp_path, "checkpoint-3")
    for step in (2, 9):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole: checkpoint-11 is damaged \(it is empty\)"):
        find_checkpoint(tmp_path, "latest")


@pytest.mark.parametrize(("limit", "kept"), [(1, [3]), (2, [2, 3]), (3, [1, 2, 3])])
def test_the_oldest_go_first(save, tmp_path, limit, kept):
    for step in (1, 2, 3):
        save(step, limit)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in kept]


def test_what_follows_a_checkpoint_that_was_gone_back_to_goes_before_whole_ones(save, tmp_path):
    save(2)
    for step in (3, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / ".checkpoint-5.incomplete").mkdir()
    save(3, limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert damage(tmp_path / "checkpoint-3") is None


def test_a_failed_save_leaves_the_one_before(save, tmp_path, monkeypatch):
    path = save(1)
    before = {file: file.read_bytes() for file in files(path)}
    original = type(save.models["generator"]).save_pretrained

    # A full disk cannot be made without privileges; what torch says of one can.
    def full(self, folder, *args, **kwargs):
        original(self, folder, *args, **kwargs)
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(type(save.models["generator"]), "save_pretrained", full)
    with pytest.raises(OSError, match=r"checkpoint-2.incomplete cannot be written: .*unexpected pos"):
        save(2)
    assert {file: file.read_bytes() for file in files(path)} == before
    assert [each.name for each in checkpoints(tmp_path)] == ["checkpoint-1"]


def test_errors_of_writing_name_the_path_and_others_pass(tmp_path):
    with pytest.raises(OSError, match=r"there cannot be written: No space left on device\."), writing("there"):
        raise OSError(28, "No space left on device")
    with pytest.raises(RuntimeError, match="ours"), writing("there"):
        raise RuntimeError("ours")


def test_changed_settings_are_named_down_to_the_entries_of_a_config():
    then = {"seed": 0, "preset": "pico", "config": {"width": [8], "norm": "none"}, "gone": 1, "same": None}
    now = {"seed": 1, "preset": "base", "config": {"width": [16], "norm": "none"}, "same": None, "free": 2}
    assert changed_settings(then, now, {"free"}) == (
        "`preset` was 'pico' and is now 'base'; `gone` was 1 and is now None; `seed` was 0 and is now 1; "
        "`config.width` was [8] and is now [16]"
    )
    assert changed_settings(then, json.loads(json.dumps(then))) == ""
    many = changed_settings({}, {f"name{i}": "x" * 500 for i in range(40)})
    assert len(many) < 500 and many.endswith("; and 36 more")


def test_a_checkpoint_of_other_settings_is_refused(save):
    path = save(4)
    with pytest.raises(ValueError, match="checkpoint-4 is a checkpoint of another configuration: `seed` was 0 and is"):
        read_progress(path, {"seed": 1})
    progress = read_progress(path, {"seed": 1}, lambda step, then, now: {"seed"} if step == 4 else set())
    assert progress["options"] == {"seed": 1}


class Bomb:
    """Ends the process when it is unpickled."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.mark.parametrize("name", ["optimizer.bin", "optimizer_1.bin"])
def test_a_checkpoint_of_a_stranger_runs_no_code(save, name):
    path = save(3)
    torch.save({"state": Bomb()}, path / name)
    with pytest.raises(ValueError, match="holds more than numbers and tensors; reading it could run code"):
        load_optimizers(save.accelerator, path)


def test_a_run_begun_without_float16_goes_on_with_a_new_scaler(save):
    path = save(3)
    save.accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    load_optimizers(save.accelerator, path)
    assert save.accelerator.scaler is scaler and scaler.get_scale() == 8.0


def test_random_states_of_a_stranger_are_left_out(save):
    """They decide nothing, and accelerate goes on without those that it does not read."""
    path = save(3)
    torch.save({"random_state": Bomb()}, path / "random_states_0.pkl")
    load_optimizers(save.accelerator, path)


@pytest.mark.parametrize("content", ["[1]", "[" * 100_000, '{"step": "3", "seconds": 1, "best": {}, "options": {}}'])
def test_progress_that_is_not_of_a_run_is_damage(save, content):
    path = save(3)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "progress.json").write_text(content)
    digest = hashlib.sha256(content.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest | {"progress.json": [len(content), digest]}))
    assert damage(path) is not None
