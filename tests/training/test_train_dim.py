"""The training script, run for real on the embedded digits with tiny networks."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import preparation
import processes
import pytest
import torch
import train_dim
import validation
from accelerate.state import AcceleratorState, GradientState
from continuation import may_still_change, recorded
from PIL import Image
from run_folder import needed_bytes
from safetensors.torch import load_file

from dim_hf.distillation.checkpointing import checkpoints
from dim_hf.files import lock_output_dir
from dim_hf.models import DiMDiscriminator, DiMGenerator, DiMLabeler
from dim_hf.pipelines import DiMPipeline


SCRIPT = Path(train_dim.__file__)
TINY_RESNET = "transformers/ResNetConfig:embedding_size=8,hidden_sizes=[8,8],depths=[1,1],layer_type=basic"
TINY = [
    "--max_train_steps", "6", "--max_match_steps", "4", "--train_batch_size", "8", "--logging_steps", "2",
    "--validation_steps", "100", "--validation_epochs", "1", "--checkpointing_steps", "100",
    "--pool_steps", "4", "--match_interval", "1", "--report_to", "none",
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def float32():
    """What is chosen by itself on any processor, so that the tests are the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "bfloat16_unit", lambda: None)
        yield


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def tiny(cache_dir, tmp_path):
    """Arguments of a run of seconds, into a folder of that name."""
    return tiny_arguments(cache_dir, tmp_path)


@pytest.fixture(scope="module")
def plain(cache_dir, tmp_path_factory):
    """The folder of such a run with every checkpoint, to be read and copied."""
    parent = tmp_path_factory.mktemp("plain")
    run(tiny_arguments(cache_dir, parent)("run", "--checkpointing_steps", "1", "--checkpoints_total_limit", "20"))
    return parent / "run"


def tiny_arguments(cache_dir, tmp_path):
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
def test_resume_is_exact_in_both_phases(tiny, tmp_path, plain, step):
    more = ["--checkpointing_steps", "1", "--checkpoints_total_limit", "20"]
    straight = plain
    # An interruption right after a step: what is left is that step's checkpoint and the ones before it.
    interrupted = tmp_path / "interrupted"
    shutil.copytree(straight / f"checkpoint-{step}", interrupted / f"checkpoint-{step}")
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
    other = ["--match_loss", "pairwise=0.5", "--match_interval", "2"]
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
    with pytest.raises(ValueError, match="`match_interval` was 1 and is now 2.*`match_loss` was 'class'"):
        run(tiny("late", *steps, *other, "--resume_from_checkpoint", str(trunk / "checkpoint-8")))
    with pytest.raises(ValueError, match=r"`adversarial_steps` was 6 and is now 7 \(by --max_train_steps"):
        run(tiny("late", *steps, *longer, "--resume_from_checkpoint", str(trunk / "checkpoint-8")))
    with pytest.raises(ValueError, match="checkpoint-10 is of step 10, and the run ends at step 10; more"):
        run(tiny("late", *steps, "--resume_from_checkpoint", str(trunk / "checkpoint-10")))
    assert not (tmp_path / "late").exists()


def test_help_shows_the_defaults_of_the_preset(capsys):
    for preset, shown in (("base", "(default: 64)"), ("paper", "(default: 128)")):
        with pytest.raises(SystemExit):
            train_dim.parse_args(["--preset", preset, "--help"])
        text = capsys.readouterr().out
        assert shown in text and "(default: None)" not in text
        # Each flag has a text.
        for action in re.findall(r"^  (--\w+)", text, re.MULTILINE):
            described = text.partition(f"  {action}")[2].partition("\n  --")[0]
            assert len(described.split()) > 1, action


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
    with pytest.raises(FloatingPointError, match=r"became NaN or infinite by step \d.*checkpoints of earlier steps"):
        run(tiny("other", *more, "--adversarial_loss", "wgan-gp"))
    assert not list((tmp_path / "other").glob("checkpoint-1*"))
    assert {path: path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()} == before


def test_ema_off_keeps_the_generator_itself(tiny, tmp_path):
    run(tiny("run", "--ema_decay", "0"))
    weights = final_weights(tmp_path / "run")
    for key, value in weights["generator"].items():
        if value.is_floating_point():
            assert torch.equal(value, weights["ema_generator"][key]), key


