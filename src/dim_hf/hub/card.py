"""The model card: what it says about a pipeline."""

import hashlib
import json
import os
import re
import shlex
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import EvalResult, ModelCard, ModelCardData, dataset_info
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id

from ..audit.report import describe_audit, describe_privacy, read_audit
from ..classifiers.names import public_name
from ..evaluation.names import COMPARED, GENERATED
from ..evaluation.tables import Row, results_table
from ..files import read_json
from ..messages import markdown, one_line
from ..weights import module_bytes, module_digest, weights_digest
from .merging import PART, merge_cards


TEMPLATE = Path(__file__).parent / "model_card.md"
TAGS = ["dim", "dataset-distillation", "synthetic-data", "image-classification", "dim_hf"]
DIGITS = "the digits embedded in scikit-learn (Optical Recognition of Handwritten Digits, UCI)"
LOCAL = "a labelled image data set of a local folder"

# Options of a run that do not affect its result, or are specific to one machine.
NOT_ON_CARD = {
    "dataset_name", "train_data_dir", "output_dir", "logging_dir", "cache_dir", "report_to", "logging_steps",
    "resume_from_checkpoint", "checkpointing_steps", "checkpoints_total_limit", "dataloader_num_workers",
    "data_fingerprint", "given", "push_to_hub", "hub_model_id", "hub_token", "hub_private_repo", "privacy",
}  # fmt: skip

# Fields of a card's metadata about the data set.
OF_DATA = ("license", "license_name", "license_link", "datasets")
# What a card's metadata say of a private run.
PROMISED = ("epsilon", "delta", "unit", "neighbours", "mechanism")

# What a row of results says in words.
WORDS_OF_ROW = ("source", "classifier", "protocol", "labels")

HUB_ERRORS = (OSError, RuntimeError, httpx.HTTPError)


def local_or_hub(dataset_name: str) -> str:
    """The absolute path of a local data set, else the name unchanged, so that the two remain distinguishable."""
    path = Path(dataset_name)
    return str(path.resolve()) if dataset_name != "digits" and path.exists() else dataset_name


def model_card(
    pipeline: DiffusionPipeline,
    repo_id: str,
    token: str | None = None,
    existing: ModelCard | None = None,
    evaluation_dir: str | os.PathLike | None = None,
    audit_dir: str | os.PathLike | None = None,
    variant: str | None = None,
) -> ModelCard:
    """
    Writes a model card from what is known about a pipeline, merged into an existing card if there is one. It never
    contains a token or a path of this machine.
    """
    config = pipeline.generator.config
    digest = weights_digest(pipeline)
    run = Path(pipeline.name_or_path or "")
    options = read_options(run) if pipeline.name_or_path else None
    metrics, audit = read_evaluation(pipeline, evaluation_dir), read_audit(pipeline, audit_dir)
    hub_id, data_name = describe_data(options)
    names = pipeline.config.id2label or {label: str(label) for label in range(config.num_classes)}
    listed = [f"{label} {markdown(name)}" if name != str(label) else name for label, name in names.items()]
    classes = ", ".join(listed[:100]) + (f" and {len(listed) - 100} more" if len(listed) > 100 else "")
    # Without the options of its run, a pipeline is taken to be of the data it is evaluated on, if the card says so.
    told = describe_data(options or (metrics or {}).get("options"))[1]
    same_data = existing is None or tells_of_data(existing, digest, told, classes)
    kept_licence = existing.data.get("license") if existing and same_data else None
    licence = kept_licence or data_licence(options, hub_id, token)
    licence_in_text = markdown(licence) if licence else "not known; see where it comes from"
    parameters = pipeline.generator.num_parameters()
    form = pipeline.generator.storage or str(pipeline.generator.dtype).removeprefix("torch.")
    about = [digest, names, pipeline.labeler is not None, form, *([variant] if variant else [])]
    model_name = repo_id.rpartition("/")[2]
    results = eval_results(metrics) if metrics else []
    privacy = (options or {}).get("privacy")
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
            differential_privacy=privacy and {name: privacy[name] for name in PROMISED},
        ),
        template_path=str(TEMPLATE),
        title=model_name,
        repo_id=repo_id,
        variant=f", variant={json.dumps(variant)}" if variant else "",
        digest=digest,
        measured=mark_of_results(pipeline, metrics, existing),
        # A teacher gives away images too.
        audited=digest if pipeline.labeler is None else f"{digest}_{module_digest(pipeline.labeler)}",
        about=hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16],
        labeler=pipeline.labeler is not None,
        data_name=data_name,
        data_licence=licence_in_text,
        size=config.sample_size,
        channels=config.out_channels,
        num_classes=config.num_classes,
        parameters=f"{parameters:,}",
        num_bytes=f"{module_bytes(pipeline.generator):,}",
        form=form,
        sample_rows="per class" if config.num_classes <= 10 else "for each of the first 10 classes",
        classes=classes,
        example_class=repr(names[0]).replace("<", "\\x3c") if pipeline.config.id2label else 0,
        results=describe_results(metrics),
        audit=describe_audit(audit),
        training=describe_training(options, read_json(run / "environment.json") if options else None, model_name),
        privacy=describe_privacy(privacy, pipeline.labeler is not None),
    )
    if existing is None:
        return card
    known = {name for name, found in (("results", metrics), ("audit", audit), ("training", options)) if found}
    return merge_cards(existing, card, known, () if same_data else OF_DATA)


