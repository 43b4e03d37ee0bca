"""What goes to the Hub with a pipeline: its model card and sample grid, and nothing else of a run."""

import hashlib
import json
import os
import re
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import (
    CommitOperationAdd,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    RepoCard,
    create_repo,
    dataset_info,
    get_token,
)
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import httpx
from torch import nn

from .pipelines.pipeline_dim import hub_reason
from .reporting import Row, results_table, save_sample_grid


TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
TAGS = ["dim", "dataset-distillation", "synthetic-data", "image-classification", "dim_hf"]
DIGITS = "the digits embedded in scikit-learn (Optical Recognition of Handwritten Digits, UCI)"
LOCAL = "a labelled image data set of a local folder"

# Options of a run that say nothing of its result, or name things of one machine.
NOT_ON_CARD = {
    "dataset_name", "train_data_dir", "output_dir", "logging_dir", "cache_dir", "report_to", "logging_steps",
    "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers",
    "data_fingerprint", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo",
}  # fmt: skip

# A part of a card that is written anew when more is known, or when it would tell of other weights or images.
PART = re.compile(r"<!-- (results|training|images) of \w+ (\w+) -->\n.*?<!-- end of \1 -->", re.DOTALL)
Card = TypeVar("Card", bound=RepoCard)

HUB_ERRORS = (OSError, RuntimeError, httpx.HTTPError)


def prepare_repository(repo_id: str, token: str | None, private: bool | None, repo_type: str = "model") -> str:
    """
    Makes sure, before any work, that a run can be pushed at its end: creates the repository unless it exists.

    Args:
        repo_type (`str`, *optional*, defaults to `"model"`): Or `"dataset"`.

    Returns:
        `str`: Its full id, with the namespace of the token's owner where `repo_id` has none.

    Raises:
        ValueError: If there is no token, or `repo_id` is no valid id.
        OSError: If the Hub cannot be reached or refuses.
    """
    if not (token or get_token()):
        raise ValueError(
            "`--push_to_hub` needs a token, and there is none: log in with `hf auth login`, set HF_TOKEN, or give "
            "--hub_token."
        )
    try:
        return create_repo(repo_id, private=private, token=token, repo_type=repo_type, exist_ok=True).repo_id
    except HFValidationError as error:
        raise ValueError(f"`--hub_{repo_type}_id` is not valid: {error}") from error
    except HUB_ERRORS as error:
        raise OSError(f"`--push_to_hub` cannot push to {repo_id!r}: {hub_reason(error)}") from error


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
) -> str:
    """
    Pushes a pipeline to the Hub in one commit: its weights, configs and source, a model card and a sample grid. What
    has not changed is not uploaded, and where nothing has, there is no commit. Of a card that exists on the Hub, only
    the results and the training options are written anew; a variant or a subfolder leaves it as it is.

    The card tells what the folder that the pipeline was loaded from knows of its training and evaluation.

    Args:
        pipeline ([`DiMPipeline`]): What to push.
        repo_id (`str`): `"name"` or `"namespace/name"`; it is created unless it exists.
        commit_message, private, token, create_pr, safe_serialization, variant, subfolder:
            As in [`DiffusionPipeline.push_to_hub`].
        evaluation_dir (`str` or `os.PathLike`, *optional*):
            Output folder of `training/evaluate_dim.py`, for the card's table; by default `evaluation/` in the folder
            that the pipeline was loaded from.

    Returns:
        `str`: The URL of the commit.

    Raises:
        OSError: If the push fails. The repository is then as it was, and so is the local folder.
        ValueError: If the evaluation is one of other weights.
    """
    try:
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside)
            pipeline.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            existing = existing_card(ModelCard, repo_id, token)
            if not subfolder and not (variant and existing):
                card = model_card(pipeline, repo_id, token, existing, evaluation_dir)
                card.save(folder / "README.md")
                save_sample_grid(pipeline, folder / "samples.png")
            prefix = f"{subfolder}/" if subfolder else ""
            files = sorted(path for path in folder.rglob("*") if path.is_file())
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
            arguments = repr(repo_id) + (f", evaluation_dir={str(evaluation_dir)!r}" if evaluation_dir else "")
            message += (
                f" {pipeline.name_or_path} is complete all the same; push it later with "
                f"DiMPipeline.from_pretrained({str(pipeline.name_or_path)!r}).push_to_hub({arguments})."
            )
        raise OSError(message) from error


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """A short name of the generator's weights, by which an evaluation is known to be theirs."""
    return module_digest(pipeline.generator)


