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
import itertools
import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from command_line import (
    HelpWithDefaults,
    check_numbers,
    check_once,
    check_pipeline,
    given_flags,
    load_pipeline,
    local_path,
    refuse_idle_flags,
    run_script,
)
from tqdm.auto import tqdm

from dim_hf.classifiers import check_classifier, local_fingerprint, public_name
from dim_hf.data import ImageData, holdout, load_image_data
from dim_hf.data.decoding import default_cache_dir
from dim_hf.distillation.pool import PoolRecipe, split_entry
from dim_hf.evaluation.codec_search import best_codec
from dim_hf.evaluation.codecs import CODECS, Codec, png_bytes
from dim_hf.evaluation.fixed_sets import SELECTIONS, load_latents
from dim_hf.evaluation.html_report import write_html_report
from dim_hf.evaluation.judges import DeploymentRecipe, predict, train_classifier
from dim_hf.evaluation.making_sets import SetsRecipe, describe_times, make_fixed_sets
from dim_hf.evaluation.protocol_c import LegacyStream, legacy_accuracy
from dim_hf.evaluation.results import EVALUATION_FORMAT, job_key, read_results
from dim_hf.evaluation.sample_grid import save_sample_grid
from dim_hf.evaluation.sources import REAL, LatentsOf, Source, generated_source, list_sources, scores
from dim_hf.evaluation.tables import Row, describe_protocol, results_table, scores_table, write_report
from dim_hf.files import (
    append_json_line,
    check_output_dir,
    end_last_line,
    lock_output_dir,
    read_json,
    read_json_lines,
    refuse_foreign_files,
)
from dim_hf.hub.card import local_or_hub
from dim_hf.hub.push import check_token, prepare_repository
from dim_hf.machine import environment, warn_of_slow_precision
from dim_hf.messages import listed
from dim_hf.models.generator_dim import STORAGE_FORMS
from dim_hf.pipelines import DiMPipeline
from dim_hf.streams.randomness import check_shuffled
from dim_hf.weights import module_bytes, stored_form, warn_of_storage, weights_digest


CONTROLS = ("before_matching", *REAL)
# Up to so many classes, a result has its confusion matrix.
MOST_IN_CONFUSION = 100
# Images of a fixed set, and samples of a class that k-means or herding choose among.
MOST_IN_SET = 1_000_000


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train classifiers on a distilled data set and score them on real test images.",
        formatter_class=HelpWithDefaults,
    )
    parser.add_argument(
        "--pipeline", type=local_path, default="out/digits", help="folder or Hub id of a distilled data set"
    )
    parser.add_argument(
        "--before_matching", type=local_path, help="pipeline of that control; default: before_matching/ in --pipeline"
    )
    parser.add_argument("--output_dir", type=local_path, help="default: evaluation/ in --pipeline")
    parser.add_argument(
        "--storage",
        choices=STORAGE_FORMS,
        help="score and push the weights in this form; default: as they are stored",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset_name",
        type=local_path,
        default="digits",
        help="Hub id, local folder or file, or 'digits' (embedded)",
    )
    data.add_argument("--dataset_config_name", help="configuration of the data set, where it has several")
    data.add_argument(
        "--train_data_dir", type=local_path, help="folder of images, one sub-folder per class, instead of a data set"
    )
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
    data.add_argument("--cache_dir", type=local_path, help="where decoded images are kept")
    data.add_argument("--dataloader_num_workers", type=int, help="processes that decode; default: every core; 0: none")

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
    args, given = parser.parse_args(input_args), given_flags(parser, input_args)
    makes_sets = "A" in args.protocols
    chooses = makes_sets and args.selection != ["random"]
    only_legacy = set(args.protocols) == {"C"}
    held_out = ("train_split", "test_split", "max_train_samples")
    refuse_idle_flags(
        given,
        [
            (
                args.validation,
                held_out,
                "with `--validation`, where options.json in `--pipeline` says what was held out",
            ),
            (
                "train_data_dir" in given,
                ("dataset_name", "dataset_config_name", "revision"),
                "with `--train_data_dir`",
            ),
            (not makes_sets, ("selection", "latent_steps"), "without the fixed sets of protocol A in `--protocols`"),
            (
                not chooses,
                ("candidates",),
                "without protocol A in `--protocols` and kmeans or herding in `--selection`",
            ),
            (
                not chooses and not (makes_sets and any(args.latent_steps)),
                ("pool", "pool_steps"),
                "without protocol A in `--protocols` and a choice in `--selection` or `--latent_steps` above 0",
            ),
            ("before_matching" not in args.controls, ("before_matching",), "without before_matching in `--controls`"),
            (
                only_legacy,
                ("before_matching", "soft_labels", "without_augmentation", "train_batch_size", "learning_rate")
                + ("mixed_precision",),
                "with protocol C only in `--protocols`",
            ),
            (only_legacy and bool(args.controls), ("controls",), "with protocol C only in `--protocols`"),
            (not args.push_to_hub, ("hub_model_id", "hub_token", "hub_private_repo"), "without `--push_to_hub`"),
        ],
    )
    return args


