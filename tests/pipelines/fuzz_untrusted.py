"""
Files of strangers, as a fuzzer that follows the code's branches changes them: each is read, or refused in one message.

    pip install atheris
    python tests/pipelines/fuzz_untrusted.py CORPUS -len_control=0 -max_total_time=600

CORPUS is a folder, made where it is missing; the files that are read lie beside it, in CORPUS.files. Any other error
ends the process and leaves the input in a file `crash-...`. The first byte of an input says which file of a pipeline
with a teacher it replaces; a card and latents are read by themselves.
"""

import sys
from pathlib import Path

import atheris


with atheris.instrument_imports(include=["dim_hf"]):
    from dim_hf.evaluation.fixed_sets import load_latents, save_latents
    from dim_hf.hub.merging import existing_card
    from dim_hf.models import DiMGenerator, DiMLabeler
    from dim_hf.pipelines import DiMPipeline

import torch
from diffusers.utils import logging
from huggingface_hub import ModelCard


IN_A_PIPELINE = (
    "model_index.json", "generator/config.json", "labeler/config.json",
    "generator/diffusion_pytorch_model.safetensors", "labeler/diffusion_pytorch_model.safetensors",
)  # fmt: skip
ALONE = {"README.md": lambda path: existing_card(ModelCard, path), "latents.safetensors": load_latents}
NAMES = (*IN_A_PIPELINE, *ALONE)
# The fuzzer ends the process itself, so nothing can be removed afterwards.
FOLDER = Path(f"{sys.argv[1]}.files")


def make_files(corpus: Path) -> None:
    """A pipeline, a card and latents that are valid, and each of their files as an input to begin with."""
    corpus.mkdir(parents=True, exist_ok=True)
    generator = DiMGenerator(3, 8, 1, 6, 4, (8, 4))
    DiMPipeline(generator, ["a", "b", "c"], DiMLabeler(3, 8, 1, width=4)).save_pretrained(FOLDER)
    save_latents(FOLDER / "latents.safetensors", torch.randn(4, 3), torch.arange(4), {"ipc": 1})
    (FOLDER / "README.md").write_text("---\ntags:\n- dim\nmodel-index: []\n---\n# Theirs\n")
    for index, name in enumerate(NAMES):
        (corpus / f"valid-{index}").write_bytes(bytes([index]) + (FOLDER / name).read_bytes())


def read(content: bytes) -> None:
    if not content:
        return
    path = FOLDER / NAMES[content[0] % len(NAMES)]
    valid = path.read_bytes()
    path.write_bytes(content[1:])
    try:
        ALONE[path.name](path) if path.name in ALONE else DiMPipeline.from_pretrained(FOLDER)
    except (ValueError, OSError) as refusal:
        assert 10 < len(str(refusal)) <= 600, refusal
    finally:
        path.write_bytes(valid)


if __name__ == "__main__":
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    make_files(Path(sys.argv[1]))
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
