"""Push and pull with the real client and a Hub on 127.0.0.1, in processes of their own: it reads its settings once."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import generate_dim
import processes
import pytest
import torch
import train_dim
from hub_server import HubServer
from huggingface_hub import DatasetCard, ModelCard

from dim_hf.pipelines import DiMPipeline


pytestmark = pytest.mark.slow
# What shares a fixture shares a process of pytest-xdist, where the fixture is made once.
together = pytest.mark.xdist_group("hub")

TOKEN = "hf_testtoken"
FILES = {
    ".gitattributes",
    "README.md",
    "generator/config.json",
    "generator/diffusion_pytorch_model.safetensors",
    "generator/generator_dim.py",
    "model_index.json",
    "pipeline.py",
    "samples.png",
}
FILES_OF_LABELER = {
    "labeler/config.json",
    "labeler/diffusion_pytorch_model.safetensors",
    "labeler/labeler_dim.py",
}
MAKE = """
import json, os, sys, torch
from dim_hf import DiMGenerator, DiMLabeler, DiMPipeline
def make(seed, taught=False):
    torch.manual_seed(seed)
    labeler = DiMLabeler(3, 8, 1, width=4) if taught else None
    return DiMPipeline(DiMGenerator(3, 8, 1, 6, 4, (8,), (0,)), {0: "cat", 1: "dog", 2: "mouse"}, labeler)
"""
IMAGES = """
def images(pipe):
    return pipe(ipc=4, generator=torch.Generator().manual_seed(0), output_type="pt").images
@torch.no_grad()
def logits(pipe):
    return pipe.labeler(images(pipe) * 2 - 1).logits
