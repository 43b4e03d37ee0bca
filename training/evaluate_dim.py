"""
Trains classifiers on a distilled data set and scores them on real test images (deployment).

    accelerate launch training/evaluate_dim.py                                   # what train_dim.py made of the digits
    accelerate launch training/evaluate_dim.py --pipeline out/fashion --dataset_name zalando-datasets/fashion_mnist \
        --protocols A B --selection random kmeans --ipc 1 10 --epochs 500 150 --classifiers convnet3 --seeds 0 1

Protocol A is a fixed set of generated images, B a stream of fresh ones, C the deployment of the released code. But for
C, all rows of an ipc are trained by one recipe for the same number of steps: on generated images, on those of the same
generator before matching, and on real images as controls. The test split is scored once per classifier, after its last
epoch.

The output folder gets metrics.json, report.md, report.html and samples.png; fixed/, the latents of fixed sets; and
results.jsonl, a line per classifier: what is there is not run again, after an interruption or with another row beside
it. With several processes the classifiers are shared out.
"""

import argparse
import hashlib
import itertools
import json
import statistics
import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from tqdm.auto import tqdm

from dim_hf.classifiers import check_classifier, local_fingerprint, public_name
from dim_hf.data import ImageData, holdout, load_image_data
from dim_hf.data.decoding import default_cache_dir
from dim_hf.distillation.pool import POOL_FORMAT, PoolRecipe, build_pool, split_entry
from dim_hf.evaluation.codec_search import best_codec
from dim_hf.evaluation.codecs import CODECS, Codec, png_bytes
from dim_hf.evaluation.fixed_sets import (
    SELECTIONS,
    choose_latents,
    latents_settings,
    load_latents,
    optimise_latents,
    save_latents,
)
from dim_hf.evaluation.html_report import write_html_report
from dim_hf.evaluation.judges import DeploymentRecipe, predict, train_classifier
from dim_hf.evaluation.protocol_c import LegacyStream, legacy_accuracy
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.evaluation.sources import REAL, LatentsOf, Source, list_sources, scores
from dim_hf.evaluation.tables import Row, describe_protocol, results_table, scores_table, write_report
from dim_hf.files import check_output_dir, lock_output_dir, read_json_lines
from dim_hf.hub.card import local_or_hub
from dim_hf.hub.push import prepare_repository
from dim_hf.machine import environment, warn_of_slow_precision
from dim_hf.pipelines.pipeline_dim import DiMPipeline
from dim_hf.weights import module_bytes, weights_digest


