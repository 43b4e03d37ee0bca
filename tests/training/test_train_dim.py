"""The training script, run for real on the embedded digits with tiny networks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train_dim
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file

from dim_hf.files import lock_output_dir
from dim_hf.pipelines import DiMPipeline


SCRIPT = Path(train_dim.__file__)
TINY_RESNET = "transformers/ResNetConfig:embedding_size=8,hidden_sizes=[8,8],depths=[1,1],layer_type=basic"
TINY = [
    "--max_train_steps", "6", "--max_match_steps", "4", "--train_batch_size", "8", "--logging_steps", "2",
    "--validation_steps", "100", "--validation_epochs", "1", "--validation_ipc", "1", "--checkpointing_steps", "100",
    "--pool_steps", "4", "--pool_snapshots", "2", "--match_interval", "1", "--report_to", "none",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(cache_dir, tmp_path):
    """Arguments of a run of seconds, into a folder of that name."""
    generator, discriminator = tmp_path / "generator.json", tmp_path / "discriminator.json"
    generator.write_text('{"block_out_channels": [8], "layers_per_block": [0]}')
    discriminator.write_text('{"block_out_channels": [8], "layers_per_block": [0]}')

    def arguments(folder, *more):
        return [
            *TINY, "--cache_dir", str(cache_dir), "--output_dir", str(tmp_path / folder), "--generator_config",
            str(generator), "--discriminator_config", str(discriminator), *more,
        ]  # fmt: skip

    return arguments


def run(arguments):
    # Accelerate keeps its settings for the life of a process; every run here is one of its own.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    train_dim.main(train_dim.parse_args(arguments))


def final_weights(folder):
    (checkpoint,) = [path for path in folder.iterdir() if path.name == "checkpoint-10"]
    return {
        name: load_file(checkpoint / name / "diffusion_pytorch_model.safetensors")
        for name in ("generator", "discriminator", "ema_generator")
    }


def assert_equal_weights(first, second):
    for name, weights in first.items():
        for key, value in weights.items():
            assert torch.equal(value, second[name][key]), f"{name}: {key}"


def test_a_run_leaves_a_complete_folder(tiny, tmp_path):
    run(tiny("run"))
    folder = tmp_path / "run"
    for name in ("model_index.json", "generator", "before_matching/model_index.json", "options.json",
                 "environment.json", "metrics.jsonl", "checkpoint-10"):  # fmt: skip
        assert (folder / name).exists(), name
    assert [path.name for path in sorted((folder / "samples").iterdir())] == ["step-0000006.png", "step-0000010.png"]
    assert not [path for path in folder.rglob("*") if "incomplete" in path.name]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    assert [line["matching"] for line in lines] == [False] * 3 + [True] * 2
    assert all("loss/matching" in line for line in lines[3:]) and "loss/matching" not in lines[0]
    assert [line["step"] for line in lines if "validation/accuracy" in line] == [6, 10]

    pipeline = DiMPipeline.from_pretrained(folder)
    output = pipeline(class_labels=["3", 7], ipc=2, generator=torch.Generator().manual_seed(0))
    assert len(output.images) == 4 and list(output.labels) == [3, 3, 7, 7]


def test_the_pipeline_is_that_of_the_best_validation(tiny, tmp_path):
    run(tiny("run", "--validation_steps", "2"))
    folder = tmp_path / "run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["validation/accuracy"] for line in lines}
    best = json.loads((folder / "checkpoint-10" / "progress.json").read_text())["best"]
    assert best["accuracy"] == max(scores.values()) and scores[best["step"]] == best["accuracy"]
    assert min(step for step in scores if scores[step] == best["accuracy"]) == best["step"]


@pytest.mark.parametrize("step", [1, 5, 6, 9])
def test_resume_is_exact_in_both_phases(tiny, tmp_path, step):
    more = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "20"]
    run(tiny("straight", *more))
    straight = tmp_path / "straight"
    # An interruption right after a step: what is left is that step's checkpoint and the ones before it.
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    (straight / f"checkpoint-{step}").rename(interrupted / f"checkpoint-{step}")
    (interrupted / "metrics.jsonl").write_text((straight / "metrics.jsonl").read_text())
    run(tiny("interrupted", *more, "--resume_from_checkpoint", "latest"))
    assert_equal_weights(final_weights(straight), final_weights(interrupted))

    def logged(folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [line["step"] for line in lines], [line.get("validation/accuracy") for line in lines]

    assert logged(interrupted)[0] == sorted(logged(interrupted)[0])
    assert logged(interrupted)[1][-1] == logged(straight)[1][-1]


def test_a_run_branches_off_another_before_matching(tiny, tmp_path):
    steps = ["--checkpointing_steps", "4", "--checkpoints_total_limit", "20"]
    other = ["--match_loss", "pairwise", "--match_interval", "2", "--match_weight", "0.5"]
    longer = ["--max_train_steps", "7", "--max_match_steps", "3"]
    trunk = tmp_path / "trunk"
    run(tiny("trunk", *steps))
    for name, more in (("other", other), ("longer", longer)):
        run(tiny(f"straight-{name}", *steps, *more))
        run(tiny(f"branch-{name}", *steps, *more, "--resume_from_checkpoint", str(trunk / "checkpoint-4")))
        assert_equal_weights(final_weights(tmp_path / f"straight-{name}"), final_weights(tmp_path / f"branch-{name}"))
        assert (tmp_path / f"branch-{name}" / "model_index.json").exists()
        # Matching is compared with what the branch began with where its first phase was over.
        assert (tmp_path / f"branch-{name}" / "before_matching" / "model_index.json").exists()
        # The branch goes on by its own settings.
        run(tiny(f"branch-{name}", *steps, *more, "--resume_from_checkpoint", "latest"))
    with pytest.raises(ValueError, match="`match_interval` was 1 and is now 2.*`match_loss` was 'energy'"):
        run(tiny("late", *steps, *other, "--resume_from_checkpoint", str(trunk / "checkpoint-8")))
    with pytest.raises(ValueError, match="`adversarial_steps` was 6 and is now 7"):
        run(tiny("late", *steps, *longer, "--resume_from_checkpoint", str(trunk / "checkpoint-8")))
    with pytest.raises(ValueError, match="checkpoint-10 is of step 10, and the run ends at step 10; more"):
        run(tiny("late", *steps, "--resume_from_checkpoint", str(trunk / "checkpoint-10")))
    assert not (tmp_path / "late").exists()


def test_a_schedule_that_depends_on_the_length_keeps_it(tiny, tmp_path):
    steps = ["--checkpointing_steps", "4", "--checkpoints_total_limit", "20", "--lr_scheduler", "cosine"]
    run(tiny("trunk", *steps))
    checkpoint = str(tmp_path / "trunk" / "checkpoint-4")
    with pytest.raises(ValueError, match="`adversarial_steps` was 6 and is now 7"):
        run(tiny("branch", *steps, "--max_train_steps", "7", "--resume_from_checkpoint", checkpoint))


def test_resume_is_exact_with_the_paper_preset_and_accumulation(cache_dir, tmp_path):
    config = tmp_path / "config.json"
    config.write_text('{"block_out_channels": [8, 8], "layers_per_block": [1, 1]}')
    arguments = [
        *TINY, "--preset", "paper", "--pool", "convnet3", "--gradient_accumulation_steps", "2", "--cache_dir",
        str(cache_dir), "--generator_config", str(config), "--discriminator_config", str(config),
        "--checkpointing_steps", "7", "--checkpoints_total_limit", "5",
    ]  # fmt: skip
    run([*arguments, "--output_dir", str(tmp_path / "straight")])
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    (tmp_path / "straight" / "checkpoint-7").rename(interrupted / "checkpoint-7")
    run([*arguments, "--output_dir", str(interrupted), "--resume_from_checkpoint", "latest"])
    assert_equal_weights(final_weights(tmp_path / "straight"), final_weights(interrupted))


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_goes_on(tiny, tmp_path):
    length = ["--max_train_steps", "3000", "--max_match_steps", "0", "--logging_steps", "1"]
    command = [sys.executable, str(SCRIPT), *tiny("run", *length)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 3):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "--resume_from_checkpoint latest" in output
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    stopped_at = int(checkpoint.name.removeprefix("checkpoint-"))
    assert 0 < stopped_at < 3000
    assert json.loads((checkpoint / "progress.json").read_text())["step"] == stopped_at


def test_checkpoints_are_limited_to_the_newest(tiny, tmp_path):
    run(tiny("run", "--checkpointing_steps", "2", "--checkpoints_total_limit", "2"))
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-8"]


def test_not_finite_stops_and_keeps_the_last_good_checkpoint(tiny, tmp_path):
    more = ["--checkpointing_steps", "2", "--discr_learning_rate", "1e30", "--logging_steps", "1"]
    run(tiny("run", "--max_train_steps", "2", "--max_match_steps", "0", "--checkpointing_steps", "1"))
    checkpoint = tmp_path / "run" / "checkpoint-2"
    before = {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()}
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite by step \d.*last good checkpoint"):
        run(tiny("other", *more, "--adversarial_loss", "wgan-gp"))
    assert not list((tmp_path / "other").glob("checkpoint-1*"))
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before


def test_ema_off_keeps_the_generator_itself(tiny, tmp_path):
    run(tiny("run", "--no-use_ema"))
    weights = final_weights(tmp_path / "run")
    for key, value in weights["generator"].items():
        if value.is_floating_point():
            assert torch.equal(value, weights["ema_generator"][key]), key


@pytest.mark.parametrize(
    "more",
    [
        ["--mixed_precision", "bf16"],
        ["--adversarial_loss", "wgan-gp", "--max_grad_norm", "1"],
        ["--class_loss_weight", "1"],
        ["--r1_weight", "1", "--r1_interval", "2", "--augmentation", "shift", "cutout", "color"],
        ["--match_loss", "pairwise", "--match_interval", "2"],
        ["--match_loss", "energy=1", "features=0.1"],
        ["--match_loss", "standardised"],
        ["--match_loss", "sample_features", "--pool", "convnet3@2", TINY_RESNET],
        ["--lr_scheduler", "cosine", "--lr_warmup_steps", "2"],
    ],
)
def test_settings_run_and_change_the_result(tiny, tmp_path, more):
    run(tiny("plain"))
    run(tiny("changed", *more))
    plain, changed = final_weights(tmp_path / "plain"), final_weights(tmp_path / "changed")
    assert not all(torch.equal(plain["generator"][k], changed["generator"][k]) for k in plain["generator"])


def test_the_discriminator_has_a_class_head_where_there_is_a_class_loss(tiny, tmp_path):
    run(tiny("without"))
    run(tiny("with", "--class_loss_weight", "0.5"))
    assert "class_head.weight" not in final_weights(tmp_path / "without")["discriminator"]
    assert final_weights(tmp_path / "with")["discriminator"]["class_head.weight"].shape[0] == 10
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/class_real"] > 0 and line["loss/class_fake"] > 0 for line in lines)

    config = tmp_path / "discriminator.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auxiliary": False}))
    with pytest.raises(ValueError, match="`--class_loss_weight` is 0.5, but `--discriminator_config` .*`auxiliary`"):
        run(tiny("refused", "--class_loss_weight", "0.5"))
    assert not (tmp_path / "refused").exists()


def test_few_images_are_shifted_unless_the_user_says_otherwise(tiny, tmp_path):
    assert train_dim.default_augmentation(9_999) == ["shift"] and train_dim.default_augmentation(10_000) == []
    for folder, more, expected in (
        ("digits", [], ["shift"]),
        ("none", ["--augmentation"], []),
        ("paper", ["--preset", "paper"], []),
    ):
        run(tiny(folder, *more, "--max_train_steps", "1", "--max_match_steps", "0"))
        assert json.loads((tmp_path / folder / "options.json").read_text())["augmentation"] == expected


@pytest.mark.slow
def test_two_processes_train_one_model(tiny, tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--local_addr",
        "localhost", str(SCRIPT), *tiny("run"),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "options.json").read_text())["num_processes"] == 2
    assert DiMPipeline.from_pretrained(tmp_path / "run")(ipc=1, output_type="np").images.shape == (10, 8, 8, 1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dataset_name", "no/such/folder"], "no/such/folder"),
        (["--train_split", "training"], "training.*train"),
        (["--image_column", "picture"], "picture.*image"),
        (["--label_column", "class"], "class.*label"),
        (["--resolution", "30"], "`resolution` 30 .* nearest are 28 and 32"),
        (["--pool", "resnet19"], "resnet19.*resnet18"),
        (
            ["--pool", "timm/resnet_18"],
            "`--pool`: classifier 'timm/resnet_18' is unknown; the nearest are timm/resnet18",
        ),
        (["--pool", "convnet3@0"], "`--pool`: 'convnet3@0' has the weight '0'; it must be a whole number from 1"),
        (["--pool", "timm/mixer_s32_224:input_size=30"], "`--pool`: .* takes no images of 30 pixels"),
        (["--pool", "timm/coat_tiny:input_size=32", "--match_loss", "features"], "names no intermediate features"),
        (["--validation_classifier", "resnet_18"], "`--validation_classifier`: .*'resnet_18' is unknown"),
        (
            ["--match_loss", "kl"],
            "`--match_loss` has 'kl'; valid are pairwise, energy, energy_probabilities, standardised, features, "
            "energy_features, sample_features",
        ),
        (["--match_loss", "energy=0"], "`--match_loss` has 'energy=0'; the weight of a loss must be a number above 0"),
        (["--match_loss", "energy=much"], "`--match_loss` has 'energy=much'; the weight"),
        (["--match_loss", "energy", "energy=2"], "`--match_loss` names 'energy' twice"),
        (["--train_batch_size", "0"], "`--train_batch_size` is 0"),
        (["--match_weight", "-1"], "`--match_weight` is -1"),
        (["--validation_fraction", "1"], "`--validation_fraction` is 1"),
        (["--resume_from_checkpoint", "checkpoint-7"], "'checkpoint-7' is no checkpoint; valid are latest"),
        (["--output_dir", "/proc/nowhere"], "`--output_dir` /proc/nowhere cannot be written to"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(tiny, tmp_path, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        run([*tiny("run"), *more])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"norm": "spectral", "width": 4}', "has the unknown width; valid is an object with any of num_classes, "),
        ("[8]", r"has \[8\]; valid is an object with any of num_classes, "),
        ("latent_dim: 8", "is no JSON: "),
    ],
)
def test_a_config_of_other_entries_is_refused(tiny, tmp_path, content, message):
    arguments = tiny("run")
    (tmp_path / "discriminator.json").write_text(content)
    with pytest.raises(ValueError, match=f"`--discriminator_config` .*discriminator.json {message}"):
        run(arguments)
    assert not (tmp_path / "run").exists()


def test_epochs_win_over_the_steps_of_a_preset_and_steps_over_its_epochs():
    args = train_dim.parse_args(["--preset", "base", "--num_train_epochs", "3", "--num_match_epochs", "0"])
    assert (args.num_train_epochs, args.max_train_steps) == (3, None)
    assert (args.num_match_epochs, args.max_match_steps) == (0, None)
    args = train_dim.parse_args(["--preset", "paper", "--max_train_steps", "7"])
    assert (args.num_train_epochs, args.max_train_steps, args.learning_rate) == (150, 7, 1e-4)


def test_a_loss_alone_is_the_same_setting_as_in_a_preset(tiny, tmp_path):
    # A checkpoint of a run that named none goes on under the same flag given.
    assert train_dim.parse_args([]).match_loss == train_dim.parse_args(["--match_loss", "energy"]).match_loss
    args = train_dim.parse_args(["--match_loss", "energy=1", "features=0.1"])
    assert train_dim.matching_weights(args.match_loss) == {"energy": 1.0, "features": 0.1}


def test_unknown_preset_lists_the_presets(tiny, capsys):
    with pytest.raises(SystemExit):
        train_dim.parse_args(["--preset", "huge"])
    assert "'huge'" in (message := capsys.readouterr().err) and "base" in message and "paper" in message


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny, tmp_path):
    run(tiny("run", "--max_match_steps", "0"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(FileExistsError, match="holds a run already; go on with --resume_from_checkpoint latest"):
        run(tiny("run", "--max_match_steps", "0"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_folder_that_another_process_writes_to_is_refused(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    with lock_output_dir(tmp_path / "run"), pytest.raises(FileExistsError, match="is being written to by another"):
        run(tiny("run"))
    assert not (tmp_path / "run" / "options.json").exists()


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tiny, tmp_path):
    run(tiny("run"))
    with pytest.raises(ValueError, match="another configuration: `learning_rate` was 0.0004 and is now 0.001"):
        run(tiny("run", "--learning_rate", "1e-3", "--resume_from_checkpoint", "latest"))


def test_a_full_disk_is_noticed_before_any_work(tiny, tmp_path, monkeypatch):
    # A file system with too little space cannot be made without privileges; the figure it reports can.
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="MiB free; this run needs"):
        run(tiny("run"))
    assert not list((tmp_path / "run").glob("*"))