@pytest.mark.parametrize(
    "more",
    [
        ["--mixed_precision", "bf16"],
        ["--adversarial_loss", "wgan-gp"],
        ["--adversarial_loss", "relativistic"],
        ["--class_loss_weight", "1"],
        ["--r1_weight", "1", "--augmentation", "shift", "cutout", "color"],
        ["--match_loss", "pairwise", "--match_interval", "2"],
        ["--match_loss", "energy=1", "features=0.1"],
        ["--match_loss", "standardised"],
        ["--match_loss", "sample_features", "--pool", "convnet3@2", TINY_RESNET],
        ["--ema_decay", "0.5", "--adam_beta1", "0.9"],
    ],
)
def test_settings_run_and_change_the_result(tiny, tmp_path, plain, more):
    run(tiny("changed", *more))
    usual, changed = final_weights(plain), final_weights(tmp_path / "changed")
    assert not all(torch.equal(usual["generator"][k], changed["generator"][k]) for k in usual["generator"])


def test_the_relativistic_loss_is_penalised_at_generated_images_too(tiny, tmp_path):
    run(tiny("run", "--adversarial_loss", "relativistic", "--logging_steps", "1"))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line.get("loss/r1", 0) > 0] == [1]
    assert [line["step"] for line in lines if line.get("loss/r2", 0) > 0] == [9]


def test_the_discriminator_has_a_class_head_where_there_is_a_class_loss(tiny, tmp_path, plain):
    run(tiny("with", "--class_loss_weight", "0.5"))
    assert "class_head.weight" not in final_weights(plain)["discriminator"]
    assert final_weights(tmp_path / "with")["discriminator"]["class_head.weight"].shape[0] == 10
    lines = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["loss/class_real"] > 0 and line["loss/class_fake"] > 0 for line in lines)

    config = tmp_path / "discriminator.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auxiliary": False}))
    with pytest.raises(ValueError, match="`--class_loss_weight` is 0.5, but `--discriminator_config` .*`auxiliary`"):
        run(tiny("refused", "--class_loss_weight", "0.5"))
    config.write_text(json.dumps(json.loads(config.read_text()) | {"auxiliary": True}))
    with pytest.raises(
        ValueError, match="adds a class head .*, but `--class_loss_weight` is 0, so nothing would train"
    ):
        run(tiny("refused"))
    assert not (tmp_path / "refused").exists()


def test_few_images_are_shifted_unless_the_user_says_otherwise(tiny, tmp_path):
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


@pytest.mark.slow
def test_ctrl_c_in_a_validation_of_two_processes_saves_within_seconds(tiny, tmp_path):
    # The validation would take hours.
    more = ["--validation_steps", "2", "--validation_epochs", "1000000", "--logging_steps", "1"]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--local_addr",
        "localhost", str(SCRIPT), *tiny("run", *more),
    ]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not log.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=120)
    progress = json.loads((tmp_path / "run" / "checkpoint-2" / "progress.json").read_text())
    assert progress["step"] == 2 and "loss/generator" in progress["pending"]


@pytest.mark.parametrize("more", [[], ["--resume_from_checkpoint", "latest"], ["--privacy_epsilon", "1"]])
def test_the_data_folder_is_no_output_folder(tiny, tmp_path, more):
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), 20 * i).save(tmp_path / "pets" / name / f"{i}.png")
    before = sorted(tmp_path.rglob("*"))
    arguments = ["--train_data_dir", str(tmp_path / "pets"), "--output_dir", str(tmp_path / "pets")]
    if "--privacy_epsilon" not in more:
        arguments = [*tiny("pets"), *arguments]
    with pytest.raises(FileExistsError, match=r"`--output_dir` .*pets is the data folder .*pets, whose images"):
        run([*arguments, *more])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("flag", ["--output_dir", "--train_data_dir", "--cache_dir", "--resume_from_checkpoint"])