def message(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
"""


def environment(endpoint, home, token=TOKEN):
    mine = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTHONPATH"))}
    return kept | mine | ({"HF_TOKEN": token} if token else {})


def run(command, cwd, env, returncode=0):
    if command[0] == sys.executable:
        finished = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    else:
        finished = processes.run(command, cwd=cwd, env=env)
    assert finished.returncode == returncode, finished.stdout + finished.stderr
    return finished


def python(code, cwd, env, installed=True):
    """Runs code in a fresh process; without `installed`, in one that does not have the paths `site` adds for us."""
    if installed:
        return run(["-c", MAKE + IMAGES + code], cwd, env)
    packages = {str(Path(torch.__file__).parents[1]), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    start = f"import sys\nsys.path += {sorted(packages)}\nimport torch, importlib.util\n"
    start += "assert importlib.util.find_spec('dim_hf') is None\n"
    return run([sys.executable, "-S", "-c", start + IMAGES + code], cwd, env)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """The folder of a process that pushed several things; it holds `run`, which is me/x, and what was seen."""
    folder = tmp_path_factory.mktemp("pushed")
    hub.licences["some/animals"] = ["cc-by-sa-4.0"]
    hub.drop = ["PUT ", "POST /api/models/me/broken/commit"]
    code = """
make(0).save_pretrained("run")
for name in ("run/checkpoint-5/optimizer.bin", "run/logs/events", "run/metrics.jsonl", "run/evaluation/report.md"):
    os.makedirs(os.path.dirname(name), exist_ok=True)
    open(name, "w").write("mine")
options = {"dataset_name": "some/animals", "output_dir": os.path.abspath("run"), "learning_rate": 0.5}
json.dump(options, open("run/options.json", "w"))
pipe = DiMPipeline.from_pretrained("run")
seen = {"first": pipe.push_to_hub("x")}
pipe = DiMPipeline.from_pretrained("run")
seen["second"] = pipe.push_to_hub("me/x")
pipe.save_pretrained("run", push_to_hub=True, repo_id="x")
pipe.to(torch.float16).push_to_hub("x", variant="fp16")
broken = make(1)
broken.save_pretrained("broken")
broken = DiMPipeline.from_pretrained("broken")
seen["broken"] = message(broken.push_to_hub, "broken")
seen["mended"] = broken.push_to_hub("broken")
make(2).push_to_hub("secret", private=True)
make(3).push_to_hub("secret", subfolder="deep/below")
make(4, taught=True).push_to_hub("taught")
torch.save(logits(make(4, taught=True)), "logits.pt")
torch.save(images(make(0)), "images.pt")
from dim_hf.weights import stored_form
make(5).push_to_hub("small", storage="int4")
torch.save(images(stored_form(make(5), "int4")), "small.pt")
make(5).save_pretrained("saved", storage="int4", push_to_hub=True, repo_id="small")
json.dump(seen, open("seen.json", "w"))
"""
    python(code, folder, environment(hub.endpoint, folder / "home"))
    return folder


def seen(folder):
    return json.loads((folder / "seen.json").read_text())


@together
def test_a_push_is_one_commit_of_the_pipeline_its_card_and_a_grid(hub, pushed):
    (empty, _), (first, files), (second, with_variant) = hub.repos["me/x"]["commits"]
    assert set(files) == FILES
    assert set(with_variant) - set(files) == {"generator/diffusion_pytorch_model.fp16.safetensors"}
    assert {path: with_variant[path] for path in files} == files
    for path in FILES - {".gitattributes", "README.md", "samples.png"}:
        assert files[path] == (pushed / "run" / path).read_bytes(), path
    assert seen(pushed)["first"] == seen(pushed)["second"] == f"{hub.endpoint}/me/x/commit/{first}"
    # The first upload was cut off, and the client tried again; what the Hub holds is not sent a second time.
    uploads = [request for request in hub.requests if request.startswith("PUT ")]
    assert len(set(uploads)) == len(uploads) - 1


@together
def test_the_card_is_read_by_the_hub_and_names_nothing_of_the_machine(hub, pushed):
    text = hub.files("me/x")["README.md"].decode()
    card = ModelCard(text)
    assert card.data.library_name == "diffusers" and card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.datasets == ["some/animals"] and card.data.license == "cc-by-sa-4.0"
    assert card.data.metrics == ["accuracy"] and len(set(card.data.tags)) == len(card.data.tags) > 2
    assert 'DiMPipeline.from_pretrained("me/x")' in text
    assert 'DiffusionPipeline.from_pretrained("me/x", trust_remote_code=True)' in text
    assert "| `learning_rate` | `0.5` |" in text
    for path, content in hub.files("me/x").items():
        assert str(pushed).encode() not in content and TOKEN.encode() not in content, path


@together
def test_a_teacher_goes_with_its_pipeline_and_its_code_is_told_of(hub, pushed):
    files = hub.files("me/taught")
    assert set(files) == FILES | FILES_OF_LABELER
    assert b"`labeler/labeler_dim.py`" in files["README.md"]


@together
def test_a_small_form_goes_up_and_its_card_tells_its_bytes(hub, pushed, pulled):
    # What was pulled and pushed again unchanged made no commit.
    _, (_, files) = hub.repos["me/small"]["commits"]
    assert set(files) == FILES
    # Embedding, linear layer and output layer in 4 bits with their scales; the rest in float16, and a count. Then a
    # checksum of each of the 13.
    stored = (6 + 3 * 2) + (8 * 16 * 10 // 2 + 8 * 16 * 2) + (64 + 2) + 2 * (8 * 16 + 4 * 8 + 1) + 8 + 13 * 4
    content = files["generator/diffusion_pytorch_model.safetensors"]
    assert f"stored as int4 in {len(content):,} bytes," in files["README.md"].decode()
    assert len(content) == stored + 8 + int.from_bytes(content[:8], "little")
    assert "stored as float32 in" in hub.files("me/x")["README.md"].decode()


@together
def test_an_interrupted_push_changes_nothing_and_is_done_again(hub, pushed):
    message = seen(pushed)["broken"]
    assert message.startswith(f"OSError: The push to 'me/broken' failed: the connection to {hub.endpoint} failed (")
    assert message.endswith(
        "broken is complete all the same; push it later with "
        "DiMPipeline.from_pretrained('broken').push_to_hub('me/broken')."
    )
    empty, mended = hub.repos["me/broken"]["commits"]
    assert set(empty[1]) == {".gitattributes"} and set(mended[1]) == FILES
    assert seen(pushed)["mended"].endswith(mended[0])


@pytest.fixture(scope="module")
def pulled(hub, pushed, tmp_path_factory):
    """Folder of a process that has the package and loaded what was pushed, in every way."""
    folder = tmp_path_factory.mktemp("pulled")
    files = hub.files("me/x")
    trap = f"open({str(folder / 'trapped')!r}, 'w')\n".encode()
    traps = {"pipeline.py": trap, "generator/generator_dim.py": trap, "generator/dim_hf.models.generator_dim.py": trap}
    hub.repos["me/trap"] = {"private": False, "commits": [], "refs": {}}
    first = hub.commit("me/trap", files | traps)
    hub.repos["me/trap"]["refs"]["v1"] = first
    other = hub.files("me/broken")["generator/diffusion_pytorch_model.safetensors"]
    hub.commit("me/trap", files | traps | {"generator/diffusion_pytorch_model.safetensors": other})
    code = """
load = DiMPipeline.from_pretrained
pipe = load("me/x")
torch.save(images(pipe), "images.pt")
small = load("me/small")
torch.save(images(small), "small.pt")
small.push_to_hub("small")
half = load("me/x", variant="fp16", dtype=torch.float16)
below = DiMGenerator.from_pretrained("me/x", subfolder="generator")
seen = {
    "type": type(pipe.generator).__module__,
    "half": float((images(half) - images(pipe)).abs().max()),
    "local": torch.equal(images(load("me/x", local_files_only=True)), images(pipe)),
    "generator": torch.equal(below.proj_in.weight, pipe.generator.proj_in.weight),
    "trap": torch.equal(images(load("me/trap")), images(make(1))),
    "revision": torch.equal(images(load("me/trap", revision="v1")), images(pipe)),
    "private": torch.equal(images(load("me/secret")), images(make(2))),
    "subfolder": torch.equal(images(load("me/secret", subfolder="deep/below")), images(make(3))),
    "taught": type(load("me/taught").labeler).__module__,
}
torch.save(logits(load("me/taught")), "logits.pt")
pipe.save_pretrained("again")
pipe.push_to_hub("x")
json.dump(seen, open("seen.json", "w"))
"""
    python(code, folder, environment(hub.endpoint, folder / "home"))
    return folder


@together
def test_the_package_loads_it_without_running_its_code(hub, pushed, pulled):
    for name in ("images.pt", "logits.pt", "small.pt"):
        assert torch.equal(torch.load(pulled / name), torch.load(pushed / name)), name
    found = seen(pulled)
    assert 0 < found.pop("half") < 0.01
    assert found == {
        "type": "dim_hf.models.generator_dim", "local": True, "generator": True, "trap": True, "revision": True,
        "private": True, "subfolder": True, "taught": "dim_hf.models.labeler_dim",
    }  # fmt: skip
    assert not (pulled / "trapped").exists()


@together
def test_what_was_loaded_is_saved_and_pushed_as_it_was(hub, pulled):
    files = hub.files("me/x")
    for path in FILES - {".gitattributes", "README.md", "samples.png"}:
        assert (pulled / "again" / path).read_bytes() == files[path], path
    assert len(hub.repos["me/x"]["commits"]) == 3


@together
def test_it_loads_and_makes_the_same_images_without_the_package(hub, pushed, tmp_path):
    code = """
from diffusers import DiffusionPipeline
assert "trust_remote_code" in message(DiffusionPipeline.from_pretrained, "me/x")
pipe = DiffusionPipeline.from_pretrained("me/x", trust_remote_code=True)
torch.save(images(pipe), "images.pt")
pipe.save_pretrained("again")
pipe.push_to_hub("copy")
pipe.push_to_hub("copy")
pipe.push_to_hub("smaller", storage="int4")
assert pipe.generator.storage is None
smaller = DiffusionPipeline.from_pretrained("me/smaller", trust_remote_code=True)
assert smaller.generator.storage == "int4" and not torch.equal(images(smaller), images(pipe))
assert torch.equal(images(DiffusionPipeline.from_pretrained("me/copy", trust_remote_code=True)), images(pipe))
torch.save(logits(DiffusionPipeline.from_pretrained("me/taught", trust_remote_code=True)), "logits.pt")
torch.save(images(DiffusionPipeline.from_pretrained("me/small", trust_remote_code=True)), "small.pt")
assert "dim_hf" not in sys.modules
"""
    python(code, tmp_path, environment(hub.endpoint, tmp_path / "home"), installed=False)
    for name in ("images.pt", "logits.pt", "small.pt"):
        assert torch.equal(torch.load(tmp_path / name), torch.load(pushed / name)), name
    files = hub.files("me/x")
    (_, (_, copy)) = hub.repos["me/copy"]["commits"]
    for path in FILES - {".gitattributes", "README.md", "samples.png"}:
        assert (tmp_path / "again" / path).read_bytes() == files[path] == copy[path], path
    assert ModelCard(copy["README.md"].decode()).data.library_name == "diffusers"


@together
def test_what_cannot_be_loaded_or_pushed_is_told_in_one_message(hub, pushed, tmp_path):
    files = hub.files("me/x")
    weights = "generator/diffusion_pytorch_model.safetensors"
    index, config = json.loads(files["model_index.json"]), json.loads(files["generator/config.json"])
    without = {
        "no-index": {path: data for path, data in files.items() if path != "model_index.json"},
        "no-weights": {path: data for path, data in files.items() if not path.endswith(".safetensors")},
        "pickled": {path.replace(".safetensors", ".bin"): data for path, data in files.items()},
        "pickled-labeler": files
        | {
            "model_index.json": json.dumps(index | {"labeler": ["labeler_dim", "DiMLabeler"]}).encode(),
            "labeler/config.json": b"{}",
            "labeler/labeler_dim.py": b"",
            "labeler/diffusion_pytorch_model.bin": b"",
        },
        "no-config": {path: data for path, data in files.items() if path != "generator/config.json"},
        "unknown": files | {"model_index.json": json.dumps(index | {"guidance": 1}).encode()},
        "unknown-below": files | {"generator/config.json": json.dumps(config | {"num_heads": 1}).encode()},
    }
    assert weights in files
    without["with-promise"] = files | {"README.md": b"---\ndifferential_privacy:\n  epsilon: 1.0\n---\n"}
    for name, content in without.items():
        hub.repos[f"me/{name}"] = {"private": False, "commits": [], "refs": {}}
        hub.commit(f"me/{name}", content)
    code = f"""
load = DiMPipeline.from_pretrained
seen = {{name: message(load, f"me/{{name}}") for name in {sorted(without)}}}
seen["pickled, labeler passed"] = message(load, "me/pickled-labeler", labeler=None)
seen["missing"] = message(load, "me/nowhere")
seen["private"] = message(load, "me/secret", token=False)
seen["wrong token"] = message(load, "me/x", token="hf_wrong")
seen["revision"] = message(load, "me/x", revision="v9")
seen["variant"] = message(load, "me/x", variant="int8")
seen["subfolder"] = message(load, "me/x", subfolder="nowhere")
seen["push, wrong token"] = message(make(0).push_to_hub, "x", token="hf_wrong")
seen["push, no right"] = message(make(0).push_to_hub, "me/x", token="hf_readonlytoken")
seen["push, nothing made"] = message(make(0).push_to_hub, "not-made", evaluation_dir="nowhere")
wide = DiMPipeline(DiMGenerator(3, 8, 1, 9, 4, (8, 4)), make(0).config.id2label)
seen["push, other variant"] = message(wide.push_to_hub, "me/x", variant="wide")
seen["push, over a variant"] = message(wide.push_to_hub, "me/x")
seen["push, no id"] = message(make(0).push_to_hub, "me/x/y")
sys.path.insert(0, {str(Path(train_dim.__file__).parent)!r})
import train_dim
arguments = ["--output_dir", "run", "--report_to", "none", "--push_to_hub", "--hub_token", "hf_wrong"]
seen["train"] = message(train_dim.main, train_dim.parse_args(arguments))
arguments = [*arguments[:-1], "hf_readonlytoken", "--hub_model_id", "me/x"]
seen["train, no right"] = message(train_dim.main, train_dim.parse_args(arguments))
import train_labeler
arguments = ["--pipeline", "me/with-promise", "--output_dir", "run"]
seen["teacher"] = message(train_labeler.main, train_labeler.parse_args(arguments))
json.dump(seen, open("seen.json", "w"))
"""
    python(code, tmp_path, environment(hub.endpoint, tmp_path / "home"))
    expected = {
        "no-index": "OSError: 'me/no-index' is not a local folder and cannot be loaded from the Hub: the repository "
        "has no file model_index.json.",
        "no-weights": "cannot be loaded from the Hub: Could not find the necessary `safetensors` weights in {",
        "pickled": "'generator/diffusion_pytorch_model.bin'",
        "pickled-labeler": "'labeler/diffusion_pytorch_model.bin'",
        "pickled, labeler passed": "None",
        "no-config": "does not hold a DiMPipeline: generator/config.json is missing.",
        "unknown": "ValueError: model_index.json has the unknown entries guidance; valid are generator, id2label",
        "with-promise": "None",
        "teacher": "ValueError: `--pipeline` me/with-promise has a guarantee of privacy, which a teacher",
        "unknown-below": "ValueError: the generator's config.json has the unknown entries num_heads; valid are block_",
        "missing": "'me/nowhere' is not a local folder and cannot be loaded from the Hub: there is no such "
        "repository, or it is private and the token does not give access to it.",
        "private": "'me/secret' is not a local folder and cannot be loaded from the Hub: there is no such repository",
        "wrong token": "the token is not valid; log in with `hf auth login`, or set HF_TOKEN.",
        "revision": "the repository has no such `revision`.",
        "variant": "variant=int8",
        "subfolder": "`subfolder` 'nowhere' is not in me/x.",
        "push, wrong token": "OSError: The push to 'x' failed: the token is not valid;",
        "push, no right": "OSError: The push to 'me/x' failed: the token does not give the right to do this;",
        "push, nothing made": "ValueError: `evaluation_dir` nowhere holds no metrics.json;",
        "push, other variant": "ValueError: `repo_id` me/x holds diffusion_pytorch_model.fp16.safetensors, "
        "diffusion_pytorch_model.safetensors of another network",
        "push, over a variant": "ValueError: `repo_id` me/x holds diffusion_pytorch_model.fp16.safetensors of another",
        "push, no id": "'me/x/y'",
        "train": "OSError: `--push_to_hub` cannot push to 'run': the token is not valid;",
        # The repository exists, and the token may read it.
        "train, no right": "OSError: `--push_to_hub` cannot push to 'me/x': the token does not give the right to do",
    }
    found = seen(tmp_path)
    assert set(found) == set(expected)
    for name, text in expected.items():
        assert text in str(found[name]), (name, found[name])
        assert "\n" not in str(found[name]), name
    assert not (tmp_path / "run").exists()
    assert "me/not-made" not in hub.repos
    assert len(hub.repos["me/x"]["commits"]) == 3


@together
def test_without_a_network_the_cache_is_used_and_the_rest_is_told(pulled, pushed, tmp_path):
    code = f"""
seen = {{"cached": torch.equal(images(DiMPipeline.from_pretrained("me/x")), torch.load("images.pt"))}}
seen["load"] = message(DiMPipeline.from_pretrained, "me/nowhere")
seen["local_files_only"] = message(DiMPipeline.from_pretrained, "me/nowhere", local_files_only=True)
seen["push"] = message(make(0).push_to_hub, "x", token="t")
seen["push, no token"] = message(make(0).push_to_hub, "x")
seen["push, no such form"] = message(make(0).push_to_hub, "x", storage="int9")
sys.path.insert(0, {str(Path(train_dim.__file__).parent)!r})
import train_dim
arguments = ["--output_dir", "run", "--report_to", "none", "--push_to_hub"]
seen["no token"] = message(train_dim.main, train_dim.parse_args(arguments))
seen["train"] = message(train_dim.main, train_dim.parse_args([*arguments, "--hub_token", "t"]))
json.dump(seen, open("{tmp_path}/seen.json", "w"))
"""
    nowhere = "http://127.0.0.1:9"
    python(code, pulled, environment(nowhere, pulled / "home", token=None))
    found = seen(tmp_path)
    assert found["cached"]
    failed = f"the connection to {nowhere} failed ("
    assert f"'me/nowhere' is not a local folder and cannot be loaded from the Hub: {failed}" in found["load"]
    assert "it is not in the cache, and `local_files_only` prevents a download." in found["local_files_only"]
    assert f"The push to 'x' failed: {failed}" in found["push"]
    assert found["push, no token"] == (
        "ValueError: `push_to_hub` needs a token, and there is none: log in with `hf auth login`, set HF_TOKEN, or "
        "give `token`."
    )
    assert found["push, no such form"].startswith("ValueError: `storage` is 'int9'; valid are 'float32'")
    assert found["no token"].startswith("ValueError: `--push_to_hub` needs a token, and there is none: log in with")
    assert f"`--push_to_hub` cannot push to 'run': {failed}" in found["train"]


def test_training_and_evaluation_push(hub, tmp_path):
    (tmp_path / "generator.json").write_text('{"block_out_channels": [8], "layers_per_block": [0]}')
    env = environment(hub.endpoint, tmp_path / "home")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
    folder = Path(train_dim.__file__).parent
    train = [
        str(folder / "train_dim.py"), "--max_train_steps", "2", "--max_match_steps", "1", "--pool", "convnet3",
        "--pool_steps", "2", "--train_batch_size", "8", "--validation_epochs", "1",
        "--generator_config", str(tmp_path / "generator.json"), "--discriminator_config",
        str(tmp_path / "generator.json"), "--output_dir", "digits", "--push_to_hub", "--hub_private_repo",
    ]  # fmt: skip
    # The push at the end is cut off: one message, and everything is there.
    hub.drop = ["POST /api/models/me/digits/commit"]
    failed = run([*launch, *train], tmp_path, env, returncode=1)
    message = [line for line in failed.stderr.splitlines() if line.startswith("train_dim.py: ")]
    assert len(message) == 1 and "The push to 'me/digits' failed: the connection to" in message[0]
    assert "push it later with DiMPipeline.from_pretrained('digits').push_to_hub('me/digits')" in message[0]
    assert "Done in" in failed.stdout and "validation accuracy" in failed.stdout
    assert DiMPipeline.from_pretrained(tmp_path / "digits").generator.config.num_classes == 10
    assert set(hub.files("me/digits")) == {".gitattributes"} and hub.repos["me/digits"]["private"]
    # The finished run goes on with the push alone.
    env = environment(hub.endpoint, tmp_path / "home", token=None)
    again = run([*train, "--hub_token", TOKEN, "--resume_from_checkpoint", "latest"], tmp_path, env)
    assert "Pushed to me/digits: " in again.stdout
    assert set(hub.files("me/digits")) == FILES
    card = ModelCard(hub.files("me/digits")["README.md"].decode())
    assert "Not measured yet" in card.text and "| `max_train_steps` | `2` |" in card.text
    assert card.data.eval_results is None and card.data.license == "cc-by-4.0"

    evaluate = [
        str(folder / "evaluate_dim.py"), "--pipeline", "me/digits", "--output_dir", "evaluation",
        "--classifiers", "convnet3", "--ipc", "1", "--seeds", "0", "1", "--epochs", "1", "--controls", "streamed",
        "--push_to_hub",
    ]  # fmt: skip
    # From the Hub, so that all that is known of the training is what its card says.
    evaluated = run(evaluate, tmp_path, environment(hub.endpoint, tmp_path / "home"))
    assert "pushed to me/digits: " in evaluated.stdout
    before, after = (files for _, files in hub.repos["me/digits"]["commits"][-2:])
    assert {path for path in after if after[path] != before[path]} == {"README.md"}
    card = ModelCard(after["README.md"].decode())
    rows = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["rows"]
    assert "real images, streamed" in card.text and f"{100 * rows[0]['mean']:.2f} ± " in card.text
    assert "| `max_train_steps` | `2` |" in card.text
    (result,) = card.data.eval_results
    assert result.metric_value == round(rows[0]["mean"], 4) and result.dataset_split == "test"
    about = {"protocol": "B", "labels": "hard", "classifier": "convnet3", "ipc": 1, "seeds": 2}
    assert result.metric_args == about | {"steps": rows[0]["steps"], "std": round(rows[0]["std"], 4)}
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    for output in (failed, again, evaluated):
        assert TOKEN not in output.stdout + output.stderr
    for path, content in after.items():
        assert str(tmp_path).encode() not in content, path


@pytest.fixture
def hub_of_small_files():
    """A Hub to which parquet goes within the commit, so that the client can have Xet on, as it is by default."""
    with HubServer() as server:
        server.large = ()
        yield server


OTHER_CARD = """---
license: mit
dataset_info:
  splits:
  - name: train
    num_examples: 7
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*
  - split: test
    path: data/test-*
- config_name: extra
  data_dir: extra
---
No parts."""


def test_generated_images_are_pushed_as_a_data_set(hub_of_small_files, tmp_path):
    hub = hub_of_small_files
    hub.drop = ["POST /api/datasets/me/animals/commit"]
    code = f"""
sys.path.insert(0, {str(Path(generate_dim.__file__).parent)!r})
import datasets, generate_dim, huggingface_hub
def push(folder, *more):
    arguments = ["--pipeline", "run", "--output_dir", folder, "--ipc", "4", "--shard_size", "5", "--push_to_hub"]
    return message(generate_dim.main, generate_dim.parse_args([*arguments, "--hub_dataset_id", "animals", *more]))
make(0).save_pretrained("run")
seen = {{"wrong token": push("refused", "--hub_token", "hf_wrong")}}
seen["no right"] = push("refused", "--hub_token", "hf_readonlytoken")
token = os.environ.pop("HF_TOKEN")
seen["no token"] = push("refused")
seen["made"] = os.path.exists("refused")
seen["cut off"] = push("out", "--hub_private_repo", "--hub_token", token)
os.environ["HF_TOKEN"] = token
written = {{name: os.stat(f"out/data/{{name}}").st_mtime_ns for name in os.listdir("out/data")}}
seen["again"], seen["unchanged"] = push("out"), push("out")
seen["kept"] = written == {{name: os.stat(f"out/data/{{name}}").st_mtime_ns for name in os.listdir("out/data")}}
folder = huggingface_hub.snapshot_download("me/animals", repo_type="dataset")
pulled = datasets.load_dataset(folder, split="train")
seen["rows"] = [pulled.features["label"].int2str(label) for label in pulled["label"]]
local = datasets.load_dataset("parquet", data_files="out/data/*.parquet", split="train")
seen["equal"] = [image.tobytes() for image in pulled["image"]] == [image.tobytes() for image in local["image"]]
seen["many"] = push("many", "--ipc", "100", "--shard_size", "1")
seen["other"] = push("other", "--shard_size", "12")
api = huggingface_hub.HfApi()
def edit(text):
    api.upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id="me/animals", repo_type="dataset")
