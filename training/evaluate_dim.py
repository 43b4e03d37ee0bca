"""
Trains classifiers on a distilled data set and scores them on real test images (deployment).

    accelerate launch training/evaluate_dim.py                                   # what train_dim.py made of the digits
    accelerate launch training/evaluate_dim.py --pipeline out/fashion --dataset_name zalando-datasets/fashion_mnist \
        --protocols A B --selection random kmeans --ipc 1 10 --epochs 500 150 --classifiers convnet3 --seeds 0 1

Protocol A is a fixed set of generated images, B a stream of fresh ones, C the deployment of the released code. Except
in C, all rows of an ipc are trained by one recipe for the same number of steps: on generated images, on those of the
same generator before matching, and on real images as controls. The test split is scored once per classifier, after its
last epoch.

The output folder gets metrics.json, report.md, report.html and samples.png; fixed/, the latents of fixed sets; and
results.jsonl, a line per classifier, so that finished ones are not trained again after an interruption or when rows
are added. Several processes share the classifiers.
"""

from command_line import check_processes, parse_before_imports, run_script
from evaluate_arguments import parse_args


if __name__ == "__main__":
    ARGS = parse_before_imports("evaluate_dim.py", parse_args)

import argparse
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from evaluate_inputs import (
    Pipelines,
    check_against_training,
    check_args,
    check_fit,
    check_folders,
    list_draws,
    load_pipelines,
    load_splits,
    takes_pool,
)
from tqdm.auto import tqdm

from dim_hf.audit.report import audit_pictures, audit_tables, read_audit
from dim_hf.classifiers import public_name
from dim_hf.data import ImageData
from dim_hf.data.decoding import default_cache_dir
from dim_hf.distillation.processes import check_same
from dim_hf.evaluation.codec_search import best_codec
from dim_hf.evaluation.codecs import CODECS, Codec, png_bytes
from dim_hf.evaluation.html_report import write_html_report
from dim_hf.evaluation.making_sets import SetsRecipe, describe_times, make_fixed_sets, sets_by_name
from dim_hf.evaluation.names import COMPARED
from dim_hf.evaluation.protocols import Deployment, list_sources
from dim_hf.evaluation.recipe import LEGACY_BATCH_SIZE, DeploymentRecipe
from dim_hf.evaluation.results import describe_job, job_key, read_results
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.evaluation.sources import Draw, Source, generated_source
from dim_hf.evaluation.tables import Row, describe_protocol, results_table, scores, scores_table, write_report
from dim_hf.files import append_json_line, lock_output_dir, read_json_lines
from dim_hf.hub.card import data_title, local_or_hub, teacher_digest
from dim_hf.hub.push import export_repository, prepare_repository
from dim_hf.machine import bfloat16_unit, check_bfloat16, choose_precision, environment, keep_freed_memory
from dim_hf.pipelines import DiMPipeline
from dim_hf.weights import module_bytes, warn_of_storage, weights_digest


# A classifier to be trained: on what, which one, and its seed.
Job = tuple[Source, str, int]