def test_an_empty_path_is_not_the_current_folder(tiny, flag, capsys):
    with pytest.raises(SystemExit):
        run([*tiny("run"), flag, ""])
    assert f"argument {flag}: it is empty" in capsys.readouterr().err


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
        (["--pool", "timm/mixer_s32_224:input_size=30"], "`--pool`: .* does not take images of 30 pixels"),
        (["--pool", "timm/coat_tiny:input_size=32", "--match_loss", "features"], "has no intermediate features"),
        (["--validation_classifier", "resnet_18"], "`--validation_classifier`: .*'resnet_18' is unknown"),
        (["--resume_from_checkpoint", "checkpoint-7"], "'checkpoint-7' is not a checkpoint; valid are latest"),
        (["--output_dir", "/proc/nowhere"], "`--output_dir` /proc/nowhere cannot be written to"),
        (["--resolution", "1000000"], "`resolution` 1000000 .* nearest are 3072 and 3584"),
        (["--train_batch_size", "900000000"], "`--train_batch_size` is 900000000, whose images take .* GiB"),
        (["--hub_model_id", "me/x"], "`--hub_model_id` has no effect without `--push_to_hub`"),
        (["--augmentation", "shift", "shift"], "`--augmentation` names shift, shift; each must be given once"),
        (["--mixed_precision", "fp16"], "`--mixed_precision` asks for fp16, which a CPU does not train in"),
        (["--report_to", "nonsense"], "`--report_to` 'nonsense' is not a tracker .*; valid are .*tensorboard"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_made(tiny, tmp_path, more, message):
    with pytest.raises((ValueError, OSError), match=message):
        run([*tiny("run"), *more])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--match_loss kl",
            "argument --match_loss: 'kl' is not a loss; valid are class, pairwise, energy, energy_prob",
        ),
        ("--match_loss energy=0", "argument --match_loss: the weight in 'energy=0' is not a number above 0"),
        ("--match_loss energy=much", "argument --match_loss: the weight in 'energy=much' is not a number"),
        ("--match_loss energy energy=2", "argument --match_loss: 'energy' is given twice"),
        ("--match_loss=", "argument --match_loss: no loss is given; valid are class, pairwise"),
        ("--pool convnet3@0", "argument --pool: 'convnet3@0' has the weight '0'; it must be a whole number from 1"),
        ("--pool convnet3@2000", "argument --pool: 'convnet3@2000' has the weight '2000'"),
        ("--train_batch_size 0", "argument --train_batch_size: '0' is not a whole number from 1 to 1,000,000,000"),
        ("--checkpointing_steps 10000000000", "argument --checkpointing_steps: '10000000000' is not a whole number"),
        ("--seed -1", "argument --seed: '-1' is not a whole number from 0 to 4,294,967,295"),
        ("--r1_weight inf", "argument --r1_weight: 'inf' is not a number from 0 to 1e30"),
        ("--learning_rate nan", "argument --learning_rate: 'nan' is not a number above 0"),
        ("--adam_beta1 1", "argument --adam_beta1: '1' is not a number from 0 to below 1"),
        ("--validation_fraction 1", "argument --validation_fraction: '1' is not a number between 0 and 1"),
        ("--preset huge", "argument --preset: invalid choice: 'huge' (choose from"),
    ],
)
def test_wrong_arguments_are_refused_by_argparse(capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        train_dim.parse_args(arguments.split())
    error = capsys.readouterr().err
    assert end.value.code == 2 and message in error and len(error) < 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"norm": "spectral", "width": 4}', "has the unknown width; valid is an object with any of num_classes, "),
        ("[8]", r"has \[8\]; valid is an object with any of num_classes, "),
        ("latent_dim: 8", "is not JSON: "),
        ("[" * 100_000, "is not JSON: "),
        (b"\xff\xfe{", "is not JSON: "),
        ('{"sample_size": 16}', "`sample_size` is 16, but that of the images is 8"),
        ('{"in_channels": 3}', "`in_channels` is 3, but that of the images is 1"),
        ('{"num_classes": "x"}', "`num_classes` is 'x'; it must be a whole number from 1 to 65,536"),
        ('{"block_out_channels": 8}', "`block_out_channels` is 8; it must be a list of whole numbers from 1"),
        ('{"block_out_channels": [true]}', r"`block_out_channels` is \[True\]; it must be a list of whole numbers"),
        ('{"block_out_channels": []}', r"`block_out_channels` is \[\]; it must be a list of whole numbers"),
        (
            '{"layers_per_block": [-1]}',
            r"`layers_per_block` is \[-1\]; it must be a list of whole numbers from 0 to 64",
        ),
        ('{"layers_per_block": [0, 0]}', r"`layers_per_block` \(0, 0\) must have one entry per block"),
        ('{"projection": 1}', "`projection` is 1; it must be true or false"),
        ('{"norm": ["layer"]}', r"`norm` is \['layer'\]; it must be a word"),
        ('{"norm": "batch"}', "`norm` is 'batch'; valid are 'spectral'"),
        ('{"block_out_channels": [65536], "layers_per_block": [64]}', "the config asks for about .* weights"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(tiny, tmp_path, content, message):
    arguments = tiny("run")
    (tmp_path / "discriminator.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"`--discriminator_config` .*discriminator.json:? {message}"):
        run(arguments)
    assert not (tmp_path / "run").exists()


def test_a_network_larger_than_free_memory_is_refused(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=2**17))
    with pytest.raises(ValueError, match="has .* weights, which take .* GiB to train; 0.0 GiB are free"):
        run(tiny("run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_a_config_that_cannot_be_read_is_refused(tiny, tmp_path, name):
    path = tmp_path / name
    with pytest.raises(OSError, match=f"`--generator_config` {path} cannot be read: (No such file|Is a directory)"):
        run(tiny("run", "--generator_config", str(path)))
    assert not (tmp_path / "run").exists()


def test_a_lone_image_that_batch_norm_cannot_take_is_refused(tiny, tmp_path):
    path = tmp_path / "generator.json"
    path.write_text('{"block_out_channels": [8, 8, 8], "layers_per_block": [0, 0, 0]}')
    with pytest.raises(ValueError, match="`--generator_config` .* cannot be trained: Expected more than 1 value"):
        run(tiny("run", "--train_batch_size", "1"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "fp16", "accelerate's configuration asks for fp16, which a CPU does not"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "accelerate's configuration asks for the precision 'fp8'; valid are no"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "`--gradient_accumulation_steps` is 1, and accelerate's"),
        ("CXX", "no-compiler", "`--dynamo_backend` is inductor, which needs the compiler no-compiler, and it is not"),
    ],
)
def test_what_accelerates_configuration_would_change_is_refused(tiny, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    if name == "CXX":
        monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(ValueError, match=message):
        run(tiny("run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="Inductor compiles with g++")
def test_a_compiled_step_with_its_penalty_is_the_eager_one(tiny, tmp_path, monkeypatch):
    # The first step has the R1 penalty, whose second derivative compiled code cannot take.
    length = ["--max_train_steps", "2", "--max_match_steps", "1", "--logging_steps", "1"]
    run(tiny("eager", *length))
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    run(tiny("compiled", *length))
    records = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("eager", "compiled")
    ]
    assert "loss/r1" in records[0][0] and "loss/matching" in records[0][2]
    for eager, compiled in zip(*records, strict=True):
        losses = {name: value for name, value in eager.items() if name.startswith("loss/")}
        assert {name: compiled[name] for name in losses} == pytest.approx(losses, rel=1e-3, abs=1e-5)


def test_folders_trackers_and_tokens_are_looked_at_before_data(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    (tmp_path / "run" / "checkpoint-8").mkdir(parents=True)
    for more, error, message in (
        ([], FileExistsError, "holds the checkpoints of a run already, checkpoint-8"),
        (["--resume_from_checkpoint", "latest"], ValueError, r"checkpoint-8 is damaged \(it is empty\)"),
        (["--report_to", "wandb-"], ValueError, "`--report_to`"),
        (["--push_to_hub"], ValueError, "needs a token, and there is none"),
        (["--push_to_hub", "--hub_token", "hf_x", "--hub_model_id", "a b"], ValueError, "`--hub_model_id` is not"),
    ):
        with pytest.raises(error, match=message):
            run(tiny("run", "--dataset_name", "no/such/folder", *more))


def test_epochs_win_over_the_steps_of_a_preset_and_steps_over_its_epochs():
    args = train_dim.parse_args(["--preset", "base", "--num_train_epochs", "3", "--num_match_epochs", "0"])
    assert (args.num_train_epochs, args.max_train_steps) == (3, None)
    assert (args.num_match_epochs, args.max_match_steps) == (0, None)
    args = train_dim.parse_args(["--preset", "paper", "--max_train_steps", "7"])
    assert (args.num_train_epochs, args.max_train_steps, args.learning_rate) == (150, 7, 1e-4)


def test_losses_and_pools_are_recorded_as_they_are_typed():
    flags = ["--match_loss", "energy=1.0", "features=0.1", "--pool", "convnet3@2", "resnet18@1"]
    args = train_dim.parse_args([*flags, "--max_match_steps", "5"])
    assert args.match_loss == {"energy": 1.0, "features": 0.1}
    assert args.pool == [("convnet3", 2), ("resnet18", 1)]
    options = recorded(args)
    assert options["match_loss"] == "energy features=0.1" and options["pool"] == ["convnet3@2", "resnet18"]
    assert recorded(train_dim.parse_args([]))["match_loss"] == "class"


def test_a_checkpoint_may_write_losses_and_pools_in_another_form():
    now = recorded(train_dim.parse_args(["--match_loss", "energy", "--pool", "convnet3", "--max_match_steps", "5"]))
    now |= {"adversarial_steps": 6, "rounded_from": None, "num_processes": 1}
    then = now | {"match_loss": "energy=1", "pool": ["convnet3@1"]}
    assert {"match_loss", "pool"} <= may_still_change(8, then, now)
    assert not {"match_loss", "pool"} & may_still_change(8, now | {"match_loss": "energy=2", "pool": []}, now)


@pytest.mark.slow
def test_pool_snapshots_says_how_many_networks_match(tiny, tmp_path):
    counts = {}
    for number in ("1", "3"):
        cache = tmp_path / f"cache-{number}"
        flags = ["--pool_snapshots", number, "--pool_steps", "40", "--match_loss", "class", "--cache_dir", str(cache)]
        run(tiny(f"run-{number}", *flags))
        (pool,) = (cache / "pool").iterdir()
        counts[number] = sorted({int(name.partition("/")[0]) for name in load_file(pool)})
    assert counts == {"1": [40], "3": [16, 25, 40]}


def test_the_first_rounded_step_may_move_until_rounding_begins():
    now = recorded(train_dim.parse_args([])) | {"adversarial_steps": 90, "rounded_from": 60, "num_processes": 1}
    for then, step, free in (
        ({"rounded_from": 40}, 40, True),
        ({"rounded_from": 40}, 41, False),
        ({"rounded_from": None}, 60, True),
        ({"rounded_from": None}, 61, False),
        # A run of a release without it was not rounded.
        ({}, 60, True),
    ):
        before = {name: value for name, value in now.items() if name != "rounded_from"} | {"adversarial_steps": 50}
        assert ("rounded_from" in may_still_change(step, before | then, now)) is free


@pytest.mark.slow
def test_the_last_steps_take_rounded_weights_and_going_on_is_exact(tiny, tmp_path):
    def go(name, *more):
        run(tiny(name, "--max_match_steps", "0", "--max_train_steps", "6", "--storage", "int4", *more))
        return load_file(tmp_path / name / "checkpoint-6" / "generator" / "diffusion_pytorch_model.safetensors")

    exact, rounded = go("exact"), go("rounded", "--rounded_steps", "3", "--checkpointing_steps", "2")
    assert any(not torch.equal(exact[name], value) for name, value in rounded.items())
    run(tiny("half", "--max_match_steps", "0", "--max_train_steps", "3", "--storage", "int4"))
    again = go("half", "--rounded_steps", "3", "--resume_from_checkpoint", "latest")
    assert all(torch.equal(again[name], value) for name, value in rounded.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--match_loss features", "`--match_loss` has no effect without `--max_match_steps` or `--num_match_epochs`"),
        ("--preset tiny --pool resnet18 --pool_steps 9", "`--pool` and `--pool_steps` have no effect without"),
        ("--train_data_dir x --dataset_name y", "`--dataset_name` has no effect with `--train_data_dir`"),
    ],
)
def test_flags_without_effect_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        train_dim.parse_args(arguments.split())


def test_flags_of_matching_are_for_runs_with_matching_or_a_trunk_of_them():
    for more in ("--max_match_steps 9", "--num_match_epochs 1", "--max_match_steps 0", "--preset paper"):
        assert train_dim.parse_args(["--match_interval", "3", *more.split()]).match_interval == 3


def test_a_branch_chooses_its_storage_and_validation(tiny, tmp_path):
    more = ["--max_match_steps", "0", "--checkpointing_steps", "2", "--checkpoints_total_limit", "9"]
    rounding = [*more, "--storage", "int4", "--rounded_steps", "2", "--validation_epochs", "2"]
    run(tiny("trunk", *more))
    checkpoint = tmp_path / "trunk" / "checkpoint-4"
    run(tiny("branch", *rounding, "--resume_from_checkpoint", str(checkpoint)))
    run(tiny("straight", *rounding))
    weights = [
        load_file(tmp_path / name / "generator" / "diffusion_pytorch_model.safetensors")
        for name in ("branch", "straight")
    ]
    assert "proj_in.weight.int4" in weights[0] and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    # In its own folder a run has selected its pipeline by these settings, and rounded steps have used the storage.
    shutil.rmtree(tmp_path / "trunk" / "checkpoint-6")
    with pytest.raises(
        ValueError, match="`storage` was None and is now 'int4'.*`validation_epochs` was 1 and is now 2"
    ):
        run(tiny("trunk", *rounding, "--resume_from_checkpoint", "latest"))
    rounded = tmp_path / "branch" / "checkpoint-6"
    with pytest.raises(ValueError, match="another configuration: .*`storage` was 'int4' and is now 'int8'"):
        longer = [*more, "--storage", "int8", "--rounded_steps", "4", "--max_train_steps", "8"]
        run(tiny("late", *longer, "--resume_from_checkpoint", str(rounded)))


def test_images_that_are_too_small_ask_for_a_resolution(tiny, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(2):
            Image.new("L", (4, 4)).save(tmp_path / "set" / name / f"{number}.png")
    with pytest.raises(ValueError, match="^`resolution` 4 is a size that .* nearest are 8 and 10; pass one as --reso"):
        run(tiny("run", "--train_data_dir", str(tmp_path / "set")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rounded_steps", "3"], "`--rounded_steps` has no effect without int8, int7 ... int2 as `--storage`"),
        (["--rounded_steps", "3", "--storage", "float16"], "`--rounded_steps` has no effect without"),
        (["--rounded_steps", "900", "--storage", "int4"], "`--rounded_steps` is 900; valid are 0 to"),
    ],
)
def test_rounded_steps_that_cannot_be_are_refused(tiny, more, message):
    with pytest.raises(ValueError, match=message):
        run(tiny("run", *more))


def test_a_folder_that_holds_a_run_is_not_overwritten(tiny, tmp_path):
    run(tiny("run", "--max_match_steps", "0"))
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with pytest.raises(
        FileExistsError, match="holds the checkpoints of a run already, .*; go on with --resume_from_checkpoint latest"
    ):
        run(tiny("run", "--max_match_steps", "0"))
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_a_folder_that_another_process_writes_to_is_refused(tiny, tmp_path):
    (tmp_path / "run").mkdir()
    with lock_output_dir(tmp_path / "run"), pytest.raises(FileExistsError, match="is being written to by another"):
        run(tiny("run"))
    assert not (tmp_path / "run" / "options.json").exists()


def test_a_checkpoint_of_another_configuration_is_refused_by_name(tiny, tmp_path, plain):
    shutil.copytree(plain, tmp_path / "run")
    with pytest.raises(ValueError, match="another configuration: `learning_rate` was 0.0004 and is now 0.001"):
        run(tiny("run", "--learning_rate", "1e-3", "--resume_from_checkpoint", "latest"))


def folder_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_of_one_run_takes_nothing_from_another(tiny, tmp_path):
    more = ["--checkpointing_steps", "2", "--checkpoints_total_limit", "9"]
    run(tiny("trunk", *more))
    run(tiny("other", "--max_train_steps", "2", "--max_match_steps", "0"))
    before = folder_files(tmp_path)
    for resume in (["checkpoint-6"], [str(tmp_path / "trunk" / "checkpoint-6")]):
        with pytest.raises(FileExistsError, match="checkpoint-6 is followed by checkpoint-8, checkpoint-10 in"):
            run(tiny("trunk", *more, "--match_loss", "pairwise", "--resume_from_checkpoint", *resume))
    with pytest.raises(FileExistsError, match="`--output_dir` .*other holds the checkpoints of a run already"):
        run(tiny("other", *more, "--resume_from_checkpoint", str(tmp_path / "trunk" / "checkpoint-6")))
    assert folder_files(tmp_path) == before


def test_a_pipeline_is_of_the_settings_recorded_beside_it(tiny, tmp_path):
    more = ["--checkpointing_steps", "2", "--checkpoints_total_limit", "9", "--validation_steps", "2"]
    folder = tmp_path / "run"
    run(tiny("run", *more))
    # As after a loss of what followed step 4, with a pipeline that came later and settings that matching began with.
    for step in (6, 8, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    best = json.loads((folder / "checkpoint-4" / "progress.json").read_text())["best"]
    torch.manual_seed(5)
    pipeline = DiMPipeline.from_pretrained(folder)
    torch.nn.init.normal_(pipeline.generator.proj_in.weight)
    for later in (folder, folder / "before_matching"):
        pipeline.save_pretrained(later)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "loss')
    run(tiny("run", *more, "--match_loss", "pairwise", "--max_match_steps", "2", "--resume_from_checkpoint", "latest"))
    assert json.loads((folder / "options.json").read_text())["match_loss"] == "pairwise"
    last = json.loads((folder / "checkpoint-8" / "progress.json").read_text())["best"]
    run(tiny("straight", *more, "--match_loss", "pairwise", "--max_match_steps", "2"))
    assert last["step"] == json.loads((tmp_path / "straight/checkpoint-8/progress.json").read_text())["best"]["step"]
    for name in (".", "before_matching"):
        found, expected = (
            load_file(parent / name / "generator" / "diffusion_pytorch_model.safetensors")
            for parent in (folder, tmp_path / "straight")
        )
        assert all(torch.equal(value, expected[key]) for key, value in found.items()), name
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [2, 4, 6, 8]
    assert not list((folder / "samples").glob("*10.png")) and best["step"] <= 4


def test_what_has_no_checkpoint_begins_again_over_its_own_pipeline_alone(tiny, tmp_path):
    folder = tmp_path / "run"
    more = ["--max_train_steps", "2", "--max_match_steps", "0"]
    run(tiny("run", *more))
    shutil.rmtree(folder / "checkpoint-2")
    before = folder_files(folder)
    with pytest.raises(FileExistsError, match="no checkpoint to go on from; name another. `seed` was 0 and is now 3"):
        run(tiny("run", *more, "--seed", "3", "--resume_from_checkpoint", "latest"))
    assert folder_files(folder) == before
    run(tiny("run", *more, "--resume_from_checkpoint", "latest"))
    assert (folder / "checkpoint-2").exists()


def test_going_on_keeps_the_teacher_in_the_folder(tiny, tmp_path):
    folder, steps = tmp_path / "run", ["--max_match_steps", "0", "--validation_steps", "2"]
    run(tiny("run", *steps, "--max_train_steps", "2"))
    torch.manual_seed(5)
    pipeline = DiMPipeline.from_pretrained(folder)
    generator, config = pipeline.generator, pipeline.generator.config
    teacher = DiMLabeler(config.num_classes, config.sample_size, config.out_channels, width=4)
    DiMPipeline(generator, pipeline.config.id2label, teacher).save_pretrained(folder)
    before = generator.proj_in.weight.clone()
    # Any weights validate better than the best so far, so that the folder's pipeline is replaced.
    progress = folder / "checkpoint-2" / "progress.json"
    recorded = json.loads(progress.read_text())
    recorded["best"]["accuracy"] = 0.0
    progress.write_text(json.dumps(recorded))
    manifest = folder / "checkpoint-2" / "manifest.json"
    sizes = json.loads(manifest.read_text())
    sizes["progress.json"] = [progress.stat().st_size, hashlib.sha256(progress.read_bytes()).hexdigest()]
    manifest.write_text(json.dumps(sizes))
    run(tiny("run", *steps, "--max_train_steps", "4", "--resume_from_checkpoint", "latest"))
    after = DiMPipeline.from_pretrained(folder)
    assert not torch.equal(after.generator.proj_in.weight, before)
    kept = after.labeler.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())

    shutil.rmtree(folder / "labeler")
    DiMLabeler(config.num_classes + 1, config.sample_size, config.out_channels, width=4).save_pretrained(
        folder / "labeler"
    )
    before = folder_files(folder)
    with pytest.raises(ValueError, match="`labeler` takes 11 classes"):
        run(tiny("run", *steps, "--max_train_steps", "6", "--resume_from_checkpoint", "latest"))
    assert folder_files(folder) == before


def test_a_damaged_teacher_is_named_and_left_out(tiny, tmp_path, capsys):
    folder, steps = tmp_path / "run", ["--max_match_steps", "0", "--validation_steps", "2"]
    run(tiny("run", *steps, "--max_train_steps", "2"))
    (folder / "labeler").mkdir()
    (folder / "labeler" / "config.json").write_text("{")
    run(tiny("run", *steps, "--max_train_steps", "4", "--resume_from_checkpoint", "latest"))
    assert "labeler cannot be read and is left out: " in capsys.readouterr().out
    assert DiMPipeline.from_pretrained(folder).labeler is None


def test_another_precision_is_refused_by_name(tiny, tmp_path, monkeypatch):
    run(tiny("run", "--max_train_steps", "1", "--max_match_steps", "0"))
    assert json.loads((tmp_path / "run" / "options.json").read_text())["mixed_precision"] == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="`mixed_precision` was 'no' and is now 'bf16'"):
        run(tiny("run", "--max_train_steps", "2", "--max_match_steps", "0", "--resume_from_checkpoint", "latest"))


def test_options_of_a_finished_run_stay_those_it_was_made_with(tiny, tmp_path):
    steps = ["--max_train_steps", "1", "--max_match_steps", "0", "--mixed_precision"]
    run(tiny("run", *steps, "bf16"))
    before = (tmp_path / "run" / "options.json").read_text()
    run(tiny("run", *steps, "no", "--resume_from_checkpoint", "latest"))
    assert (tmp_path / "run" / "options.json").read_text() == before


def test_weights_that_a_step_spoiled_replace_nothing(tiny, tmp_path):
    # The losses of the step itself are numbers.
    with pytest.raises(FloatingPointError, match="(weights|generated images) became NaN or infinite by step 1"):
        run(tiny("run", "--max_train_steps", "1", "--max_match_steps", "0", "--learning_rate", "1e30"))
    assert not (tmp_path / "run" / "model_index.json").exists() and not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize("part", ["train_classifier", "evaluate_accuracy"])
def test_a_signal_in_validation_ends_it_and_the_continuation_begins_with_it(tiny, tmp_path, monkeypatch, part):
    more = ["--validation_epochs", "3", "--logging_steps", "1"]
    run(tiny("straight", *more))
    original = getattr(validation, part)

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return original(*args, **kwargs)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(validation, part, interrupted)
    with pytest.raises(SystemExit) as stopped:
        run(tiny("run", *more))
    assert stopped.value.code == 130
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-6"]
    run(tiny("run", *more, "--resume_from_checkpoint", "latest"))
    # Interrupted again before the next checkpoint, it is not validated a second time.
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    monkeypatch.setattr(train_dim, "conclude", once_per_step(train_dim.conclude, done={6}))
    run(tiny("run", *more, "--resume_from_checkpoint", "latest"))
    assert_equal_weights(final_weights(tmp_path / "straight"), final_weights(tmp_path / "run"))
    logs = [
        [
            {name: value for name, value in json.loads(line).items() if name not in ("seconds", "peak_memory_mib")}
            for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in ("straight", "run")
    ]
    assert logs[0] == logs[1]


def once_per_step(conclude, done):
    def concluded(run, *args, **kwargs):
        assert run.progress["step"] not in done
        return conclude(run, *args, **kwargs)

    return concluded


@pytest.mark.parametrize("validated", [False, True])
def test_a_run_that_is_ended_where_it_was_interrupted_is_validated(tiny, tmp_path, capsys, validated):
    more = ["--checkpointing_steps", "2", "--storage", "int8", "--validation_steps", "2" if validated else "100"]
    folder = tmp_path / "run"
    run(tiny("run", *more, "--checkpoints_total_limit", "9"))
    for step in (6, 8, 10):
        shutil.rmtree(folder / f"checkpoint-{step}")
    capsys.readouterr()
    end = ["--max_train_steps", "4", "--max_match_steps", "0", "--resume_from_checkpoint", "latest"]
    run(tiny("run", *more, *end))
    assert "is that of step" in capsys.readouterr().out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert {"validation/accuracy", "validation/accuracy_in_float32"} <= lines[1].keys()
    run(tiny("straight", *more, *end[:4]))
    straight = json.loads((tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(lines[1][name] == value for name, value in straight.items() if "/" in name)
    first, second = (
        load_file(tmp_path / name / "generator" / "diffusion_pytorch_model.safetensors")
        for name in ("run", "straight")
    )
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # But once.
    before = (folder / "metrics.jsonl").read_text()
    run(tiny("run", *more, *end))
    assert (folder / "metrics.jsonl").read_text() == before


def test_going_back_past_a_damaged_checkpoint_keeps_the_whole_one_until_the_next(tiny, tmp_path, plain, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(plain, folder)
    for path in folder.glob("checkpoint-*"):
        if path.name not in ("checkpoint-3", "checkpoint-4"):
            shutil.rmtree(path)
    weights = folder / "checkpoint-4" / "generator" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train_dim.DiMGenerator, "save_pretrained", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(tiny("run", "--checkpointing_steps", "5", "--checkpoints_total_limit", "1", "--resume_from_checkpoint",
                 "latest"))  # fmt: skip
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3"]
    monkeypatch.undo()
    run(tiny("run", "--resume_from_checkpoint", "latest"))
    assert_equal_weights(final_weights(plain), final_weights(folder))


def test_the_epochs_of_a_continuation_leave_the_images_that_are_scored(tiny, tmp_path):
    def automatic(*more):
        arguments = tiny("run", "--checkpointing_steps", "2", "--checkpoints_total_limit", "9", *more)
        at = arguments.index("--validation_epochs")
        return arguments[:at] + arguments[at + 2 :]

    run(automatic())
    folder = tmp_path / "run"
    before = json.loads((folder / "checkpoint-10" / "progress.json").read_text())
    assert before["validation"]["images"] < 144
    epochs = before["options"]["validation_epochs"]
    for more in ([], ["--validation_epochs", str(epochs)]):
        shutil.rmtree(folder / "checkpoint-10")
        run([*automatic(), *more, "--resume_from_checkpoint", "latest"])
        assert (
            json.loads((folder / "checkpoint-10" / "progress.json").read_text())["validation"] == before["validation"]
        )
    shutil.rmtree(folder / "checkpoint-10")
    with pytest.raises(ValueError, match=f"`validation_epochs` was {epochs} and is now {epochs + 1}"):
        run([*automatic(), "--validation_epochs", str(epochs + 1), "--resume_from_checkpoint", "latest"])


def test_checkpoints_that_give_way_need_no_space(tmp_path):
    generator, discriminator = DiMGenerator(2, 8, 1, 4, 4, (8,), (0,)), DiMDiscriminator(2, 8, 1)
    one = 4 * (5 * generator.num_parameters() + 3 * discriminator.num_parameters())
    pipelines = 12 * generator.num_parameters()

    def needed(saves, limit):
        return needed_bytes(tmp_path, generator, discriminator, saves, limit) - pipelines

    assert needed(10, 3) == 3 * one and needed(10, 1) == 2 * one and needed(1, 3) == one
    for step in (1, 2):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.bin").write_bytes(b"x" * one)
    assert needed(10, 3) == one and needed(10, 2) == 0


@pytest.mark.slow
def test_a_script_ends_in_one_message(tiny, tmp_path):
    result = processes.run([SCRIPT, *tiny("run", "--resolution", "30")])
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("train_dim.py: `resolution` 30 is a size that the generator cannot make")


def test_a_full_disk_is_noticed_before_any_work(tiny, tmp_path, monkeypatch):
    # A file system with too little space cannot be made without privileges; the figure it reports can.
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    with pytest.raises(OSError, match="MiB free; this run needs"):
        run(tiny("run"))
    assert not list((tmp_path / "run").glob("*"))