def read_options(run: Path) -> dict[str, Any] | None:
    """
    The options of the run in a folder, or `None` if it holds none.

    Raises:
        ValueError: If they are not those of a run.
    """
    path = run / "options.json"
    options = read_json(path)
    kinds = {"dataset_name": str, "train_data_dir": str, "dataset_config_name": str, "given": list}
    if options is not None and not (
        isinstance(options, dict)
        and isinstance(options.get("dataset_name"), str)
        and all(isinstance(options[name], kind | None) for name, kind in kinds.items() if name in options)
    ):
        raise ValueError(f"{path} is damaged; valid are the options of train_dim.py.")
    try:
        describe_privacy((options or {}).get("privacy"))
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged; its `privacy` is not that of a private run of train_dim.py.") from error
    return options


def tells_of_data(card: ModelCard, digest: str, data_name: str, classes: str) -> bool:
    """
    Whether a card describes a generator of the same data set: these weights, or a data set of this name and, for a
    local folder, these classes. A card without our part on training does not describe another.
    """
    trained = {part[1]: part for part in PART.finditer(card.text)}.get("training")
    if trained is None or trained[2] == digest:
        return True
    named = f"- **Data set:** {data_name}\n" in trained[0]
    return named and (data_name != LOCAL or f"Classes: {classes}.\n" in card.text)


def read_evaluation(pipeline: DiffusionPipeline, evaluation_dir: str | os.PathLike | None) -> dict[str, Any] | None:
    """
    The evaluation in a folder, by default `evaluation/` of the pipeline's, without paths of this machine. One of other
    weights (also of a teacher, where a row depends on it) or of these in another form of storage, or by a release with
    other tables, is an error if it was asked for and is ignored otherwise.
    """
    folder = Path(evaluation_dir) if evaluation_dir else Path(pipeline.name_or_path or "") / "evaluation"
    # A pipeline in memory has no folder, and that of the present directory is of something else.
    metrics: Any = read_json(folder / "metrics.json") if evaluation_dir or pipeline.name_or_path else None
    if metrics and not is_evaluation(metrics):
        raise ValueError(f"{folder / 'metrics.json'} is damaged; valid is what evaluate_dim.py writes.")
    of_other_weights = bool(metrics) and metrics.get("weights") != weights_digest(pipeline)
    # The same numbers can be stored in more bytes. Earlier releases did not record how many.
    stored = module_bytes(pipeline.generator)
    in_other_form = bool(metrics) and metrics.get("generator_bytes", stored) != stored
    complete = bool(metrics) and all(field.name in row for row in metrics["rows"] for field in fields(Row))
    if metrics and uses_teacher(metrics["options"]):
        complete = complete and "labeler" in metrics
        of_other_weights = of_other_weights or (complete and metrics["labeler"] != teacher_digest(pipeline))
    if complete and not of_other_weights and not in_other_form:
        rows = [row | {"classifier": public_name(row["classifier"])} for row in metrics["rows"]]
        return metrics | {"rows": rows}
    if evaluation_dir:
        other = "by another release of dim_hf"
        if of_other_weights or in_other_form:
            other = "of other weights" if of_other_weights else "of these weights in another form of storage"
        what = f"is an evaluation {other}" if metrics else "holds no metrics.json"
        raise ValueError(f"`evaluation_dir` {folder} {what}; valid is an output folder of evaluate_dim.py.")
    return None


