import json
import shutil
import signal
import sys
import warnings

import private_run
import pytest
import torch
import train_dim
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from safetensors.torch import load_file

from dim_hf.data import ImageData, load_image_data
from dim_hf.pipelines import DiMPipeline
from dim_hf.privacy import MeanMatching, release_statistics


STEPS = 4


def arguments(tmp_path, output_dir, *more):
    flags = ["--train_data_dir", tmp_path / "private", "--cache_dir", tmp_path / "cache", "--output_dir", output_dir]
    flags += ["--privacy_epsilon", 1, "--max_train_steps", STEPS, "--train_batch_size", 8, "--preset", "pico", *more]
    return train_dim.parse_args([str(flag) for flag in flags])


def reading(tmp_path, output_dir, *more):
    return arguments(tmp_path, output_dir, "--dataloader_num_workers", 0, *more)


def write_images(folder):
    rng = torch.Generator().manual_seed(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(6):
            pixels = torch.randint(256, (16, 16), dtype=torch.uint8, generator=rng)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{i}.png")


@pytest.fixture(autouse=True, scope="module")
def spread_in_every_third_step():
    """So that short runs, too, measure the spread of generated images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_run, "SPREAD_STEPS", 3)
        patch.setattr(private_run, "SPREAD_IMAGES", 40)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that is done, whose images and their cache no longer exist."""
    tmp_path = tmp_path_factory.mktemp("finished")
    write_images(tmp_path / "private")
    train_dim.main(reading(tmp_path, tmp_path / "run", "--checkpointing_steps", 2))
    shutil.rmtree(tmp_path / "private")
    shutil.rmtree(tmp_path / "cache")
    return tmp_path


def forget_configuration():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def new_process():
    """Lets Accelerate read its configuration anew, and forget it afterwards."""
    forget_configuration()
    yield
    forget_configuration()


def weights(folder):
    return load_file(next(folder.glob("generator/*.safetensors")))


def test_the_release_alone_decides_the_generator(finished, tmp_path):
    first, second = finished / "run", tmp_path / "second"
    shutil.copytree(first / "release", second / "release")
    train_dim.main(arguments(finished, second, "--checkpointing_steps", 2))
    there, here = weights(first), weights(second)
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in there)
    grid = f"samples/step-{STEPS:07d}.png"
    assert (first / grid).read_bytes() == (second / grid).read_bytes()
    # Times apart, the record has nothing of the run that read the images.
    records = [
        [json.loads(line) | {"seconds": 0} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (first, second)
    ]
    assert records[0] == records[1]
    pipeline = DiMPipeline.from_pretrained(first)
    assert pipeline(ipc=1, output_type="pt").images.shape == (2, 1, 16, 16)
    assert list(pipeline.config.id2label.values()) == ["cat", "dog"]


def test_a_compiled_run_ends_as_a_plain_one(finished, tmp_path, monkeypatch, new_process):
    # The backend that wraps a network as a compiler does, and computes as before.
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    folder = tmp_path / "run"
    shutil.copytree(finished / "run" / "release", folder / "release")
    train_dim.main(arguments(finished, folder, "--checkpointing_steps", 2))
    there, here = weights(finished / "run"), weights(folder)
    assert there.keys() == here.keys()
    assert all(torch.allclose(there[name], here[name], atol=1e-5) for name in there)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    shutil.rmtree(folder / "generator")
    train_dim.main(arguments(finished, folder, "--checkpointing_steps", 2, "--resume_from_checkpoint", "latest"))
    again = weights(folder)
    assert all(torch.equal(here[name], again[name]) for name in here)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "`--gradient_accumulation_steps` is 1, and accelerate's"),
        ("CXX", "no-compiler", "`--dynamo_backend` is inductor, which needs the compiler no-compiler, and it is not"),
    ],
)
def test_what_accelerates_configuration_would_change_spends_nothing(
    tmp_path, monkeypatch, new_process, name, value, message
):
    write_images(tmp_path / "private")
    monkeypatch.setenv(name, value)
    if name == "CXX":
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match=message):
        train_dim.main(reading(tmp_path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_copied_release_says_what_it_is_of(finished, tmp_path):
    shutil.copytree(finished / "run" / "release", tmp_path / "run" / "release")
    flags = ["--output_dir", tmp_path / "run", "--privacy_epsilon", 1, "--max_train_steps", 2]
    flags += ["--train_batch_size", 8, "--preset", "pico"]
    parse = lambda *more: train_dim.parse_args([str(flag) for flag in (*flags, *more)])  # noqa: E731
    for flag, value in (("train_data_dir", tmp_path / "else"), ("resolution", 32), ("train_split", "other")):
        with pytest.raises(ValueError, match=f"`--{flag}` is {value}, and .*release is of .*leave the flag out"):
            train_dim.main(parse(f"--{flag}", value))
    of_data = (tmp_path / "run" / "release" / "data.json").rename(tmp_path / "data.json")
    with pytest.raises(ValueError, match="`--train_data_dir` must be given: .*release does not say what it is of"):
        train_dim.main(parse())
    of_data.rename(tmp_path / "run" / "release" / "data.json")
    train_dim.main(parse())
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert options["train_data_dir"] == str(finished / "private")


def test_a_run_goes_on_without_its_images_whatever_path_named_them(tmp_path, monkeypatch):
    write_images(tmp_path / "private")
    monkeypatch.chdir(tmp_path)
    flags = ["--dataset_name", "private", "--cache_dir", "cache", "--output_dir", "run", "--privacy_epsilon", "1"]
    flags += ["--train_batch_size", "8", "--preset", "pico", "--checkpointing_steps", "1"]
    flags += ["--dataloader_num_workers", "0", "--max_train_steps"]
    train_dim.main(train_dim.parse_args([*flags, "1"]))
    shutil.rmtree(tmp_path / "private")
    train_dim.main(train_dim.parse_args([*flags, "1", "--resume_from_checkpoint", "latest"]))


def test_a_resumed_run_ends_as_one_without_a_pause(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    shutil.rmtree(folder / "generator")
    # Neither the images nor their cache are there any more.
    train_dim.main(arguments(finished, folder, "--checkpointing_steps", 2, "--resume_from_checkpoint", "latest"))
    there, here = weights(finished / "run"), weights(folder)
    assert all(torch.equal(there[name], here[name]) for name in there | here)
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, STEPS]


def test_ctrl_c_saves_and_the_run_goes_on(finished, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run" / "release", folder / "release")

    class Interrupting(MeanMatching):
        def forward(self, features, classes):
            signal.raise_signal(signal.SIGINT)
            return super().forward(features, classes)

    monkeypatch.setattr(private_run, "MeanMatching", Interrupting)
    with pytest.raises(SystemExit) as stopped:
        train_dim.main(arguments(finished, folder))
    assert stopped.value.code == 130
    assert "Interrupted after step 1 of 4; everything is saved" in capsys.readouterr().out
    monkeypatch.undo()
    train_dim.main(arguments(finished, folder, "--resume_from_checkpoint", "latest"))
    there, here = weights(finished / "run"), weights(folder)
    assert all(torch.equal(there[name], here[name]) for name in there | here)


def test_what_is_written_is_the_release_and_what_follows_from_it(finished):
    folder = finished / "run"
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    top = {name for name in written if not name.startswith((".", "generator/", "checkpoint-"))}
    assert top == {
        "release/data.json",
        "release/statistics.json",
        "release/statistics.safetensors",
        "options.json",
        "environment.json",
        "metrics.jsonl",
        "samples/step-0000002.png",
        f"samples/step-{STEPS:07d}.png",
        "model_index.json",
        "pipeline.py",
    }
    options = json.loads((folder / "options.json").read_text())
    assert options["privacy"]["epsilon"] == 1
    assert options["privacy"]["delta"] == 1e-5
    assert options["privacy"]["unit"] == "one image with its label"
    assert options["privacy"]["mechanism"].startswith("Gaussian")
    assert json.loads((folder / "release" / "statistics.json").read_text())["guarantee"] == options["privacy"]


def test_no_file_tells_the_number_or_a_digest_of_the_images(tmp_path):
    """Two data sets, one of an image less: what is written differs in nothing but what the noise decides."""
    for name in ("first", "second"):
        write_images(tmp_path / name / "private")
    (tmp_path / "second" / "private" / "cat" / "0.png").unlink()
    written = {}
    for name in ("first", "second"):
        train_dim.main(reading(tmp_path / name, tmp_path / name / "run"))
        run = tmp_path / name / "run"
        texts = [run / "options.json", run / "release" / "statistics.json", run / "model_index.json"]
        texts += [run / "generator" / "config.json"]
        written[name] = [path.read_text().replace(str(tmp_path / name), "") for path in texts]
        written[name].append(sorted(path.name for path in run.rglob("*")))
    assert written["first"] == written["second"]


def test_the_terminal_does_not_tell_the_number_of_images(tmp_path, capfd):
    write_images(tmp_path / "private")
    (tmp_path / "private" / "cat" / "0.png").unlink()
    train_dim.main(reading(tmp_path, tmp_path / "run"))
    out, error = capfd.readouterr()
    assert "images" not in error
    assert "taken to be public: 2 classes and their names, images of 1 x 16 x 16" in out
    assert "too few for this epsilon, expect noise: cat, dog" in out


def test_the_terminal_does_not_tell_what_is_in_an_image(tmp_path):
    write_images(tmp_path / "private")
    # Its EXIF data are cut off, of which Pillow warns.
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0"
    Image.new("L", (16, 16)).save(tmp_path / "private" / "cat" / "cut.jpg", exif=exif)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        load_image_data(tmp_path / "private", cache_dir=tmp_path / "other", num_workers=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_dim.main(reading(tmp_path, tmp_path / "run"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--privacy_epsilon", "2"], "`privacy_epsilon` was 1.0 and is now 2.0"),
        (["--seed", "1"], "`seed` was 0 and is now 1"),
    ],
)
def test_a_run_does_not_go_on_with_other_settings(finished, flags, message):
    with pytest.raises(ValueError, match=message):
        train_dim.main(arguments(finished, finished / "run", "--resume_from_checkpoint", "latest", *flags))


def test_without_its_flag_a_private_run_does_not_go_on(finished, tmp_path):
    shutil.copytree(finished / "run", tmp_path / "run")
    more = ["--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", "latest"]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="checkpoint-4 is of a run with --privacy_epsilon, which goes on with it"):
        train_dim.main(train_dim.parse_args(more))
    for path in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(path)
    for arguments in (more, more[:2]):
        with pytest.raises(FileExistsError, match="holds the release of a run with --privacy_epsilon; give that flag"):
            train_dim.main(train_dim.parse_args(arguments))
    assert all(path.read_bytes() == before[path] for path in tmp_path.rglob("*") if path.is_file())


def test_another_budget_for_a_release_is_refused(finished, tmp_path):
    shutil.copytree(finished / "run" / "release", tmp_path / "run" / "release")
    with pytest.raises(ValueError, match="A second release adds to the first"):
        train_dim.main(arguments(finished, tmp_path / "run", "--privacy_epsilon", 2))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["release"]


def test_a_release_that_was_removed_is_not_made_again(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    shutil.rmtree(folder / "release")
    write_images(tmp_path / "private")
    for checkpoint in (True, False):
        with pytest.raises(FileNotFoundError, match="another release would add to the one that was spent"):
            train_dim.main(reading(finished, folder, "--resume_from_checkpoint", "latest"))
        if checkpoint:
            for path in folder.glob("checkpoint-*"):
                shutil.rmtree(path)
    assert not (folder / "release").exists()


def test_two_processes_do_not_release_twice(finished, tmp_path):
    start = private_run.check(arguments(finished, tmp_path / "run"))
    shutil.copytree(finished / "run" / "release", tmp_path / "run" / "release")
    data = ImageData(torch.zeros(2, 1, 16, 16, dtype=torch.uint8), torch.arange(2), ("cat", "dog"), "0" * 16)
    with pytest.raises(FileExistsError, match="another process has made"):
        private_run.release_once(start, data, 1.0, 1e-5)


def test_without_the_accountant_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"pip install dp-accounting"):
        train_dim.main(arguments(tmp_path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_not_begun_again(finished):
    with pytest.raises(FileExistsError, match="holds the checkpoints of a run already"):
        train_dim.main(arguments(finished, finished / "run"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--validation_fraction", "0.2"],
        ["--max_train_samples", "100"],
        ["--num_train_epochs", "3"],
        ["--max_match_steps", "3"],
        ["--augmentation", "shift"],
        ["--report_to", "none"],
        ["--rounded_steps", "1", "--storage", "int4"],
    ],
)
def test_flags_without_effect_are_refused_by_name(flags):
    with pytest.raises(ValueError, match=f"`{flags[0]}` has no effect with `--privacy_epsilon`"):
        train_dim.parse_args(["--privacy_epsilon", "1", *flags])


def test_a_name_that_no_pipeline_can_have_spends_nothing(tmp_path):
    write_images(tmp_path / "private")
    (tmp_path / "private" / "cat").rename(tmp_path / "private" / "a\ncat")
    with pytest.raises(ValueError, match="`id2label` holds the name .*; valid is one line"):
        train_dim.main(reading(tmp_path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_delta_without_epsilon_is_refused():
    with pytest.raises(ValueError, match="`--privacy_delta` has no effect without `--privacy_epsilon`"):
        train_dim.parse_args(["--privacy_delta", "1e-6"])


class Sealed(ImageData):
    """Images that raise at any use once they are sealed."""

    def __getattribute__(self, name):
        if object.__getattribute__(self, "__dict__").get("sealed"):
            raise AssertionError(f"{name} of the private images was read after the release")
        return object.__getattribute__(self, name)


def test_no_later_stage_reads_the_images(tmp_path, monkeypatch):
    images = torch.randint(256, (12, 1, 16, 16), dtype=torch.uint8)
    data = Sealed(images, torch.arange(12) % 2, ("cat", "dog"), "0" * 16)
    release = private_run.release_statistics

    def releasing(images, epsilon, delta):
        statistics = release(images, epsilon, delta)
        object.__setattr__(images, "sealed", True)
        return statistics

    monkeypatch.setattr(private_run, "read_images", lambda args, start: data)
    monkeypatch.setattr(private_run, "release_statistics", releasing)
    train_dim.main(arguments(tmp_path, tmp_path / "run"))
    assert (tmp_path / "run" / "model_index.json").is_file()
    with pytest.raises(AssertionError, match="batch of the private images"):
        data.batch(torch.tensor([0]))


def test_matching_brings_the_generator_nearer_to_the_release(tmp_path):
    images = torch.zeros(2000, 1, 16, 16, dtype=torch.uint8)
    images[1000:, :, :8] = 255
    data = ImageData(images, torch.arange(2000) // 1000, ("dark", "half"), "0" * 16)
    statistics = release_statistics(data, 10, 1e-5)
    args = arguments(tmp_path, tmp_path / "run", "--max_train_steps", 60, "--train_batch_size", 20)
    (tmp_path / "run").mkdir()
    start = private_run.check(args)
    networks = private_run.make_networks(args, start, statistics)
    labels = torch.arange(2).repeat_interleave(20)
    latents = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))

    @torch.no_grad()
    def distance():
        features = statistics.features(networks.ema_generator(latents, labels).sample)
        return float(MeanMatching(statistics.means())(features.unflatten(0, (2, 20)), torch.arange(2)))

    before = distance()
    private_run.train(args, start, statistics, networks)
    assert distance() < before - 0.3
    half = networks.ema_generator(latents, labels).sample[20:]
    assert half[:, :, :8].mean() > half[:, :, 8:].mean() + 0.3


def test_any_number_of_classes_fits_the_batch(tmp_path):
    images = torch.zeros(60, 1, 8, 8, dtype=torch.uint8)
    data = ImageData(images, torch.arange(60) % 30, tuple(map(str, range(30))), "0" * 16)
    statistics = release_statistics(data, 1, 1e-5)
    (tmp_path / "run").mkdir()
    args = arguments(tmp_path, tmp_path / "run")
    start = private_run.check(args)
    networks = private_run.make_networks(args, start, statistics)
    private_run.train(args, start, statistics, networks)
    # 8 of 30 classes in each of 4 steps.
    assert networks.matching.steps.sum() == 8 * STEPS
