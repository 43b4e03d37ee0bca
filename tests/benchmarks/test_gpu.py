"""The GPU benchmark, rehearsed on a CPU with tiny settings."""

import copy
import json
import math
import time

import gpu
import processes
import pytest
import torch
from gpu_stages.arrays import load_prepared, prepare
from gpu_stages.equality import compare_images, compare_steps
from gpu_stages.report import Report, check_precision
from gpu_stages.step import WAYS, Feed, Run, convolution_rate, step_flops, timed

from dim_hf import DiMPipeline
from dim_hf.data.image_data import ImageData


CPU = torch.device("cpu")
TINY = [
    "--device", "cpu", "--precision", "no", "--batch_sizes", "4", "--paper_batch_sizes", "2", "--row_seconds", "0.01",
    "--batch_size", "4", "--validation_epochs", "1",
]  # fmt: skip
# In a machine that has nothing of this project and no library to read data sets with.
BARE = """
import runpy, sys
for name in ("datasets", "pyarrow", "sklearn", "transformers", "evaluate"):
    sys.modules[name] = None
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path[:] = [path for path in sys.path if "editable" not in path]
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def made_up(count, channels=1, size=8):
    rng = torch.Generator().manual_seed(count)
    # Smooth, as photographs are: noise would be as large as JPEG as without loss.
    coarse = torch.rand(count, channels, 2, 2, generator=rng)
    images = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear") * 255
    return ImageData(images.byte(), torch.arange(count) % 2, ("no", "yes"), f"made-up-{count}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "arrays"
    prepare(path, made_up(60), made_up(20), 10, 1)
    return path


@pytest.mark.parametrize(("channels", "size", "count"), [(1, 8, 60), (3, 12, 7)])
def test_prepared_images_are_those_that_were_given(tmp_path, channels, size, count):
    train, test = made_up(count, channels, size), made_up(4, channels, size)
    manifest = prepare(tmp_path / "new", train, test, 1000, 1)
    loaded, loaded_test = load_prepared(tmp_path / "new")
    assert torch.equal(loaded.images, train.images) and torch.equal(loaded.labels, train.labels)
    assert torch.equal(loaded_test.images, test.images) and loaded.class_names == train.class_names
    assert manifest["splits"]["train"]["mean_absolute_error"] == 0 and loaded.fingerprint != loaded_test.fingerprint


def test_training_images_become_jpeg_where_they_must_and_test_images_stay_exact(tmp_path):
    train, test = made_up(300, 3, 12), made_up(8, 3, 12)
    exact = prepare(tmp_path / "exact", train, test, 4, 1)["splits"]
    room = exact["test"]["bytes"] + exact["train"]["bytes"]
    splits = prepare(tmp_path / "new", train, test, 4, room / 1e6)["splits"]
    loaded, loaded_test = load_prepared(tmp_path / "new")
    assert splits["train"]["coding"].startswith("JPEG") and splits["train"]["bytes"] < exact["train"]["bytes"]
    error = (loaded.images.float() - train.images.float()).abs().mean().item()
    assert 0 < error < 4 and splits["train"]["mean_absolute_error"] == pytest.approx(error, abs=1e-4)
    assert torch.equal(loaded_test.images, load_prepared(tmp_path / "exact")[1].images) and len(loaded_test) == 4
    assert torch.bincount(loaded_test.labels).tolist() == [2, 2]
    with pytest.raises(ValueError, match="`--megabytes` is 0.001"):
        prepare(tmp_path / "small", train, test, 4, 0.001)
    with pytest.raises(FileExistsError, match="is not empty"):
        prepare(tmp_path / "new", train, test, 4, 1)


def test_data_that_was_not_prepared_or_has_changed_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no arrays.json; make it"):
        load_prepared(tmp_path)
    prepare(tmp_path / "new", made_up(6), made_up(4), 4, 1)
    (tmp_path / "new" / "test-000.webp").write_bytes(b"cut")
    with pytest.raises(OSError, match=r"test-000.webp is missing or has changed since it was prepared \(3 bytes\)"):
        load_prepared(tmp_path / "new")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu"], "`--data` is missing"),
        (["--data", "x", "--minutes", "0"], "`--minutes` is 0.0; it must be above 0"),
        (["--data", "x", "--batch_size", "-1"], "`--batch_size` is -1; it must be above 0"),
        (["--data", "x", "--batch_sizes", "64", "1"], "`--batch_sizes` has 1"),
        (["--data", "x", "--device", "cpu", "--precision", "fp16"], "`--precision` is fp16, which needs CUDA"),
        (["--data", "no-such-folder", "--device", "cpu", "--precision", "no"], "no-such-folder holds no arrays.json"),
    ],
)
def test_a_wrong_setting_is_named(arguments, message):
    with pytest.raises((ValueError, OSError), match=message):
        gpu.main(gpu.parse_args(arguments), time.time())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_cuda_is_told_so():
    with pytest.raises(ValueError, match="`--device` is cuda, and PyTorch .* finds no CUDA device"):
        gpu.check_args(gpu.parse_args(["--data", "x"]))


def test_a_card_without_bf16_is_named():
    with pytest.raises(ValueError, match=r"bf16, which Tesla T4 does not have \(compute capability 7.5;"):
        check_precision("bf16", "Tesla T4", (7, 5))
    check_precision("fp16", "Tesla T4", (7, 5))
    check_precision("bf16", "NVIDIA H100", (9, 0))


def test_a_row_that_fails_leaves_the_others_and_is_written_down(tmp_path, capsys):
    def no_compiler():
        raise RuntimeError("no C++ compiler")

    report = Report(tmp_path / "results.json", gpu.parse_args([]), CPU)
    assert report.attempt("stage", "compiled", no_compiler, optional=True) is None and report.failed == []
    assert report.attempt("stage", "wrong", no_compiler) is None
    assert report.attempt("stage", "unequal", lambda: {"passed": False})["passed"] is False
    assert report.attempt("stage", "cuda", no_compiler, needs_cuda=True) is None
    report.end = time.time() - 1
    assert report.attempt("stage", "late", no_compiler) is None
    rows = json.loads((tmp_path / "results.json").read_text())["stages"]["stage"]
    assert rows["compiled"]["failed"] == "RuntimeError: no C++ compiler" and "test_gpu.py" in rows["compiled"]["at"]
    assert rows["cuda"] == "skipped: needs CUDA" and rows["late"] == "left out: no time"
    assert report.failed == ["stage: wrong", "stage: unequal"]
    # An interrupted run goes on with its results, another one begins without.
    for words, kept in ((["--resume"], {"stage", "more"}), ([], {"more"})):
        Report(tmp_path / "results.json", gpu.parse_args(words), CPU).attempt("more", "row", dict)
        assert set(json.loads((tmp_path / "results.json").read_text())["stages"]) == kept


def test_one_device_equals_itself_and_another_batch_differs():
    shape, data = (8, 1, 2), made_up(4)
    images = data.images.float() / 127.5 - 1
    found = compare_images("base", shape, (CPU, CPU))
    assert found["passed"] and found["largest_difference"]["pipeline"] == 0
    same = compare_steps("base", shape, (CPU, CPU), images, data.labels)
    assert same["passed"] and set(same["gradients_differ_by"].values()) == {0.0} and "r1" in same["losses"]
    other = compare_steps("base", shape, (CPU, CPU), images, 1 - data.labels)
    assert other["losses"]["discriminator"][0] != same["losses"]["discriminator"][0]


def test_operations_and_convolutions_are_counted():
    run = Run("base", (8, 1, 2), CPU, "no", WAYS["as train_dim.py"])
    batch, _ = Feed(run, made_up(8), 4).draw(0)
    found = convolution_rate(run, batch, torch.float32, 0.01)
    # The generator's 3x3 convolution of 96 channels at 4x4, and its output layer, forward and backward.
    by_hand = 0
    for channels_in, channels_out, kernel, positions, images, passes in (
        (96, 96, 3, 16, 4, 3), (96, 1, 4, 16, 4, 3),  # generator
        (1, 128, 4, 16, 8, 2), (128, 128, 3, 16, 8, 3), (129, 128, 3, 16, 8, 3),  # discriminator, real and fake
        (1, 128, 4, 16, 4, 2), (128, 128, 3, 16, 4, 2), (129, 128, 3, 16, 4, 2),  # what the generator learns from
    ):  # fmt: skip
        by_hand += 2 * channels_in * channels_out * kernel**2 * positions * images * passes
    assert found["flops_of_convolutions"] == by_hand
    assert by_hand < step_flops(run, batch) < 1.2 * by_hand
    assert found["flop_per_second"] == pytest.approx(by_hand / found["seconds_of_convolutions"])
    assert step_flops(run, batch, with_r1=True) > 1.3 * step_flops(run, batch)
    assert len(timed(lambda: None, CPU, 0.001, intervals=3)) == 3


@pytest.mark.slow
def test_a_step_is_that_of_the_training_script(tmp_path):
    import train_dim

    from dim_hf.data import holdout, load_image_data

    arguments = [
        "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--max_train_samples", "64",
        "--train_batch_size", "8", "--max_train_steps", "3", "--validation_epochs", "1",
        "--report_to", "none", "--mixed_precision", "no", "--dataloader_num_workers", "1",
    ]  # fmt: skip
    train_dim.main(train_dim.parse_args(arguments))
    train, _ = holdout(load_image_data("digits", max_samples=64, cache_dir=tmp_path / "cache"))
    run = Run("base", (8, 1, 10), CPU, "no", WAYS["as train_dim.py"], augmentation=["shift"])
    feed = Feed(run, train.to(CPU), 8)
    for step in range(3):
        feed.advance(step, ema_decay=min(0.999, (1 + step) / (10 + step)))
    for name, model in run.models.items():
        saved = type(model).from_pretrained(tmp_path / "run" / "checkpoint-3" / name).state_dict()
        for key, value in model.state_dict().items():
            assert torch.equal(value, saved[key]), (name, key)


@pytest.mark.slow
def test_training_saves_what_loads_and_goes_on(folder, tmp_path):
    arguments = [*TINY, "--data", str(folder), "--stages", "training", "--minutes", "0.02"]
    arguments += ["--output_dir", str(tmp_path / "out")]
    gpu.main(gpu.parse_args(arguments), time.time())
    result = json.loads((tmp_path / "out" / "results.json").read_text())["stages"]["training"]["base"]
    assert result["steps"] >= 1 and result["images"] == 4 * result["steps"] and result["way"] == "tuned"
    assert 0 <= result["accuracies"][-1]["test"] <= 1 and result["accuracies"][-1]["step"] == result["steps"]
    pipeline = DiMPipeline.from_pretrained(tmp_path / "out" / "pipeline")
    assert len(pipeline(class_labels="yes", ipc=2).images) == 2
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) <= 8 and max(path.stat().st_size for path in files) < 16 * 2**20
    assert all(len(path.relative_to(tmp_path / "out").parts) <= 3 for path in files)

    before = copy.deepcopy(pipeline.generator.state_dict())
    with pytest.raises(FileExistsError, match="holds results already"):
        gpu.main(gpu.parse_args(arguments), time.time())
    gpu.main(gpu.parse_args([*arguments, "--resume"]), time.time())
    again = json.loads((tmp_path / "out" / "results.json").read_text())["stages"]["training"]["base"]
    assert again["steps"] > result["steps"]
    after = DiMPipeline.from_pretrained(tmp_path / "out" / "pipeline").generator.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.slow
def test_a_bare_machine_runs_the_other_stages(folder, tmp_path):
    stages = ["equality", "synchronisation", "throughput"]
    command = ["-c", BARE, gpu.__file__, *TINY, "--data", folder, "--minutes", "60"]
    result = processes.run([*command, "--output_dir", tmp_path / "out", "--stages", *stages])
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    found = json.loads((tmp_path / "out" / "results.json").read_text())["stages"]
    assert list(found) == stages
    rows = {f"{stage}: {row}": entry for stage in stages for row, entry in found[stage].items()}
    skipped = [row for row, entry in rows.items() if entry == "skipped: needs CUDA"]
    assert "equality: graph" in skipped and "synchronisation: steps, base, no" in skipped
    assert "throughput: step, base, 4, no, compiled" in skipped
    assert rows["equality: resume"]["differs_by_of_the_update"] == {"repeated": 0.0, "resumed": 0.0}
    assert rows["equality: resume"]["loaded_to_the_last_bit"]
    assert rows["equality: steps are finite, paper, bf16"]["passed"]
    kernels = rows["synchronisation: profile, base"]["kernels"]
    assert 0 < kernels[0]["share"] < 1 and sum(kernel["share"] for kernel in kernels) < 1.001
    for preset, size in (("base", 4), ("paper", 2)):
        row = rows[f"throughput: step, {preset}, {size}, no, as train_dim.py"]
        assert 0 < row["slowest"] <= row["images_per_second"] <= row["fastest"] < math.inf
        assert row["share_of_convolution_rate"] > 0
    assert rows["throughput: feed of a ConvNet-3"]["ratio"] > 0
    assert rows["throughput: generation, no"]["stream"]["images_per_second"] > 0