def main(args: argparse.Namespace) -> list[Row]:
    # 1. Settings are checked before any work; first what arguments and folders show without loading anything.
    check_args(args)
    folders = check_folders(args)
    keep_freed_memory()
    # Processes wait at the end for the slowest; the usual time-out would lose hours of work.
    precision, chosen = choose_precision(args.mixed_precision, unit=bfloat16_unit())
    accelerator = Accelerator(
        mixed_precision=precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))]
    )
    check_processes(accelerator.num_processes)
    # Machines may choose differently.
    check_same(accelerator, {"mixed_precision": accelerator.mixed_precision})
    if accelerator.is_main_process:
        check_bfloat16(accelerator.mixed_precision, accelerator.device)
        if chosen:
            print(chosen)
    recipes = {
        ipc: DeploymentRecipe(
            epochs=epochs,
            batch_size=args.train_batch_size or DeploymentRecipe.batch_size,
            learning_rate=args.learning_rate,
            mixed_precision=accelerator.mixed_precision,
        )
        for ipc, epochs in zip(args.ipc, args.epochs * (len(args.ipc) // len(args.epochs)), strict=True)
    }
    pipelines = load_pipelines(args, folders, accelerator)
    pipeline = pipelines.evaluated
    train, test = load_splits(args, pipeline, accelerator, folders.training)
    check_fit(args, test)
    check_against_training(args, folders, train, test, accelerator)
    if accelerator.is_main_process:
        if args.push_to_hub:
            name = args.hub_model_id or (
                folders.pipeline.resolve().name if folders.pipeline.exists() else args.pipeline
            )
            args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
        lock = lock_output_dir(folders.output, "evaluate_dim.py")
    accelerator.wait_for_everyone()

    # 2. What each row is trained on.
    sets = make_sets(args, pipeline, train, folders.output, accelerator)
    sets_before = make_sets(args, pipelines.before, train, folders.output, accelerator)
    sources = {
        ipc: list_sources(
            pipeline,
            ipc,
            recipe,
            train,
            protocols=args.protocols,
            controls=[name for name in args.controls if name != "before_matching"],
            before_matching=pipelines.before,
            selections=sets_by_name(sets, ipc),
            selections_before=sets_by_name(sets_before, ipc),
            draws=list_draws(args),
            soft_labels=args.soft_labels,
            without_augmentation=args.without_augmentation,
            codec_for=partial(choose_codec, args, train, ipc, recipe, folders.output, accelerator),
            legacy_batch_size=args.train_batch_size or LEGACY_BATCH_SIZE,
        )
        for ipc, recipe in recipes.items()
    }
    rows = [(source, name) for ipc in args.ipc for name in args.classifiers for source in sources[ipc]]
    jobs: list[Job] = [(source, name, seed) for seed in args.seeds for source, name in rows]
    # One more classifier shows what a smaller form costs.
    judge = Deployment(recipes[args.ipc[0]])
    compared: list[Job] = [
        (generated_source(each, args.ipc[0], judge), args.classifiers[0], args.seeds[0])
        for each in ((pipeline, pipelines.unstored) if pipelines.unstored else ())
    ]

    # 3. One classifier per row and seed.
    finished = run_jobs([*jobs, *compared], test, folders.output / "results.jsonl", accelerator)

    def result(job: Job) -> dict[str, Any]:
        return finished[job_key(describe_job(*job, test))]

    table = [
        source.row(name, args.seeds[0], [result((source, name, seed)) for seed in args.seeds]) for source, name in rows
    ]

    # 4. The tables, the reports and the picture.
    if accelerator.is_main_process:
        if compared:
            stored_accuracy, full = (result(job)["accuracy"] for job in compared)
            about = f"accuracy of {args.classifiers[0]} at ipc {args.ipc[0]}"
            warn_of_storage(args.storage, stored_accuracy, full, about)
        protocol = describe(args, recipes, pipelines, train, test, sets)
        # Of the first classifier on the most images.
        shown = max(range(len(rows)), key=lambda i: (rows[i][0].ipc, -i))
        matrices = [result((*rows[shown], seed)).get("confusion") for seed in args.seeds]
        confusion = (table[shown], torch.tensor(matrices).sum(dim=0)) if all(matrices) else None
        write_reports(args, folders.output, table, protocol, pipeline=pipeline, train=train, confusion=confusion)
        if args.export_dir:
            export_repository(pipeline, args.export_dir, folders.output, args.hub_token)
            print(f"exported to {args.export_dir}")
        if args.push_to_hub:
            url = pipeline.push_to_hub(
                args.hub_model_id,
                token=args.hub_token,
                private=args.hub_private_repo or None,
                evaluation_dir=folders.output,
            )
            print(f"pushed to {args.hub_model_id}: {url}")
        lock.release()
    return table


def make_sets(
    args: argparse.Namespace,
    pipeline: DiMPipeline | None,
    train: ImageData,
    output_dir: Path,
    accelerator: Accelerator,
) -> dict[tuple[str, int, int, int], Path]:
    """The files of the fixed sets of a pipeline, if protocol A is asked for; see [`make_fixed_sets`]."""
    if pipeline is None or "A" not in args.protocols:
        return {}
    return make_fixed_sets(
        SetsRecipe(args.selection, args.latent_steps, args.candidates, args.pool, args.pool_steps),
        pipeline,
        train,
        accelerator,
        output_dir / "fixed",
        ipcs=args.ipc,
        seeds=args.seeds,
        cache_dir=Path(args.cache_dir or default_cache_dir()),
    )


def choose_codec(
    args: argparse.Namespace,
    train: ImageData,
    ipc: int,
    recipe: DeploymentRecipe,
    output_dir: Path,
    accelerator: Accelerator,
    budget: int,
) -> Codec:
    """The codec of `--codec`, or the best one for `budget` bytes."""
    if args.codec:
        return CODECS[args.codec]
    # The other processes find what the first one has measured.
    with accelerator.main_process_first():
        return best_codec(train, budget, ipc, recipe, output_dir / "codecs.jsonl")


def run_jobs(
    jobs: Sequence[Job], test: ImageData, results: Path, accelerator: Accelerator
) -> dict[str, dict[str, Any]]:
    """
    Trains the classifiers that have no result yet, shared out over the processes, and adds a line to `results` for
    each. What an earlier evaluation has finished in the same folder is not run again.

    Returns:
        The results by the keys of their jobs.
    """
    finished, others = read_results(results)
    accelerator.wait_for_everyone()
    if others:
        accelerator.print(
            f"{results} has {others:,} results of a release with other figures; they stay there and are not used."
        )
    # Two rows of the same weights, as before and after matching where matching did not help, are one job.
    wanted: dict[str, Job] = {}
    for job in jobs:
        wanted.setdefault(job_key(describe_job(*job, test)), job)
    missing = [job for key, job in wanted.items() if key not in finished]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for source, name, seed in tqdm(mine, unit="classifier", disable=not accelerator.is_main_process):
        start = time.perf_counter()
        figures = source.train(name, test, seed, progress=accelerator.is_main_process)
        record = {"job": describe_job(source, name, seed, test)} | figures
        append_json_line(results, record | {"seconds": round(time.perf_counter() - start, 1)})
        tqdm.write(f"{source.title}, {name}, ipc {source.ipc}, seed {seed}: {100 * figures['accuracy']:.2f} %")
    accelerator.wait_for_everyone()
    return read_results(results)[0]


def describe(
    args: argparse.Namespace,
    recipes: dict[int, DeploymentRecipe],
    pipelines: Pipelines,
    train: ImageData,
    test: ImageData,
    sets: dict[tuple[str, int, int, int], Path],
) -> str:
    """How the figures were made, in words, without paths of this machine, since it goes on the model card."""
    stored = module_bytes(pipelines.evaluated.generator)
    split = "the part of train that training held out" if args.validation else f"split {args.test_split}"
    text = describe_protocol(
        args.protocols,
        recipes,
        args.seeds,
        test,
        f"{split} of {data_title(vars(args) | {'dataset_name': local_or_hub(args.dataset_name)})}",
        stored,
        stored * len(train) / png_bytes(train),
    )
    if takes_pool(args):
        if args.selection != ["random"]:
            text += (
                f" k-means and herding choose among {args.candidates:,} samples for each image, by the features "
                f"of {public_name(args.pool[-1].classifier)}."
            )
        if any(args.latent_steps):
            text += f" Latent steps match the pool {', '.join(public_name(str(entry)) for entry in args.pool)}."
        text += f" These networks were trained on the real images for {args.pool_steps:,} steps."
    if sets:
        text += f" Seconds to make one fixed set: {describe_times(sets)}."
    if any(draw != Draw() for draw in list_draws(args)):
        text += (
            " Noise x: the latents are multiplied by that number. Teacher's filter: an image is drawn again, up to "
            "this number of draws, if the teacher takes it for another class or gives its class less than this "
            "probability. Chosen from: that many times as many images are drawn in every epoch, and those are kept "
            "that cover them best in the features of the teacher (greedy k-medoids)."
        )
    compares = not {*COMPARED}.isdisjoint(args.protocols)
    if "before_matching" in args.controls and pipelines.before is None and compares:
        text += " There is no control from before matching, because no such pipeline was found."
    return text


def write_reports(
    args: argparse.Namespace,
    output_dir: Path,
    table: Sequence[Row],
    protocol: str,
    *,
    pipeline: DiMPipeline,
    train: ImageData,
    confusion: tuple[Row, torch.Tensor] | None,
) -> None:
    """Writes the figures and reports of an evaluation, and prints its tables."""
    ranking = scores(table)
    save_sample_grid(pipeline, output_dir / "samples.png")
    options = {name: value for name, value in vars(args).items() if name != "hub_token"}
    options["pool"] = [str(entry) for entry in args.pool]
    options["dataset_name"] = local_or_hub(args.dataset_name)
    measured = {
        "weights": weights_digest(pipeline),
        "labeler": teacher_digest(pipeline),
        "generator_bytes": module_bytes(pipeline.generator),
    }
    details: dict[str, Any] = {"options": options, "environment": environment()} | measured
    write_report(output_dir, table, protocol, details, ranking)
    audit = read_audit(pipeline)
    write_html_report(
        output_dir,
        table,
        protocol,
        pipeline=pipeline,
        train=train,
        scores=ranking,
        confusion=confusion,
        training=[
            record
            for record in read_json_lines(Path(args.pipeline) / "metrics.jsonl")
            if isinstance(record, dict) and isinstance(record.get("step"), int)
        ],
        audit=(audit_tables(audit), audit_pictures(Path(pipeline.name_or_path) / "audit", audit))
        if audit
        else ((), ()),
    )
    print("\n" + "\n\n".join(text for text in (results_table(table), scores_table(ranking)) if text))
    print(f"\nreport {output_dir / 'report.md'} and {output_dir / 'report.html'}")


if __name__ == "__main__":
    run_script(
        "evaluate_dim.py",
        lambda: main(ARGS),
        "Every classifier that was finished is kept in results.jsonl; the same command goes on.",
    )