def card():
    return open(huggingface_hub.hf_hub_download("me/animals", "README.md", repo_type="dataset")).read()
edited = card().replace("tags:", "license: mit\\ntags:\\n- mine").replace("made from noise", "dreamt")
edit(edited + "\\nMy own words.\\n")
seen["edited"], seen["edited card"] = push("other", "--shard_size", "12"), card()
seen["fewer"], seen["fewer card"] = push("fewer", "--ipc", "2"), card()
with open("fewer/README.md", "a") as file:
    file.write("Words in the folder.\\n")
edit({OTHER_CARD!r})
seen["bare"], seen["bare card"] = push("fewer", "--ipc", "2"), card()
json.dump(seen, open("seen.json", "w"))
"""
    env = environment(hub.endpoint, tmp_path / "home") | {"HF_HUB_DISABLE_XET": "0"}
    output = python(code, tmp_path, env)
    found = seen(tmp_path)
    cards = {name: DatasetCard(found.pop(f"{name} card")) for name in ("edited", "fewer", "bare")}
    assert found.pop("wrong token").startswith(
        "OSError: `--push_to_hub` cannot push to 'animals': the token is not valid;"
    )
    assert "cannot push to 'animals': the token does not give the right to do this;" in found.pop("no right")
    assert found.pop("no token").startswith(
        "ValueError: `--push_to_hub` needs a token, and there is none: log in with"
    )
    failed = found.pop("cut off")
    assert failed.startswith(f"OSError: The push to 'me/animals' failed: the connection to {hub.endpoint} failed (")
    assert failed.endswith(" out is complete all the same; the same command pushes it.")
    assert found == {
        "made": False, "again": None, "unchanged": None, "kept": True, "rows": ["cat", "dog", "mouse"] * 4,
        "equal": True, "many": None, "other": None, "edited": None, "fewer": None, "bare": None,
    }  # fmt: skip
    repository = hub.repos["datasets/me/animals"]
    (empty, first, many, second, edited, *_) = (files for _, files in repository["commits"])
    assert repository["private"] and set(empty) == {".gitattributes"}
    shards = {f"data/train-{shard:05d}-of-00003.parquet" for shard in range(3)}
    assert set(first) == {".gitattributes", "README.md"} | shards
    for path in {"README.md"} | shards:
        assert first[path] == (tmp_path / "out" / path).read_bytes(), path
    # More files than the client puts into one commit of a folder; the shards before them are gone with that commit.
    assert set(many) == {".gitattributes", "README.md"} | {f"data/train-{i:05d}-of-00300.parquet" for i in range(300)}
    assert set(second) == {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    # What somebody wrote on the Hub stays; what is said of the images goes with them.
    assert cards["edited"].text == DatasetCard(edited["README.md"].decode()).text
    assert "12 images, 4 of each class (cat, dog, mouse), dreamt by" in cards["edited"].text
    assert "\n6 images, 2 of each class (cat, dog, mouse), made from noise by" in cards["fewer"].text
    for card in (cards["edited"], cards["fewer"]):
        assert card.text.endswith("\nMy own words.\n") and card.data.license == "mit"
        assert card.data.tags == ["mine", "dim_hf", "synthetic-data"]
    assert (tmp_path / "fewer" / "README.md").read_text().endswith("\nWords in the folder.\n")
    assert cards["bare"].text.strip() == "No parts." and cards["bare"].data.license == "mit"
    (config,) = DatasetCard(first["README.md"].decode()).data.configs
    assert cards["edited"].data.configs == [config]
    # Of a data set that somebody else pushed, other splits stay, and its numbers of images go.
    test, extra = {"split": "test", "path": "data/test-*"}, {"config_name": "extra", "data_dir": "extra"}
    assert cards["bare"].data.configs == [config | {"data_files": [*config["data_files"], test]}, extra]
    assert "dataset_info" not in cards["bare"].data.to_dict()
    assert TOKEN not in output.stdout + output.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
