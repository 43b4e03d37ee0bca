"""What lies in the folder of a pipeline beside what makes images."""

import os
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..files import EXPORTED, WRITES, read_json


# Files of networks, in any form.
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".onnx", ".h5", ".npz", ".msgpack")
# `release` holds the noisy statistics of a private run, which its guarantee covers.
MADE_BY_SCRIPTS = {name for names in WRITES.values() for name in names} - {*EXPORTED} | {"release"}


def look_around(folder: str | os.PathLike) -> dict[str, Any]:
    """
    Looks for what a folder would give away beside the pipeline, if it were shared as it is.

    Returns:
        JSON values: `weights`, the files of other networks; `run`, what our scripts leave in a folder and a push
        leaves out; `other`, everything else; `discriminator`, the sub-folder of a discriminator, or `None`. Names are
        relative to the folder.
    """
    folder = Path(folder)
    weights, run, other, discriminator = [], [], [], None
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        ours = any(fnmatch(path.name, name) for name in MADE_BY_SCRIPTS) or path.name in ("evaluation", "audit")
        if path.name in EXPORTED:
            found = [each for each in _files(path) if path.name in ("generator", "labeler")]
            expected = [each for each in found if each.name.startswith("diffusion_pytorch_model")]
            weights += [each for each in found if each.suffix in WEIGHTS and each not in expected]
        elif ours:
            run.append(path)
        elif found := [each for each in _files(path) if each.suffix in WEIGHTS]:
            weights += found
        else:
            other.append(path)
    for path in sorted(each for each in folder.rglob("config.json") if not _below(each, folder, run)):
        content = None
        # Files of others may be anything.
        with suppress(ValueError):
            content = read_json(path)
        if isinstance(content, dict) and content.get("_class_name") == "DiMDiscriminator":
            discriminator = str(path.parent.relative_to(folder))
            break
    told = {
        name: [str(each.relative_to(folder)) for each in paths]
        for name, paths in (("weights", weights), ("run", run), ("other", other))
    }
    return told | {"discriminator": discriminator}


def _files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def _below(path: Path, folder: Path, tops: list[Path]) -> bool:
    return folder / path.relative_to(folder).parts[0] in tops