def check_args(args: argparse.Namespace) -> None:
    """Refuses settings that no pipeline and no data set could make valid."""
    for name in args.classifiers:
        check_classifier(name)
    from_1 = ("ipc", "epochs", "train_batch_size", "candidates", "pool_steps", "max_train_samples")
    from_0 = ("dataloader_num_workers", "latent_steps")
    check_numbers(args, dict.fromkeys(from_1, (1, 2**31)) | dict.fromkeys(from_0, (0, 2**31)) | {"seeds": (0, 2**32)})
    check_once(args, ("ipc", "seeds", "classifiers", "protocols", "selection", "latent_steps", "controls"))
    for name in args.pool:
        try:
            split_entry(name)
        except ValueError as error:
            raise ValueError(f"`--pool`: {error}") from error
    if len(args.epochs) not in (1, len(args.ipc)):
        raise ValueError(
            f"`--epochs` has {len(args.epochs)} numbers, {listed(args.epochs)}, and `--ipc` {len(args.ipc)}, "
            f"{listed(args.ipc)}; valid is one number for all, or one for each ipc in the same order."
        )
    if args.codec and "equal_bytes_lossy" not in args.controls:
        raise ValueError(
            f"`--codec` is {args.codec!r}, that of the control equal_bytes_lossy; `--controls` names "
            f"{', '.join(args.controls) or 'none'}."
        )
    if args.test_split == args.train_split and not args.validation:
        raise ValueError(
            f"`--test_split` is {args.test_split!r}, the split of the real controls; valid is one that nothing is "
            "trained on, or --validation for what training held out."
        )
    if args.push_to_hub:
        check_token(args.hub_token, "`--push_to_hub`", "--hub_token")


def read_training(pipeline: str) -> dict[str, Any]:
    """The options of the run that made a pipeline's folder, to score what it held out."""
    path = Path(pipeline) / "options.json"
    options = read_json(path)
    if options is None:
        raise FileNotFoundError(
            f"`--validation` needs options.json in `--pipeline` {pipeline}, which says what training held out."
        )
    needed = {"train_split", "max_train_samples", "data_fingerprint", "validation_fraction", "seed", "dataset_name"}
    if not isinstance(options, dict) or (needed := needed - options.keys()):
        raise ValueError(
            f"`--validation` needs {path} as train_dim.py writes it; this one lacks {listed(sorted(needed))}."
        )
    return options