CONTROLS = ("before_matching", *REAL)
# Up to so many classes, a result has its confusion matrix.
MOST_IN_CONFUSION = 100


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train classifiers on a distilled data set and score them on real test images.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--pipeline", default="out/digits", help="folder or Hub id of a distilled data set")
    parser.add_argument("--before_matching", help="pipeline of that control; default: before_matching/ in --pipeline")
    parser.add_argument("--output_dir", help="default: evaluation/ in --pipeline")

    data = parser.add_argument_group("data")
    data.add_argument("--dataset_name", default="digits", help="Hub id, local folder or file, or 'digits' (embedded)")
    data.add_argument("--dataset_config_name", help="configuration of the data set, where it has several")
    data.add_argument("--train_data_dir", help="folder of images, one sub-folder per class, instead of a data set")
    data.add_argument("--revision", help="revision of a data set on the Hub")
    data.add_argument("--train_split", default="train", help="where the real controls come from")
    data.add_argument("--test_split", default="test")
    data.add_argument("--max_train_samples", type=int, help="take real controls from so many images, stratified")
    data.add_argument(
        "--validation",
        action="store_true",
        help="score the part of train that training held out, as options.json in --pipeline says, not the test split",
    )
    data.add_argument("--image_column", help="found from the features unless given")
    data.add_argument("--label_column", help="found from the features unless given")
    data.add_argument("--cache_dir", help="where decoded images are kept")
    data.add_argument("--dataloader_num_workers", type=int, help="processes that decode; default: every core")

    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--protocols", nargs="+", choices=["A", "B", "C"], default=["B"])
    protocol.add_argument(
        "--ipc", type=int, nargs="+", default=[10], help="images per class: and epoch (B, C), once (A)"
    )
    protocol.add_argument("--classifiers", nargs="+", default=["convnet3", "resnet18"], metavar="CLASSIFIER")
    protocol.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of classifiers and of noise")
    # The search for a coding takes almost four trainings of its own.
    usual = [name for name in CONTROLS if name != "equal_bytes_lossy"]
    protocol.add_argument("--controls", nargs="*", choices=CONTROLS, default=usual)
    protocol.add_argument(
        "--codec",
        choices=CODECS,
        metavar="CODEC",
        help="how equal_bytes_lossy keeps its images, such as 'AVIF quality 35'; default: a search for each size",
    )
    protocol.add_argument("--soft_labels", action="store_true", help="more rows, with the labels of its `labeler`")
    protocol.add_argument("--without_augmentation", action="store_true", help="more rows, which ARS compares")
    protocol.add_argument(
        "--epochs", type=int, nargs="+", default=[DeploymentRecipe.epochs], help="one for all, or one for each ipc"
    )
    protocol.add_argument("--train_batch_size", type=int, default=DeploymentRecipe.batch_size)
    protocol.add_argument("--learning_rate", type=float, default=DeploymentRecipe.learning_rate)
    protocol.add_argument("--mixed_precision", choices=["no", "bf16"], help="default: accelerate's configuration")

    fixed = parser.add_argument_group("fixed sets (protocol A)")
    fixed.add_argument("--selection", nargs="+", choices=SELECTIONS, default=["random"], help="each is a row")
    fixed.add_argument("--candidates", type=int, default=100, help="samples per image that k-means or herding keeps")
    fixed.add_argument(
        "--latent_steps",
        type=int,
        nargs="+",
        default=[0],
        help="then optimise the latents for so many steps; each number is a row of each selection",
    )
    fixed.add_argument(
        "--pool",
        nargs="+",
        default=["convnet3"],
        metavar="CLASSIFIER",
        help="networks that latents are optimised for; the last one chooses, as the teacher",
    )
    fixed.add_argument("--pool_steps", type=int, default=PoolRecipe.steps, help="training steps of each")

    hub = parser.add_argument_group("Hugging Face Hub")
    hub.add_argument("--push_to_hub", action="store_true", help="push the pipeline, with the results on its card")
    hub.add_argument("--hub_model_id", help="repository; default: --pipeline, or the name of its folder")
    hub.add_argument("--hub_token", help="default: the token of `hf auth login` or of HF_TOKEN")
    hub.add_argument("--hub_private_repo", action="store_true", help="create the repository as a private one")
    return parser.parse_args(input_args)