def module_digest(module: nn.Module) -> str:
    """A short name of a network's weights."""
    digest = hashlib.sha256()
    for _, value in sorted(module.state_dict().items()):
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def local_or_hub(dataset_name: str) -> str:
    """The absolute path of a local data set, or the name as it is: so that the two can be told apart anywhere."""
    path = Path(dataset_name)
    return str(path.resolve()) if dataset_name != "digits" and path.exists() else dataset_name


def existing_card(kind: type[Card], repo_id: str, token: str | None) -> Card | None:
    """The card that a repository has, if any; `kind` is `ModelCard` or `DatasetCard`."""
    try:
        return kind.load(repo_id, token=token, ignore_metadata_errors=True)
    except RemoteEntryNotFoundError:
        return None


def model_card(
    pipeline: DiffusionPipeline,
    repo_id: str,
    token: str | None = None,
    existing: ModelCard | None = None,
    evaluation_dir: str | os.PathLike | None = None,
) -> ModelCard:
    """
    Writes a model card from what is known of a pipeline, into an existing card where there is one. Neither a token nor
    a path of this machine gets on it.
    """
    config = pipeline.generator.config
    digest = weights_digest(pipeline)
    run = Path(pipeline.name_or_path or "")
    options = read_json(run / "options.json") if pipeline.name_or_path else None
    metrics = read_metrics(
        Path(evaluation_dir) if evaluation_dir else run / "evaluation", digest, bool(evaluation_dir)
    )
    data = options or (metrics or {}).get("options")
    hub_id, data_name = describe_data(data)
    licence = (existing.data.get("license") if existing else None) or data_licence(data, hub_id, token)
    names = pipeline.config.id2label or {label: str(label) for label in range(config.num_classes)}
    listed = [f"{label} {name}" if pipeline.config.id2label else str(label) for label, name in names.items()]
    parameters = pipeline.generator.num_parameters()
    stored = sum(value.numel() * value.element_size() for value in pipeline.generator.state_dict().values())
    model_name = repo_id.rpartition("/")[2]
    results = eval_results(metrics, hub_id, data_name) if metrics else []
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            license=licence,
            datasets=[hub_id] if hub_id else None,
            metrics=["accuracy"],
            tags=TAGS,
            model_name=model_name if results else None,
            eval_results=results or None,
        ),
        template_path=str(TEMPLATE),
        title=model_name,
        repo_id=repo_id,
        digest=digest,
        data_name=data_name,
        data_licence=licence if licence else "not known; see where it comes from",
        size=config.sample_size,
        channels=config.out_channels,
        num_classes=config.num_classes,
        parameters=f"{parameters:,}",
        megabytes=f"{stored / 1e6:.2f}",
        sample_rows="every class" if config.num_classes <= 10 else "the first 10 classes",
        classes=", ".join(listed[:100]) + (f" and {len(listed) - 100} more" if len(listed) > 100 else ""),
        example_class=repr(names[0]) if pipeline.config.id2label else 0,
        results=describe_results(metrics),
        training=describe_training(options, read_json(run / "environment.json") if options else None),
    )
    if existing is None:
        return card
    known = {name for name, found in (("results", metrics), ("training", options)) if found}
    return merge_cards(existing, card, known)


def merge_cards(existing: Card, card: Card, known: set[str]) -> Card:
    """
    What a repository's card becomes. Its text stays, but for the parts that are known better now or that tell of other
    weights or images; so do its metadata, to which the new ones are added.
    """
    before = {part[1]: part for part in PART.finditer(existing.text)}
    stale = {part[1] for part in PART.finditer(card.text) if part[1] in before and part[2] != before[part[1]][2]}
    text = existing.text
    for part in PART.finditer(card.text):
        if part[1] in before and part[1] in known | stale:
            text = text.replace(before[part[1]][0], part[0])
    # Dumping a card puts its metadata into the order of its file, which reading alone does not keep.
    str(existing), str(card)
    old, new = existing.data.to_dict(), card.data.to_dict()
    merged = {**old, **new}
    if old.get("license"):
        merged["license"] = old["license"]
    if "configs" in new:
        replaced = {config["config_name"] for config in new["configs"]}
        kept = [config for config in old.get("configs") or [] if config.get("config_name") not in replaced]
        merged["configs"] = [*new["configs"], *kept]
    for name in ("tags", "datasets", "metrics", "task_categories"):
        both = [*(old.get(name) or []), *(new.get(name) or [])]
        if both:
            merged[name] = list(dict.fromkeys(both))
    if "results" in stale - known:
        merged.pop("model-index", None)
    data = type(card.data)(**merged, ignore_metadata_errors=True)
    metadata = data.to_yaml(original_order=list(merged))
    return type(card)(f"---\n{metadata}\n---\n{text if text.strip() else card.text}", ignore_metadata_errors=True)


