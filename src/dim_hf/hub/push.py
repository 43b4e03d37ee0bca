"""Pushes a pipeline to the Hub with its model card and sample grid, and nothing else of its run."""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, create_repo, get_token, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..arguments import shown
from ..audit.report import read_audit
from ..evaluation.sample_grid import save_sample_grid
from ..files import EXPORTED, check_writable, whole_folder
from ..hub_errors import check_characters, hub_reason
from ..messages import listed
from ..pipelines.pipeline_dim import is_a
from ..weights import stored_form
from .card import HUB_ERRORS, model_card, read_evaluation
from .merging import existing_card


# The files of a network in an export.
OF_NETWORK = re.compile(
    r"config\.json|(generator|labeler)_dim\.py|diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


def prepare_repository(repo_id: str, token: str | None, private: bool | None, repo_type: str = "model") -> str:
    """
    Makes sure, before any work, that a run can be pushed at its end: creates the repository unless it exists, and
    checks that the token may write to it.

    Args:
        repo_type (`str`, *optional*, defaults to `"model"`): Or `"dataset"`.

    Returns:
        `str`: Its full id, with the namespace of the token's owner where `repo_id` has none.

    Raises:
        ValueError: If there is no token, or `repo_id` or `repo_type` is not valid.
        OSError: If the Hub cannot be reached or refuses.
    """
    if repo_type not in ("model", "dataset"):
        raise ValueError(f"`repo_type` is {repo_type!r}; valid are 'model' and 'dataset'.")
    check_token(token, "`--push_to_hub`", "--hub_token")
    try:
        repo_id = create_repo(repo_id, private=private, token=token, repo_type=repo_type, exist_ok=True).repo_id
        # For an existing repository the client does not report that a token is read-only.
        HfApi().auth_check(repo_id, repo_type=repo_type, token=token, write=True)
        return repo_id
    except HFValidationError as error:
        raise ValueError(f"`--hub_{repo_type}_id` is not valid: {error}") from error
    except HUB_ERRORS as error:
        raise OSError(f"`--push_to_hub` cannot push to {repo_id!r}: {hub_reason(error)}") from error


def check_token(token: str | None, needed_by: str, argument: str) -> None:
    """Raises a `ValueError` if the token is missing, or has characters that no token has."""
    check_characters(token, argument)
    if not (token or get_token()):
        raise ValueError(
            f"{needed_by} needs a token, and there is none: log in with `hf auth login`, set HF_TOKEN, or give "
            f"{argument}."
        )


def push_to_hub(
    pipeline: DiffusionPipeline,
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    safe_serialization: bool = True,
    variant: str | None = None,
    subfolder: str | None = None,
    evaluation_dir: str | os.PathLike | None = None,
    storage: str | None = None,
    audit_dir: str | os.PathLike | None = None,
) -> str:
    """
    Pushes a pipeline to the Hub in one commit: its weights, configs and source, a model card and a sample grid. What
    has not changed is not uploaded, and where nothing has, there is no commit. In a card that exists on the Hub, only
    the parts that are better known now or describe other weights are replaced; a variant or a subfolder leaves it
    unchanged.

    The card reports the training and evaluation that are recorded in the folder the pipeline was loaded from.

    Args:
        pipeline ([`DiMPipeline`]): What to push.
        repo_id (`str`): `"name"` or `"namespace/name"`; it is created unless it exists.
        commit_message, private, token, create_pr, safe_serialization, variant, subfolder:
            As in [`DiffusionPipeline.push_to_hub`].
        evaluation_dir (`str` or `os.PathLike`, *optional*):
            Output folder of `training/evaluate_dim.py`, for the card's table; by default `evaluation/` in the folder
            that the pipeline was loaded from.
        storage (`str`, *optional*):
            How the weights are stored, as in [`DiMPipeline.save_pretrained`]. The card describes that form.
        audit_dir (`str` or `os.PathLike`, *optional*):
            Output folder of `training/audit_dim.py`, for the card's section on what the pipeline gives away; by
            default `audit/` in the folder that the pipeline was loaded from.

    Returns:
        `str`: The URL of the commit.

    Raises:
        OSError: If the push fails. The repository is then as it was, and so is the local folder.
        ValueError: If there is no token, an argument is not valid, or evaluation or audit are of other weights.
    """
    if not is_a(pipeline, "DiMPipeline"):
        raise ValueError(f"`pipeline` is {shown(pipeline)}; valid is a DiMPipeline.")
    try:
        validate_repo_id(repo_id if isinstance(repo_id, str) else "")
    except HFValidationError as error:
        raise ValueError(f"`repo_id` is {shown(repo_id)}; valid is `name` or `namespace/name`.") from error
    words = {"commit_message": commit_message, "token": token, "variant": variant, "subfolder": subfolder}
    for name, word in words.items():
        if word is not None and not isinstance(word, str):
            raise ValueError(f"`{name}` is {shown(word)}; valid is a `str`, or None.")
    if subfolder is not None and not set(subfolder.split("/")).isdisjoint(("", ".", "..")):
        raise ValueError(f"`subfolder` is {shown(subfolder)}; valid are names of folders with / between them.")
    for name, flag in {"private": private, "create_pr": create_pr}.items():
        if flag is not None and not isinstance(flag, bool):
            raise ValueError(f"`{name}` is {shown(flag)}; valid are True and False.")
    if storage is not None:
        pipeline.generator.check_storage(storage)
    check_token(token, "`push_to_hub`", "`token`")
    pipeline = stored_form(pipeline, storage)
    read_evaluation(pipeline, evaluation_dir)
    read_audit(pipeline, audit_dir)
    try:
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside)
            pipeline.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            # Invalid arguments have raised by now.
            repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
            prefix = f"{subfolder}/" if subfolder else ""
            _refuse_mixture(pipeline, repo_id, prefix, variant, token)
            existing = existing_card(ModelCard, repo_id, token)
            if not subfolder and not (variant and existing):
                write_card(pipeline, folder, repo_id, existing, token, evaluation_dir, audit_dir, variant)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            # `upload_folder` may make several commits of one folder.
            return HfApi().create_commit(
                repo_id,
                [CommitOperationAdd(f"{prefix}{path.relative_to(folder).as_posix()}", str(path)) for path in files],
                commit_message=commit_message or "Upload DiMPipeline",
                token=token,
                create_pr=create_pr,
            )
    except HUB_ERRORS as error:
        message = f"The push to {repo_id!r} failed: {hub_reason(error)}"
        if pipeline.name_or_path:
            given: dict[str, Any] = {"variant": variant, "subfolder": subfolder, "storage": storage}
            given |= {"evaluation_dir": evaluation_dir, "audit_dir": audit_dir}
            arguments = ", ".join(
                [repr(repo_id), *(f"{name}={str(value)!r}" for name, value in given.items() if value)]
            )
            message += (
                f" {pipeline.name_or_path} is complete all the same; push it later with "
                f"DiMPipeline.from_pretrained({str(pipeline.name_or_path)!r}).push_to_hub({arguments})."
            )
        raise OSError(message) from error


