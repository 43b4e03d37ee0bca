"""The results of an evaluation, one line of JSON per classifier, so that finished ones are not run again."""

import json
import os
from dataclasses import asdict
from typing import Any

from ..classifiers import local_fingerprint
from ..data.image_data import ImageData
from ..files import read_json_lines
from .sources import Source


# The format of results, of searches for a codec and of latents of fixed sets. Raise it by one with any change after
# which the same settings give different figures: streams, recipes, augmentation, initial weights, choice and
# optimisation of latents, scoring. Results with another number stay in the file but are not used.
EVALUATION_FORMAT = 2


def describe_job(source: Source, classifier: str, seed: int, test: ImageData) -> dict[str, Any]:
    """Everything that determines the result of one classifier, as JSON values."""
    job = source.identity(seed) | {
        "classifier": classifier,
        "ipc": source.ipc,
        "seed": seed,
        "recipe": asdict(source.judge.recipe),
        "test": test.fingerprint,
        "format": EVALUATION_FORMAT,
    }
    if content := local_fingerprint(classifier):
        job["local"] = content
    return job


def job_key(job: dict[str, Any]) -> str:
    """The description of a job as one string, to look its result up by."""
    return json.dumps(job, sort_keys=True)


def read_results(path: str | os.PathLike) -> tuple[dict[str, dict[str, Any]], int]:
    """
    Reads a file of results, if there is one; a line that an interruption cut short is ignored.

    Returns:
        The results of this format by the keys of their jobs, and the number of results of other formats.

    Raises:
        ValueError: If a line is something else, naming the file.
    """
    results, others = {}, 0
    for record in read_json_lines(path):
        if not (
            isinstance(record, dict)
            and isinstance(record.get("job"), dict)
            and isinstance(record.get("accuracy"), float)
            and isinstance(record.get("seconds"), float)
        ):
            raise ValueError(
                f"`--output_dir` holds {path}, which is not by evaluate_dim.py: it has the line "
                f"{json.dumps(record)[:60]}; valid is an output folder of evaluate_dim.py or a new one."
            )
        if record["job"].get("format") == EVALUATION_FORMAT:
            results[job_key(record["job"])] = record
        else:
            others += 1
    return results, others