def main(args: argparse.Namespace) -> list[Row]:
    # 1. Settings are checked before any work.
    # Processes wait at the end for the slowest; the usual time-out would lose hours of work.
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))]
    )
    if accelerator.is_main_process:
        warn_of_slow_precision(accelerator.mixed_precision, accelerator.device)
    for name in args.classifiers:
        check_classifier(name)
    least = {"ipc": (args.ipc, 1), "seeds": (args.seeds, 0), "candidates": ([args.candidates], 1)}
    least |= {"latent_steps": (args.latent_steps, 0), "pool_steps": ([args.pool_steps], 1)}
    for name, (numbers, smallest) in least.items():
        if min(numbers) < smallest:
            raise ValueError(f"`--{name}` is {min(numbers)}; it must be at least {smallest}.")
    if max(args.seeds) >= 2**32:
        raise ValueError(f"`--seeds` names {max(args.seeds)}; it must be below 2**32.")
    for name in ("ipc", "seeds", "classifiers", "protocols", "selection", "latent_steps", "controls"):
        values = getattr(args, name)
        if len(set(values)) != len(values):
            raise ValueError(f"`--{name}` names {values}; each must be given once.")
    if len(args.epochs) not in (1, len(args.ipc)):
        raise ValueError(
            f"`--epochs` has {len(args.epochs)} numbers, {args.epochs}, and `--ipc` {len(args.ipc)}, {args.ipc}; "
            "valid is one number for all, or one for each ipc in the same order."
        )
    if args.codec and "equal_bytes_lossy" not in args.controls:
        raise ValueError(
            f"`--codec` is {args.codec!r}, that of the control equal_bytes_lossy; `--controls` names "
            f"{', '.join(args.controls) or 'none'}."
        )
    if "A" not in args.protocols and (args.selection != ["random"] or any(args.latent_steps)):
        raise ValueError(
            f"`--selection` and `--latent_steps` make the fixed sets of protocol A; `--protocols` names "
            f"{', '.join(args.protocols)}."
        )
    if args.test_split == args.train_split and not args.validation:
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, the split of the real controls; valid is one that nothing is "
            "trained on, or --validation for what training held out."
        )
    recipes = {
        ipc: DeploymentRecipe(
            epochs, args.train_batch_size, args.learning_rate, mixed_precision=accelerator.mixed_precision
        )
        for ipc, epochs in zip(args.ipc, args.epochs * (len(args.ipc) // len(args.epochs)), strict=True)
    }
    folder = Path(args.pipeline)
    if not folder.exists() and not args.output_dir:
        raise FileNotFoundError(
            f"`--pipeline` {folder} is no local folder; for a pipeline on the Hub, `--output_dir` must be given."
        )
    training = None
    if args.validation:
        if not (folder / "options.json").exists():
            raise FileNotFoundError(
                f"`--validation` needs options.json in `--pipeline` {folder}, which says what training held out."
            )
        training = json.loads((folder / "options.json").read_text())
    output_dir = Path(args.output_dir or folder / "evaluation")
    read_results(output_dir / "results.jsonl")
    pipeline, pipeline_before = load_pipeline("pipeline", folder), None
    before = Path(args.before_matching) if args.before_matching else folder / "before_matching"
    if "before_matching" in args.controls and (args.before_matching or before.exists()):
        pipeline_before = load_pipeline("before_matching", before)
    loaded = [pipeline, *([pipeline_before] if pipeline_before else [])]
    shapes = {
        (p.generator.config.sample_size, p.generator.config.out_channels, p.generator.config.num_classes)
        for p in loaded
    }
    if len(shapes) > 1:
        raise ValueError(
            f"`--before_matching` {before} makes other images than `--pipeline` {folder}: (size, channels, classes) "
            f"are {' and '.join(map(str, sorted(shapes)))}."
        )
    if pipeline_before and pipeline_before.class_names != pipeline.class_names:
        raise ValueError(
            f"`--before_matching` {before} generates {', '.join(pipeline_before.class_names)}; `--pipeline` {folder} "
            f"generates {', '.join(pipeline.class_names)}."
        )
    if args.soft_labels and pipeline.labeler is None:
        raise ValueError(
            f"`--soft_labels` takes a teacher, but `--pipeline` {folder} has no `labeler`; training/train_labeler.py "
            "adds one."
        )
    for each in loaded:
        each.to(accelerator.device)
        each.set_progress_bar_config(disable=True)
    train, test = load_splits(args, pipeline, accelerator, training)
    for name in args.classifiers:
        check_classifier(name, test.channels, test.size)
    sets_take_pool = "A" in args.protocols and (any(args.latent_steps) or args.selection != ["random"])
    if sets_take_pool:
        for name in args.pool:
            try:
                check_classifier(split_entry(name)[0], test.channels, test.size, features=True)
            except ValueError as error:
                raise ValueError(f"`--pool`: {error}") from error
    if accelerator.is_main_process:
        # A new evaluation takes the place of an older one.
        check_output_dir(output_dir, 2**20, resuming=True)
        if args.push_to_hub:
            name = args.hub_model_id or (folder.resolve().name if folder.exists() else args.pipeline)
            args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
        lock = lock_output_dir(output_dir)
    accelerator.wait_for_everyone()

    # 2. One job per row and seed, shared out over the processes. A job that an earlier evaluation has finished in the
    # same folder is not run again.
    fixed_sets = {
        each: make_fixed_sets(args, each, train, accelerator, output_dir / "fixed") if "A" in args.protocols else {}
        for each in loaded
    }

    def read_sets(made_by: DiMPipeline | None, ipc: int) -> dict[str, LatentsOf]:
        paths = fixed_sets[made_by] if made_by else {}

        def read_set(selection: str, steps: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
            return load_latents(paths[selection, steps, ipc, seed])

        return {
            f"fixed set, {selection}" + (f", {steps} latent steps" if steps else ""): partial(
                read_set, selection, steps
            )
            for selection, steps in itertools.product(args.selection, args.latent_steps)
            if paths
        }

    def codec_for(ipc: int, budget: int) -> Codec:
        if args.codec:
            return CODECS[args.codec]
        # The other processes find what the first one has measured.
        with accelerator.main_process_first():
            return best_codec(train, budget, ipc, recipes[ipc], output_dir / "codecs.jsonl")

    sources = {
        ipc: list_sources(
            pipeline,
            ipc,
            recipes[ipc],
            train,
            protocols=args.protocols,
            controls=args.controls,
            before_matching=pipeline_before,
            selections=read_sets(pipeline, ipc),
            selections_before=read_sets(pipeline_before, ipc),
            soft_labels=args.soft_labels,
            without_augmentation=args.without_augmentation,
            codec_for=partial(codec_for, ipc),
        )
        for ipc in args.ipc
    }
    rows = [(source, name, ipc) for ipc in args.ipc for name in args.classifiers for source in sources[ipc]]

    def job(source: Source, name: str, ipc: int, seed: int) -> dict[str, Any]:
        """All that decides a result, as JSON values."""
        run = {"classifier": name, "ipc": ipc, "seed": seed, "recipe": asdict(recipes[ipc]), "test": test.fingerprint}
        if content := local_fingerprint(name):
            run["local"] = content
        return source.identity(seed) | run

    results = output_dir / "results.jsonl"
    if accelerator.is_main_process and results.exists() and not results.read_bytes().endswith(b"\n"):
        # An interruption has cut the last line short; the next one must not go on with it.
        with results.open("a") as file:
            file.write("\n")
    finished = read_results(results)
    accelerator.wait_for_everyone()
    # Two rows of the same weights, as before and after matching where matching did not help, are one job.
    wanted: dict[str, tuple[Source, str, int, int]] = {}
    for seed, (source, name, ipc) in itertools.product(args.seeds, rows):
        wanted.setdefault(job_key(job(source, name, ipc, seed)), (source, name, ipc, seed))
    missing = [each for key, each in wanted.items() if key not in finished]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    for source, name, ipc, seed in tqdm(mine, unit="classifier", disable=not accelerator.is_main_process):
        result: dict[str, Any] = {"job": job(source, name, ipc, seed)}
        stream, progress = source.stream(seed), accelerator.is_main_process
        start = time.perf_counter()
        if isinstance(stream, LegacyStream):
            accuracy = legacy_accuracy(stream, name, test, epochs=recipes[ipc].epochs, seed=seed, progress=progress)
        else:
            classifier = train_classifier(
                stream,
                name,
                recipes[ipc],
                channels=test.channels,
                size=test.size,
                seed=seed,
                device=accelerator.device,
                augment=source.augment,
                progress=progress,
            )
            predictions = predict(classifier, test)
            accuracy = (predictions == test.labels).sum().item() / len(test)
            if test.num_classes <= MOST_IN_CONFUSION:
                cells = torch.bincount(test.labels * test.num_classes + predictions, minlength=test.num_classes**2)
                result["confusion"] = cells.view(test.num_classes, -1).tolist()
        result |= {"accuracy": accuracy, "seconds": round(time.perf_counter() - start, 1)}
        # In one piece, as other processes write to the same file.
        with results.open("ab", buffering=0) as whole:
            whole.write(f"{json.dumps(result)}\n".encode())
        tqdm.write(f"{source.title}, {name}, ipc {ipc}, seed {seed}: {100 * accuracy:.2f} %")
    accelerator.wait_for_everyone()
    finished = read_results(results)

    # 3. The tables, the reports and the picture.
    table = []
    for source, name, ipc in rows:
        own = [finished[job_key(job(source, name, ipc, seed))] for seed in args.seeds]
        table.append(source.row(name, ipc, recipes[ipc], args.seeds[0], own))
    if accelerator.is_main_process:
        ranking = scores(table)
        save_sample_grid(pipeline, output_dir / "samples.png")
        options = {name: value for name, value in vars(args).items() if name != "hub_token"}
        options["dataset_name"] = local_or_hub(args.dataset_name)
        details = {"options": options, "environment": environment(), "weights": weights_digest(pipeline)}
        stored = module_bytes(pipeline.generator)
        protocol = describe_protocol(
            args.protocols,
            recipes,
            args.seeds,
            test,
            "the part of train that training held out" if args.validation else f"split {args.test_split}",
            stored,
            stored * len(train) / png_bytes(train),
        )
        if sets_take_pool:
            if args.selection != ["random"]:
                protocol += (
                    f" k-means and herding choose among {args.candidates:,} samples for each image, by the features "
                    f"of {public_name(split_entry(args.pool[-1])[0])}."
                )
            if any(args.latent_steps):
                protocol += f" Latent steps match the pool {', '.join(map(public_name, args.pool))}."
            protocol += f" These networks were trained on the real images for {args.pool_steps:,} steps."
        if "A" in args.protocols:
            protocol += f" Seconds to make one fixed set: {describe_times(fixed_sets[pipeline])}."
        if "before_matching" in args.controls and pipeline_before is None and {*args.protocols} != {"C"}:
            protocol += " There is no control from before matching, as no pipeline of that time was found."
        write_report(output_dir, table, protocol, details, ranking)
        # Of the first classifier on the most images.
        shown = max(range(len(rows)), key=lambda i: (rows[i][2], -i))
        matrices = [finished[job_key(job(*rows[shown], seed))].get("confusion") for seed in args.seeds]
        write_html_report(
            output_dir,
            table,
            protocol,
            pipeline=pipeline,
            train=train,
            scores=ranking,
            confusion=(table[shown], torch.tensor(matrices).sum(dim=0)) if all(matrices) else None,
            training=read_json_lines(folder / "metrics.jsonl"),
        )
        print("\n" + "\n\n".join(text for text in (results_table(table), scores_table(ranking)) if text))
        print(f"\nreport {output_dir / 'report.md'} and {output_dir / 'report.html'}")
        if args.push_to_hub:
            url = pipeline.push_to_hub(
                args.hub_model_id,
                token=args.hub_token,
                private=args.hub_private_repo or None,
                evaluation_dir=output_dir,
            )
            print(f"pushed to {args.hub_model_id}: {url}")
        lock.release()
    return table


def job_key(job: dict[str, Any]) -> str:
    """One string for all that decides the result of a job."""
    return json.dumps(job, sort_keys=True)


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder by their jobs' keys."""
    records = read_json_lines(path)
    for record in records:
        if not (isinstance(record, dict) and {"job", "accuracy", "seconds"} <= set(record)):
            raise ValueError(
                f"`--output_dir` holds {path}, which is not by evaluate_dim.py: it has the line "
                f"{json.dumps(record)[:60]}; valid is an output folder of evaluate_dim.py or a new one."
            )
    return {job_key(record["job"]): record for record in records}


def load_pipeline(argument: str, path: Path) -> DiMPipeline:
    if path.exists() and not (path / "model_index.json").exists():
        raise FileNotFoundError(f"`--{argument}` {path} holds no pipeline (model_index.json).")
    try:
        return DiMPipeline.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"`--{argument}` {path} cannot be loaded: {error}") from error


def load_splits(
    args: argparse.Namespace, pipeline: DiMPipeline, accelerator: Accelerator, training: dict[str, Any] | None
) -> tuple[ImageData, ImageData]:
    """
    The real images to train controls on and to score, at the size, channels and labels of the pipeline.

    Args:
        training: The options of the training run, to score what it held out; `None` to score the test split.
    """
    config = pipeline.generator.config

    def load(split: str, class_names: tuple[str, ...] | None, max_samples: int | None) -> ImageData:
        with accelerator.main_process_first():
            return load_image_data(
                args.dataset_name,
                split,
                dataset_config_name=args.dataset_config_name,
                train_data_dir=args.train_data_dir,
                image_column=args.image_column,
                label_column=args.label_column,
                class_names=class_names,
                resolution=config.sample_size,
                channels=config.out_channels,
                cache_dir=args.cache_dir,
                num_workers=args.dataloader_num_workers,
                max_samples=max_samples,
                revision=args.revision,
            )

    if training:
        train = load(training["train_split"], None, training["max_train_samples"])
    else:
        train = load(args.train_split, None, args.max_train_samples)
    names = pipeline.config.id2label
    expected = tuple(names.values()) if names else tuple(str(label) for label in range(config.num_classes))
    if train.class_names != expected:
        raise ValueError(
            f"`--dataset_name` {args.dataset_name} has the classes {', '.join(train.class_names)}; the pipeline "
            f"generates {', '.join(expected)}."
        )
    if training:
        if train.fingerprint != training["data_fingerprint"]:
            raise ValueError(
                f"`--validation` scores what training held out, but `--dataset_name` {args.dataset_name} is not the "
                f"data that it was trained on, {training['dataset_name']} (options.json in `--pipeline`)."
            )
        train, test = holdout(train, training["validation_fraction"], training["seed"])
    else:
        test = load(args.test_split, train.class_names, None)
        if test.fingerprint == train.fingerprint:
            raise ValueError(
                f"`--test_split` {args.test_split} of `--dataset_name` {args.dataset_name} holds the images of "
                f"`--train_split` {args.train_split}; valid is one that nothing is trained on."
            )
    return train.to(accelerator.device), test.to(accelerator.device)


def make_fixed_sets(
    args: argparse.Namespace, pipeline: DiMPipeline, train: ImageData, accelerator: Accelerator, folder: Path
) -> dict[tuple[str, int, int, int], Path]:
    """The files of the latents of each selection, number of steps, ipc and seed; what was made before stays."""
    paths: dict[tuple[str, int, int, int], Path] = {}
    # What is missing of each selection, ipc and seed: its latents are chosen once, whatever the steps that follow.
    missing: dict[tuple[str, int, int], list[tuple[Path, dict[str, Any]]]] = {}
    for selection, ipc, seed, steps in itertools.product(args.selection, args.ipc, args.seeds, args.latent_steps):
        settings = {"weights": weights_digest(pipeline), "selection": selection, "ipc": ipc, "seed": seed}
        if selection != "random":
            settings["candidates"] = args.candidates
        if selection != "random" or steps:
            settings |= {"pool": args.pool, "pool_steps": args.pool_steps, "data": train.fingerprint}
            settings |= {"latent_steps": steps, "pool_format": POOL_FORMAT}
            networks = [split_entry(entry)[0] for entry in args.pool]
            if local := {name: content for name in networks if (content := local_fingerprint(name))}:
                settings["local"] = local
        digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
        path = folder / f"{selection}-ipc{ipc}-seed{seed}-{digest}.safetensors"
        paths[selection, steps, ipc, seed] = path
        if not path.exists():
            missing.setdefault((selection, ipc, seed), []).append((path, settings))
    accelerator.wait_for_everyone()
    pool = []
    if any("pool" in settings for sets in missing.values() for _, settings in sets):
        with accelerator.main_process_first():
            pool = build_pool(
                args.pool,
                train,
                PoolRecipe(steps=args.pool_steps),
                seed=0,
                cache_dir=args.cache_dir or default_cache_dir(),
                device=accelerator.device,
                show_progress=accelerator.is_main_process,
            )
    generator, teacher = pipeline.generator, pool[-1] if pool else None
    mine = list(missing.items())[accelerator.process_index :: accelerator.num_processes]
    progress = accelerator.is_main_process
    for (selection, ipc, seed), sets in tqdm(mine, unit="set", disable=not progress):
        start = time.perf_counter()
        latents, labels = choose_latents(
            generator, ipc, selection, seed=seed, candidates=args.candidates, teacher=teacher
        )
        choosing = time.perf_counter() - start
        for path, settings in sets:
            start, moved = time.perf_counter(), latents
            if steps := settings.get("latent_steps"):
                moved = optimise_latents(generator, latents, labels, train, pool, steps, seed=seed, progress=progress)
            seconds = round(choosing + time.perf_counter() - start, 1)
            save_latents(path, moved, labels, settings | {"seconds": seconds})
    accelerator.wait_for_everyone()
    return paths


def describe_times(sets: dict[tuple[str, int, int, int], Path]) -> str:
    """How long the fixed sets took to make, means over the seeds, as their files say."""
    times: dict[tuple[str, int], dict[int, list[float]]] = {}
    for (selection, steps, ipc, _), path in sets.items():
        times.setdefault((selection, steps), {}).setdefault(ipc, []).append(latents_settings(path)["seconds"])
    return "; ".join(
        f"{selection}{f', {steps} latent steps' if steps else ''} "
        + ", ".join(f"{statistics.mean(own):,.1f} at ipc {ipc}" for ipc, own in by_ipc.items())
        for (selection, steps), by_ipc in times.items()
    )


if __name__ == "__main__":
    try:
        main(parse_args())
    except (ValueError, OSError) as error:
        raise SystemExit(f"evaluate_dim.py: {error}") from error