def mark_of_results(pipeline: DiffusionPipeline, metrics: dict[str, Any] | None, existing: ModelCard | None) -> str:
    """What the results on a card are of: the weights, and a teacher where a row depends on it."""
    weights = weights_digest(pipeline)
    with_teacher = f"{weights}_{teacher_digest(pipeline)}"
    if metrics is not None:
        return with_teacher if uses_teacher(metrics["options"]) else weights
    # Those on the card stay if they are of the same, in the same form of storage.
    found = {part[1]: part for part in PART.finditer(existing.text if existing else "")}.get("results")
    stored = module_bytes(pipeline.generator)
    in_another_form = f"{weights}_{stored}"
    if found and found[2] in (weights, with_teacher):
        told = re.search(r"The generator takes ([\d,]+) bytes", found[0])
        return in_another_form if told and told[1] != f"{stored:,}" else found[2]
    return in_another_form if found and found[2] == in_another_form else weights


def teacher_digest(pipeline: DiffusionPipeline) -> str | None:
    return None if pipeline.labeler is None else module_digest(pipeline.labeler)


def uses_teacher(options: dict[str, Any]) -> bool:
    """Whether any row of an evaluation with these options depends on the pipeline's teacher."""
    draws = [*options.get("max_attempts", ()), *options.get("choose_from", ())]
    return bool(options.get("soft_labels")) or max(draws, default=1) > 1


def is_evaluation(metrics: Any) -> bool:
    """Whether the parts of a metrics.json that a card reads are of the kinds that [`write_report`] writes."""
    kinds: dict[str, Any] = {"rows": list, "protocol": str, "options": dict}
    if not isinstance(metrics, dict) or not all(isinstance(metrics.get(name), kind) for name, kind in kinds.items()):
        return False
    of_field: dict[Any, Any] = {str: str, int: int, float: int | float, bool: bool, list[float]: list}
    return isinstance(metrics["options"].get("dataset_name"), str) and all(
        isinstance(row, dict)
        and all(isinstance(row[field.name], of_field[field.type]) for field in fields(Row) if field.name in row)
        and all(isinstance(accuracy, int | float) for accuracy in row.get("accuracies", [0]))
        and row.get("num_classes", 1) > 0
        and row.get("accuracies", [0])
        for row in metrics["rows"]
    )


def describe_data(options: dict[str, Any] | None) -> tuple[str | None, str]:
    """The data set's id on the Hub, if it has one, and what the card calls it."""
    if options is None:
        return None, "a labelled image data set"
    name = options["dataset_name"]
    if options.get("train_data_dir") or Path(name).is_absolute() or (name != "digits" and Path(name).exists()):
        return None, LOCAL
    if name == "digits":
        return None, DIGITS
    config = options.get("dataset_config_name")
    try:
        validate_repo_id(name)
    except HFValidationError:
        # Whatever it is, it is no link.
        return None, LOCAL
    return name, f"the labelled images of [{name}](https://huggingface.co/datasets/{name})" + (
        f", configuration {markdown(config)}" if config else ""
    )


def data_title(options: dict[str, Any]) -> str:
    """The data set's short name, without a path of this machine."""
    hub_id, name = describe_data(options)
    return hub_id or ("digits" if name == DIGITS else "a local folder")


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
    # It goes into the metadata of our card.
    known = len(listed) == 1 and isinstance(listed[0], str) and re.fullmatch(r"[\w.+-]{1,64}", listed[0], re.ASCII)
    return listed[0] if known else None