def main(args: argparse.Namespace) -> list[Row]:
    # 1. Settings are checked before any work; first what arguments and folders alone can tell.
    check_args(args)
    if not Path(args.pipeline).exists() and not args.output_dir:
        raise FileNotFoundError(
            f"`--pipeline` {args.pipeline} is not a local folder; for a pipeline on the Hub, `--output_dir` must be "
            "given."
        )
    check_pipeline("pipeline", args.pipeline)
    folder = Path(args.pipeline)
    before = args.before_matching or str(folder / "before_matching")
    with_before = "before_matching" in args.controls and (args.before_matching or Path(before).exists())
    if with_before:
        check_pipeline("before_matching", before)
    training = read_training(args.pipeline) if args.validation else None
    output_dir = Path(args.output_dir or folder / "evaluation")
    refuse_foreign_files(output_dir, "evaluate_dim.py")
    # A new evaluation takes the place of an older one.
    check_output_dir(output_dir, 2**20, resuming=True)
    results = output_dir / "results.jsonl"
    read_results(results)
    # Processes wait at the end for the slowest; the usual time-out would lose hours of work.
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=7))]
    )
    if accelerator.is_main_process:
        warn_of_slow_precision(accelerator.mixed_precision, accelerator.device)
    recipes = {
        ipc: DeploymentRecipe(
            epochs, args.train_batch_size, args.learning_rate, mixed_precision=accelerator.mixed_precision
        )
        for ipc, epochs in zip(args.ipc, args.epochs * (len(args.ipc) // len(args.epochs)), strict=True)
    }
    pipeline = load_pipeline("pipeline", args.pipeline)
    pipeline_before = load_pipeline("before_matching", before) if with_before else None
    as_it_was, pipeline = pipeline, stored_form(pipeline, args.storage)
    if pipeline_before:
        pipeline_before = stored_form(pipeline_before, args.storage)
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
            f"`--before_matching` {before} generates {listed(pipeline_before.class_names)}; `--pipeline` {folder} "
            f"generates {listed(pipeline.class_names)}."
        )
    if args.soft_labels and pipeline.labeler is None:
        raise ValueError(
            f"`--soft_labels` takes a teacher, but `--pipeline` {folder} has no `labeler`; training/train_labeler.py "
            "adds one."
        )
    for ipc in args.ipc:
        check_size(ipc, args, pipeline.generator.config.num_classes)
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
        if args.push_to_hub:
            name = args.hub_model_id or (folder.resolve().name if folder.exists() else args.pipeline)
            args.hub_model_id = prepare_repository(name, args.hub_token, args.hub_private_repo or None)
        lock = lock_output_dir(output_dir, "evaluate_dim.py")
    accelerator.wait_for_everyone()

    # 2. One job per row and seed, shared out over the processes. A job that an earlier evaluation has finished in the
    # same folder is not run again.
    sets_recipe = SetsRecipe(args.selection, args.latent_steps, args.candidates, args.pool, args.pool_steps)
    cache_dir = Path(args.cache_dir or default_cache_dir())
    fixed_sets = {
        each: make_fixed_sets(
            sets_recipe,
            each,
            train,
            accelerator,
            output_dir / "fixed",
            ipcs=args.ipc,
            seeds=args.seeds,
            cache_dir=cache_dir,
        )
        for each in (loaded if "A" in args.protocols else [])
    }

    def read_sets(made_by: DiMPipeline | None, ipc: int) -> dict[str, LatentsOf]:
        paths = fixed_sets.get(made_by, {}) if made_by else {}

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
            controls=[name for name in args.controls if name in REAL],
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
    # One classifier more says what a smaller form costs.
    compared = [
        (generated_source(each, args.ipc[0], recipes[args.ipc[0]]), args.classifiers[0], args.ipc[0], args.seeds[0])
        for each in (pipeline, as_it_was.to(accelerator.device))
        if as_it_was is not pipeline
    ]

    def job(source: Source, name: str, ipc: int, seed: int) -> dict[str, Any]:
        """All that decides a result, as JSON values."""
        run = {"classifier": name, "ipc": ipc, "seed": seed, "recipe": asdict(recipes[ipc]), "test": test.fingerprint}
        if content := local_fingerprint(name):
            run["local"] = content
        return source.identity(seed) | run | {"format": EVALUATION_FORMAT}

    if accelerator.is_main_process:
        end_last_line(results)
    accelerator.wait_for_everyone()
    finished, others = read_results(results)
    accelerator.wait_for_everyone()
    if others:
        accelerator.print(
            f"{results} has {others:,} results of a release with other figures; they stay there and are not used."
        )
    # Two rows of the same weights, as before and after matching where matching did not help, are one job.
    wanted: dict[str, tuple[Source, str, int, int]] = {}
    for seed, (source, name, ipc) in itertools.product(args.seeds, rows):
        wanted.setdefault(job_key(job(source, name, ipc, seed)), (source, name, ipc, seed))
    for each in compared:
        wanted.setdefault(job_key(job(*each)), each)
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
        append_json_line(results, result)
        tqdm.write(f"{source.title}, {name}, ipc {ipc}, seed {seed}: {100 * accuracy:.2f} %")
    accelerator.wait_for_everyone()
    finished, _ = read_results(results)

    # 3. The tables, the reports and the picture.
    table = []
    for source, name, ipc in rows:
        own = [finished[job_key(job(source, name, ipc, seed))] for seed in args.seeds]
        table.append(source.row(name, ipc, recipes[ipc], args.seeds[0], own))
    if accelerator.is_main_process:
        if compared:
            stored_accuracy, full = (finished[job_key(job(*each))]["accuracy"] for each in compared)
            about = f"accuracy of {args.classifiers[0]} at ipc {args.ipc[0]}"
            warn_of_storage(args.storage, stored_accuracy, full, about)
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
            training=[
                record
                for record in read_json_lines(folder / "metrics.jsonl")
                if isinstance(record, dict) and isinstance(record.get("step"), int)
            ],
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


def check_size(ipc: int, args: argparse.Namespace, num_classes: int) -> None:
    """Refuses more images than can be kept in memory."""
    check_shuffled(ipc * num_classes)
    per_class = ipc * args.candidates if args.selection != ["random"] else ipc
    for name, images in (("ipc", ipc * num_classes), ("candidates", per_class)):
        if "A" in args.protocols and images > MOST_IN_SET:
            raise ValueError(
                f"`--{name}` {getattr(args, name)} asks for {images:,} images in memory, with `--ipc` {ipc} and "
                f"{num_classes} classes; valid are at most {MOST_IN_SET:,} in a set, or to choose from in a class."
            )


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
            data = load_image_data(
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
        accelerator.print(data.describe())
        return data

    if training:
        train = load(training["train_split"], None, training["max_train_samples"])
    else:
        train = load(args.train_split, None, args.max_train_samples)
    data = "train_data_dir" if args.train_data_dir else "dataset_name"
    names = pipeline.config.id2label
    expected = tuple(names.values()) if names else tuple(str(label) for label in range(config.num_classes))
    if train.class_names != expected:
        raise ValueError(
            f"`--{data}` {args.train_data_dir or args.dataset_name} has the classes {listed(train.class_names)}; the "
            f"pipeline generates {listed(expected)}."
        )
    if training:
        if train.fingerprint != training["data_fingerprint"]:
            raise ValueError(
                f"`--validation` scores what training held out, but `--{data}` "
                f"{args.train_data_dir or args.dataset_name} is not the data that it was trained on, "
                f"{training['dataset_name']} (options.json in `--pipeline`)."
            )
        train, test = holdout(train, training["validation_fraction"], training["seed"])
    else:
        test = load(args.test_split, train.class_names, None)
        if test.fingerprint == train.fingerprint:
            raise ValueError(
                f"`--test_split` {args.test_split} of `--{data}` {args.train_data_dir or args.dataset_name} holds "
                f"the images of `--train_split` {args.train_split}; valid is one that nothing is trained on."
            )
    return train.to(accelerator.device), test.to(accelerator.device)


if __name__ == "__main__":
    run_script(
        "evaluate_dim.py",
        lambda: main(parse_args()),
        "Every classifier that was finished is kept in results.jsonl; the same command goes on.",
    )
