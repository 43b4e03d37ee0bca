"""Folders of a run: foreign files are kept, writes are whole, and a kill at any moment loses nothing."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dim_hf.files import (
    NEXT_PIPELINE,
    WRITES,
    append_json_line,
    check_output_dir,
    lock_output_dir,
    read_json,
    read_json_lines,
    refuse_foreign_files,
    replace_text,
    whole_cache_file,
    whole_file,
    whole_folder,
)
from dim_hf.models import DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline, pipeline_dim


# What folders hold that a release without a marker made.
OF_BEFORE = {
    "train_dim.py": ("options.json", {"preset": "base", "data_fingerprint": "0", "seed": 0}),
    "train_labeler.py": ("labeler/config.json", {"num_classes": 10, "sample_size": 8, "in_channels": 1}),
    "evaluate_dim.py": ("results.jsonl", {"job": {}, "accuracy": 0.5, "seconds": 1.0}),
    "generate_dim.py": ("options.json", {"weights": "0", "shard_size": 5}),
    "audit_dim.py": ("audit.json", {"weights": "0", "findings": []}),
}


def write(path, text="theirs"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("script", WRITES)
def test_foreign_files_are_refused_by_name_and_others_are_kept(tmp_path, script):
    refuse_foreign_files(tmp_path / "none", script)
    (tmp_path / "empty" / "data").mkdir(parents=True)
    (tmp_path / "empty" / "generator").mkdir()
    refuse_foreign_files(tmp_path / "empty", script)
    write(tmp_path / "other" / "thesis.tex")
    write(tmp_path / "other" / "report.txt")
    refuse_foreign_files(tmp_path / "other", script)
    for number, pattern in enumerate(WRITES[script]):
        name = pattern.replace("*", "500")
        for path in (name, f"{name}/within"):
            folder = tmp_path / f"{number}{len(path)}"
            write(folder / path)
            with pytest.raises(
                FileExistsError, match=f"`--output_dir` .* holds {name}, which {script} would overwrite"
            ):
                refuse_foreign_files(folder, script)
            assert content(folder) == {Path(path): b"theirs"}


@pytest.mark.parametrize("script", WRITES)
def test_a_script_may_continue_in_its_own_folder(tmp_path, script):
    lock_output_dir(tmp_path / "marked", script).release()
    lock_output_dir(tmp_path / "marked", script).release()
    for name in WRITES[script]:
        write(tmp_path / "marked" / name)
    refuse_foreign_files(tmp_path / "marked", script)
    assert (tmp_path / "marked" / ".made_by").read_text() == f"{script}\n"
    name, entries = OF_BEFORE[script]
    write(tmp_path / "before" / name, json.dumps(entries))
    write(tmp_path / "before" / WRITES[script][-1] / "x")
    refuse_foreign_files(tmp_path / "before", script)
    # One of another script, which has the same names, is not its own.
    others = {other for other, (file, _) in OF_BEFORE.items() if other != script and file in WRITES[script]}
    for other in others:
        write(tmp_path / other / OF_BEFORE[other][0], json.dumps(OF_BEFORE[other][1]))
        with pytest.raises(FileExistsError):
            refuse_foreign_files(tmp_path / other, script)


def test_two_scripts_may_share_a_folder(tmp_path):
    for script in ("train_dim.py", "train_labeler.py"):
        lock_output_dir(tmp_path, script).release()
    write(tmp_path / "generator" / "config.json")
    for script in ("train_dim.py", "train_labeler.py"):
        refuse_foreign_files(tmp_path, script)
    with pytest.raises(FileExistsError, match="holds generator, which"):
        (tmp_path / ".made_by").write_text("evaluate_dim.py\n")
        refuse_foreign_files(tmp_path, "train_dim.py")


def test_a_lock_may_be_waited_for(tmp_path):
    first = lock_output_dir(tmp_path)
    with pytest.raises(FileExistsError, match="is being written to by another process"):
        lock_output_dir(tmp_path)
    with ThreadPoolExecutor() as other:
        second = other.submit(lambda: lock_output_dir(tmp_path, wait=True).release())
        with pytest.raises(NotYet):
            second.result(timeout=0.2)
        first.release()
        second.result(timeout=10)


def test_a_check_of_a_folder_makes_nothing(tmp_path):
    check_output_dir(tmp_path / "a" / "b", 0, resuming=False)
    write(tmp_path / "file")
    for path in ("file", "file/below"):
        with pytest.raises(OSError, match=f"`--output_dir` .*{path} cannot be written to: Not a directory."):
            check_output_dir(tmp_path / path, 0, resuming=False)
    with pytest.raises(OSError, match="MiB free; this run needs 1125899906842624.0 MiB"):
        check_output_dir(tmp_path / "a", 2**70, resuming=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_failed_write_names_the_file_and_keeps_the_old_content(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    replace_text(path, "old")
    with (
        pytest.raises(OSError, match=r"deep/a.txt cannot be written: No space left on device\."),
        whole_file(path) as aside,
    ):
        aside.write_text("ne")
        raise OSError(28, os.strerror(28))
    # An interruption, or a fault of ours, is told as what it is.
    with pytest.raises(KeyboardInterrupt), whole_file(path) as aside:
        aside.write_text("ne")
        raise KeyboardInterrupt
    assert content(tmp_path) == {Path("deep/a.txt"): b"old"}
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "deep") as aside:
        (aside / "b.txt").touch()
        raise RuntimeError
    assert content(tmp_path) == {Path("deep/a.txt"): b"old"}
    with whole_folder(tmp_path / "deep") as aside:
        (aside / "b.txt").write_text("new")
    assert content(tmp_path) == {Path("deep/b.txt"): b"new"}
    with pytest.raises(OSError, match="deep/b.txt/c cannot be written: "):
        replace_text(tmp_path / "deep" / "b.txt" / "c", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("killed", ["before", "after"])
def test_a_kill_around_the_rename_of_a_cache_file_leaves_nothing_for_good(tmp_path, killed):
    path = tmp_path / "images" / "key.npy"
    (path.parent / ".key.npy.incomplete").mkdir(parents=True)  # Left by an older release.
    if (pid := os.fork()) == 0:
        replace = os.replace

        def replace_and_die(source, target):
            if killed == "after":
                replace(source, target)
            os._exit(9)

        os.replace = replace_and_die
        with whole_cache_file(path) as aside:
            aside.write_text("whole")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    if killed == "before":
        assert not path.exists()
        with whole_cache_file(path) as aside:
            assert not aside.exists()
            aside.write_text("whole")
    assert [each.name for each in path.parent.iterdir()] == ["key.npy"] and path.read_text() == "whole"


def test_a_failed_write_to_a_cache_keeps_the_old_file(tmp_path):
    path = tmp_path / "images" / "key.npy"
    write(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_cache_file(path) as aside:
        aside.write_text("new")
        raise KeyboardInterrupt
    assert [each.name for each in path.parent.iterdir()] == ["key.npy"] and path.read_text() == "old"


def test_complete_lines_survive_a_torn_one(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_json_lines(path) == [] and read_json(path) is None
    append_json_line(path, {"a": 1})
    with path.open("ab") as file:
        file.write(b'{"a": 2, "\xff')
    append_json_line(path, {"a": 3})
    assert read_json_lines(path) == [{"a": 1}, {"a": 3}]
    with pytest.raises(ValueError, match="log.jsonl is damaged, it is not JSON"):
        read_json(path)
    with pytest.raises(OSError, match="none/log.jsonl cannot be written: No such file"):
        append_json_line(tmp_path / "none" / "log.jsonl", {})


def make_pipeline(seed, width, names, teacher):
    torch.manual_seed(seed)
    generator = DiMGenerator(len(names), 8, 1, 4, 4, (width,), (0,))
    labeler = DiMLabeler(len(names), 8, 1, width=4) if teacher else None
    return DiMPipeline(generator, dict(enumerate(names)), labeler)


def identity(pipeline):
    weights = [
        (name, value.tolist())
        for network in (pipeline.generator, pipeline.labeler)
        for name, value in (network.state_dict().items() if network is not None else [])
    ]
    return pipeline.class_names, weights


class Killed(BaseException):
    pass


@pytest.mark.parametrize("teachers", [(False, False), (True, False), (False, True), (True, True)])
def test_a_pipeline_that_is_replaced_is_the_old_or_the_new_one_at_any_moment(tmp_path, monkeypatch, teachers):
    # Other weights, another shape, other names, as many classes: a mixture would load, or not.
    old, new = make_pipeline(0, 4, "ab", teachers[0]), make_pipeline(1, 8, "cd", teachers[1])
    old.save_pretrained(tmp_path / "old")
    write(tmp_path / "old" / "notes.txt")
    calls = {"left": 0}
    functions = [
        (os, "replace"),
        (os, "rename"),
        (os, "unlink"),
        (os, "mkdir"),
        (shutil, "copyfile"),
        (shutil, "rmtree"),
    ]

    def counted(original):
        def function(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] < 0:
                raise Killed
            return original(*args, **kwargs)

        return function

    for module, name in functions:
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    seen = []
    for moment in range(1000):
        calls["left"] = 10**9
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "old", folder)
        calls["left"] = moment
        try:
            new.save_pretrained(folder)
            killed = False
        except Killed:
            killed = True
        calls["left"] = 10**9
        loaded = DiMPipeline.from_pretrained(folder)
        seen.append([identity(old), identity(new)].index(identity(loaded)))
        assert loaded.name_or_path == str(folder)
        # The next start puts it in its place, or removes what was half written.
        lock_output_dir(folder).release()
        assert identity(DiMPipeline.from_pretrained(folder)) == identity(loaded)
        assert [path.name for path in folder.glob(".*")] == [".lock"]
        assert (folder / "notes.txt").read_text() == "theirs"
        shutil.rmtree(folder)
        if not killed:
            break
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] == 1 and len(seen) > 20


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_of_the_umask(tmp_path, mask):
    # Those that safetensors makes would have none for others.
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "one.safetensors") as aside:
            save_file({"x": torch.zeros(1)}, aside)
        with whole_cache_file(tmp_path / "cache" / "two.safetensors") as aside:
            save_file({"x": torch.zeros(1)}, aside)
        with whole_folder(tmp_path / "folder") as aside:
            save_file({"x": torch.zeros(1)}, aside / "three.safetensors")
        make_pipeline(0, 4, "ab", True).save_pretrained(tmp_path / "saved")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(files) > 8 and {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def test_nothing_of_a_replaced_pipeline_is_left_or_mixed_in(tmp_path):
    old, new = make_pipeline(0, 4, "ab", True), make_pipeline(1, 4, "ab", False)
    old.save_pretrained(tmp_path, max_shard_size="2KB")
    assert list((tmp_path / "generator").glob("*.index.json")) and (tmp_path / "labeler").exists()
    new.save_pretrained(tmp_path)
    assert identity(DiMPipeline.from_pretrained(tmp_path)) == identity(new)
    assert sorted(str(path) for path in content(tmp_path)) == [
        "generator/config.json", "generator/diffusion_pytorch_model.safetensors", "generator/generator_dim.py",
        "model_index.json", "pipeline.py",
    ]  # fmt: skip
    assert not (tmp_path / NEXT_PIPELINE).exists() and NEXT_PIPELINE == pipeline_dim.NEXT_PIPELINE


def test_only_what_scripts_leave_is_removed(tmp_path):
    theirs = [".notes.incomplete", "sub/.pipeline.mine.incomplete/x", ".pipeline.mine.incomplete/x"]
    ours = [".options.json.incomplete", ".checkpoint-7.incomplete/x", ".release.old.incomplete/x"]
    ours += ["before_matching/.pipeline.abc.incomplete/pipeline/x", ".pipeline.next.incomplete/generator/x"]
    for name in (*theirs, ours[0]):
        write(tmp_path / name)
    # In a folder that no script has written to, a file may only be called so.
    lock_output_dir(tmp_path, "train_dim.py").release()
    assert all((tmp_path / name).exists() for name in (*theirs, ours[0]))
    for name in ours:
        write(tmp_path / name)
    lock_output_dir(tmp_path, "train_dim.py").release()
    assert all((tmp_path / name).exists() for name in theirs)
    assert not any((tmp_path / name).exists() for name in ours)