def _refuse_mixture(
    pipeline: DiffusionPipeline, repo_id: str, prefix: str, variant: str | None, token: str | None
) -> None:
    """Raises a `ValueError` if a repository holds variants of another network; see [`DiMPipeline.refuse_mixture`]."""
    there = [each.rfilename for each in HfApi().model_info(repo_id, token=token).siblings or []]
    weights = re.compile(rf"{re.escape(prefix)}generator/([^/]+\.safetensors)")
    names = [match[1] for name in there if (match := weights.fullmatch(name))]
    told = [f"{prefix}{name}" for name in ("generator/config.json", "model_index.json")]
    files = [Path(hf_hub_download(repo_id, name, token=token)).read_bytes() for name in told if name in there]
    pipeline.refuse_mixture(f"`repo_id` {repo_id}", variant, names, *files)


def export_repository(
    pipeline: DiffusionPipeline,
    folder: str | os.PathLike,
    evaluation_dir: str | os.PathLike | None = None,
    token: str | None = None,
    audit_dir: str | os.PathLike | None = None,
) -> None:
    """
    Writes to a folder what [`push_to_hub`] uploads: the pipeline as it is stored, its model card and a sample grid.
    The folder appears whole and replaces an earlier export, whose card is merged like a repository's.

    Args:
        pipeline ([`DiMPipeline`]): What to write.
        folder (`str` or `os.PathLike`): It need not exist. The card names it, and its parents if they are relative.
        evaluation_dir, audit_dir (`str` or `os.PathLike`, *optional*): As in [`push_to_hub`].
        token (`str`, *optional*): To ask for the licence of a private data set.

    Raises:
        FileExistsError: If the folder holds anything else.
        OSError: If it cannot be written.
    """
    check_export(folder)
    folder = Path(folder)
    existing = existing_card(ModelCard, folder / "README.md")
    # A card must not contain a path of this machine.
    name = folder.name if folder.is_absolute() else folder.as_posix()
    with whole_folder(folder) as aside:
        pipeline.save_pretrained(aside)
        write_card(pipeline, aside, name, existing, token, evaluation_dir, audit_dir)


def check_export(folder: str | os.PathLike, output_dir: str | os.PathLike | None = None) -> None:
    """
    Checks, before any work, that a folder can take an export.

    Raises:
        FileExistsError: If it holds files that an export would remove but has not written, or is to hold the
            `output_dir` of a script.
        OSError: If it cannot be written to.
        ValueError: If the card of an earlier export cannot be read.
    """
    path = Path(folder)
    if output_dir is not None and Path(output_dir).resolve().is_relative_to(path.resolve()):
        raise FileExistsError(
            f"the export folder {path} would hold `--output_dir` {output_dir}, which is not of an export; name "
            "another folder."
        )
    if path.is_file():
        raise FileExistsError(f"the export folder {path} is a file.")
    if foreign := _foreign(path):
        raise FileExistsError(
            f"the export folder {path} holds {listed(foreign)}, which is not of an export; name another folder."
        )
    existing_card(ModelCard, path / "README.md")
    check_writable(path, f"the export folder {path}")


def _foreign(folder: Path) -> list[str]:
    """What a folder holds, by relative path, that an export would remove but has not written."""
    # Without a pipeline, not even files of these names are of an export, but a card may have been written by hand.
    exported = EXPORTED if (folder / "model_index.json").is_file() else ("README.md",)
    found = [path.name for path in folder.glob("*") if path.name not in exported]
    for network in ("generator", "labeler"):
        for path in () if found else (folder / network).rglob("*"):
            if not OF_NETWORK.fullmatch(path.relative_to(folder / network).as_posix()):
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def write_card(
    pipeline: DiffusionPipeline,
    folder: Path,
    repo_id: str,
    existing: ModelCard | None,
    token: str | None,
    evaluation_dir: str | os.PathLike | None,
    audit_dir: str | os.PathLike | None,
    variant: str | None = None,
) -> None:
    """Writes a pipeline's model card and the sample grid that it shows."""
    card = model_card(pipeline, repo_id, token, existing, evaluation_dir, audit_dir, variant)
    card.save(folder / "README.md")
    save_sample_grid(pipeline, folder / "samples.png")