def read_json(path: Path) -> Any:
    """The content of a JSON file, or `None` if there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else None


def read_metrics(folder: Path, digest: str, asked_for: bool) -> dict[str, Any] | None:
    """
    The evaluation in a folder, unless it is one of other weights or of a release with other tables, which is an error
    where it was asked for.
    """
    metrics = read_json(folder / "metrics.json")
    of_other_weights = bool(metrics) and metrics.get("weights") != digest
    if metrics and not of_other_weights and all(field.name in row for row in metrics["rows"] for field in fields(Row)):
        return metrics
    if asked_for:
        other = "of other weights" if of_other_weights else "by another release of dim_hf"
        what = f"is an evaluation {other}" if metrics else "holds no metrics.json"
        raise ValueError(f"`evaluation_dir` {folder} {what}; valid is an output folder of evaluate_dim.py.")
    return None


def describe_data(options: dict[str, Any] | None) -> tuple[str | None, str]:
    """The data set's id on the Hub, if it has one, and what the card calls it."""
    if options is None:
        return None, "a labelled image data set that was not recorded"
    name = options["dataset_name"]
    if options.get("train_data_dir") or Path(name).is_absolute() or (name != "digits" and Path(name).exists()):
        return None, LOCAL
    if name == "digits":
        return None, DIGITS
    config = options.get("dataset_config_name")
    return name, f"the labelled images of [{name}](https://huggingface.co/datasets/{name})" + (
        f", configuration {config}" if config else ""
    )


def data_licence(options: dict[str, Any] | None, hub_id: str | None, token: str | None) -> str | None:
    """The licence of the data as its page on the Hub states it; `None` where it states none or several."""
    if hub_id is None:
        return "cc-by-4.0" if options and describe_data(options)[1] == DIGITS else None
    try:
        card = dataset_info(hub_id, token=token).card_data
    except HUB_ERRORS:
        return None
    stated = (card.get("license") if card else None) or []
    listed = [stated] if isinstance(stated, str) else stated
    return listed[0] if len(listed) == 1 else None


def describe_results(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return (
            "Not measured yet. `training/evaluate_dim.py --push_to_hub` of dim_hf measures it and writes a table here."
        )
    rows = [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in metrics["rows"]]
    return f"{results_table(rows)}\n\n{metrics['protocol']}"


def eval_results(metrics: dict[str, Any], hub_id: str | None, data_name: str) -> list[EvalResult]:
    """
    What the model achieves in protocols A and B. Controls are no results of the model, and neither are rows without
    augmentation, which others are compared with, or legacy ones, which are chosen on the test split.
    """
    options = metrics["options"]
    return [
        EvalResult(
            task_type="image-classification",
            dataset_type=hub_id or ("digits" if data_name == DIGITS else "local"),
            dataset_name=hub_id or data_name,
            dataset_config=options.get("dataset_config_name"),
            dataset_split="held out of train" if options.get("validation") else options["test_split"],
            metric_type="accuracy",
            metric_value=round(row["mean"], 4),
            metric_name=metric_name(row),
            metric_args={
                "protocol": row["protocol"],
                "labels": row["labels"],
                "classifier": row["classifier"],
                "ipc": row["ipc"],
                "steps": row["steps"],
                "seeds": len(row["accuracies"]),
            }
            | ({} if row["std"] is None else {"std": round(row["std"], 4)}),
        )
        for row in metrics["rows"]
        if row["protocol"] in ("A", "B") and row["augment"] and not row["control"]
    ]


def metric_name(row: dict[str, Any]) -> str:
    """What the accuracy of a row is one of: a reader sees no table beside it."""
    images = f"{row['ipc']} images per class and epoch"
    if row["protocol"] == "A":
        images = f"a {row['source']}, of {row['ipc']} images per class"
    labels = " with a teacher's soft labels" if row["labels"] == "soft" else ""
    return f"accuracy of {row['classifier']} trained on {images}{labels}"


def describe_training(options: dict[str, Any] | None, environment: dict[str, Any] | None) -> str:
    if options is None:
        return "Its options were not recorded."
    shown = {
        name: value
        for name, value in sorted(options.items())
        if value is not None
        and name not in NOT_ON_CARD
        and not (isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "."))))
    }
    cells = {name: json.dumps(value).replace("|", "\\|") for name, value in shown.items()}
    table = "\n".join(f"| `{name}` | `{cell}` |" for name, cell in cells.items())
    made_with = ", ".join(f"{name} {value}" for name, value in (environment or {}).items())
    return (
        f"`training/train_dim.py` of dim_hf, with\n\n| option | value |\n|---|---|\n{table}\n\nMade with {made_with}."
    )