def describe_results(metrics: dict[str, Any] | None) -> str:
    if metrics is None:
        return (
            "Not measured yet. `training/evaluate_dim.py --push_to_hub` of dim_hf measures it and writes a table here."
        )
    rows = [Row(**{field.name: row[field.name] for field in fields(Row)}) for row in metrics["rows"]]
    words = [{name: markdown(getattr(row, name)) for name in WORDS_OF_ROW} for row in rows]
    rows = [Row(**(asdict(row) | of_row)) for row, of_row in zip(rows, words, strict=True)]
    return f"{results_table(rows)}\n\n{plain_prose(metrics['protocol'])}"


def eval_results(metrics: dict[str, Any]) -> list[EvalResult]:
    """
    The model's results in protocols A and B. Left out are controls, rows without augmentation, which serve only for
    comparison, and legacy rows, which are chosen on the test split.
    """
    options = metrics["options"]
    # What was evaluated on need not be what the pipeline was trained on.
    hub_id, data_name = describe_data(options)
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
        if row["protocol"] in COMPARED and row["augment"] and not row["control"]
    ]


def metric_name(row: dict[str, Any]) -> str:
    """The name of a row's accuracy, complete without the table."""
    images = f"{row['ipc']} images per class and epoch{row['source'].removeprefix(GENERATED)}"
    if row["protocol"] == "A":
        images = f"a {row['source']}, of {row['ipc']} images per class"
    labels = " with a teacher's soft labels" if row["labels"] == "soft" else ""
    return f"accuracy of {row['classifier']} trained on {images}{labels}"


def describe_training(options: dict[str, Any] | None, environment: dict[str, Any] | None, name: str) -> str:
    if options is None:
        return "Its options were not recorded."
    shown = {name: public_value(value) for name, value in sorted(options.items()) if name not in NOT_ON_CARD}
    cells = {markdown(name): in_code(json.dumps(value)) for name, value in shown.items() if value is not None}
    table = "\n".join(f"| `{name}` | `{cell}` |" for name, cell in cells.items())
    made = environment.items() if isinstance(environment, dict) else ()
    made_with = ", ".join(f"{markdown(name)} {markdown(value)}" for name, value in made)
    return (
        f"With the script of dim_hf:\n\n```bash\n{command(options, name)}\n```\n\nAll its options:\n\n"
        f"| option | value |\n|---|---|\n{table}\n\nMade with {made_with}."
    )


def command(options: dict[str, Any], name: str) -> str:
    """The command of a run, with `...` for what only its machine has, and an output folder of this name."""
    words = ["accelerate launch training/train_dim.py"]
    for option in options.get("given", []):
        value = options.get(option)
        if option in ("dataset_name", "train_data_dir") or option not in NOT_ON_CARD:
            # A folder of the user's, also where its path is relative.
            value = None if option == "train_data_dir" else value
            values = value if isinstance(value, list) else str(value).split() if option == "match_loss" else [value]
            told = [None if each is None or isinstance(each, dict) else public_value(each) for each in values]
            words.append(
                " ".join([f"--{option}", *("..." if each is None else shlex.quote(str(each)) for each in told)])
            )
    words.append(f"--output_dir {shlex.quote(f'out/{name}')}")
    # One line cannot end the block of code that it is in, and no comment a part of the card.
    return one_line(" ".join(words), 4000).replace("<!--", "<! --")


def in_code(text: str) -> str:
    """Text of JSON for a code span in a table; the escapes mean the same."""
    for character in "`<":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.replace("|", "\\|")


def plain_prose(text: str) -> str:
    """Prose of ours that may hold words of others, and no tag, comment or link of theirs."""
    return one_line(text, 10_000).replace("<", "&lt;").replace("](", "]\\(")


def public_value(value: Any) -> Any:
    """An option's value, fit to be published; `None` for a path of this machine, or a list that contains one."""
    if isinstance(value, list):
        values = [public_value(each) for each in value]
        return None if None in values else values
    if not isinstance(value, str):
        return value
    return None if Path(value).is_absolute() or value.startswith(("~", ".")) else public_name(value)
