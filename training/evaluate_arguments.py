"""The arguments of `evaluate_dim.py`. This module loads no library, so that `--help` answers at once."""

import argparse

from command_line import (
    Parser,
    add_data_arguments,
    add_hub_arguments,
    add_pipeline_argument,
    below_one,
    given_flags,
    idle_data_flags,
    local_path,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_idle_flags,
    seed,
)

from dim_hf.choices import STORAGE_FORMS
from dim_hf.distillation.pool_recipe import PoolEntry, PoolRecipe, pool_entry
from dim_hf.evaluation.names import COMPARED, PROTOCOLS, REAL, SELECTIONS
from dim_hf.evaluation.recipe import LEGACY_BATCH_SIZE, DeploymentRecipe


CONTROLS = ("before_matching", *REAL)


def make_parser() -> Parser:
    parser = Parser("Train classifiers on a distilled data set and score them on real test images.")
    add_pipeline_argument(parser)
    parser.add_argument(
        "--before_matching", type=local_path, help="pipeline of that control; default: before_matching/ in --pipeline"
    )
    parser.add_argument("--output_dir", type=local_path, help="default: evaluation/ in --pipeline")
    parser.add_argument(
        "--storage",
        choices=STORAGE_FORMS,
        help="score and push the weights in this form; default: as they are stored",
    )
    parser.add_argument(
        "--export_dir",
        type=local_path,
        help="folder to write what --push_to_hub uploads, with the results on its card",
    )

    data = parser.add_argument_group("data")
    add_data_arguments(data, "train", "where the real controls come from")
    data.add_argument("--test_split", default="test", help="what classifiers are scored on")
    data.add_argument("--max_train_samples", type=positive_int, help="take real controls from this many, stratified")
    data.add_argument(
        "--validation",
        action="store_true",
        help="score the part of train that training held out, as options.json in --pipeline says, not the test split",
    )

    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--protocols",
        nargs="+",
        choices=PROTOCOLS,
        default=["B"],
        help=" ".join(PROTOCOLS.values()),
    )
    protocol.add_argument(
        "--ipc", type=positive_int, nargs="+", default=[10], help="images per class: and epoch (B, C), once (A)"
    )
    protocol.add_argument(
        "--classifiers",
        nargs="+",
        default=["convnet3", "resnet18"],
        metavar="CLASSIFIER",
        help="any of convnet3, resnet10, resnet18, resnet10_ap, resnet18_ap, timm/NAME, transformers/NAME",
    )
    protocol.add_argument("--seeds", type=seed, nargs="+", default=[0, 1, 2], help="of classifiers and of noise")
    # The search for a codec takes almost four trainings of its own.
    usual = [name for name in CONTROLS if name != "equal_bytes_lossy"]
    protocol.add_argument(
        "--controls", nargs="*", choices=CONTROLS, default=usual, help="what results are compared with"
    )
    protocol.add_argument(
        "--codec",
        help="codec of the images of equal_bytes_lossy, such as 'AVIF quality 35'; default: a search for the best",
    )
    protocol.add_argument("--soft_labels", action="store_true", help="more rows, with the labels of its `labeler`")
    protocol.add_argument(
        "--without_augmentation", action="store_true", help="also train without random shifts; ARS needs these rows"
    )
    protocol.add_argument(
        "--epochs",
        type=positive_int,
        nargs="+",
        default=[DeploymentRecipe.epochs],
        help="one for all, or one for each ipc",
    )
    protocol.add_argument(
        "--train_batch_size",
        type=positive_int,
        help=f"images per step; default: {DeploymentRecipe.batch_size}, in protocol C {LEGACY_BATCH_SIZE}. A "
        "batch of C of as many images as there are classes has one of each",
    )
    protocol.add_argument(
        "--learning_rate",
        type=positive_float,
        default=DeploymentRecipe.learning_rate,
        help="the largest of the one-cycle schedule",
    )
    protocol.add_argument(
        "--mixed_precision",
        choices=["no", "bf16"],
        help="default: accelerate's configuration, or bf16 on a CPU that has AMX or AVX512-BF16",
    )

    draws = parser.add_argument_group(
        "draws of images (protocol B)",
        "Each combination is a row. Choose among several with --validation; on a test split, only one besides the "
        "usual draw is scored.",
    )
    draws.add_argument("--noise_scale", type=positive_float, nargs="+", default=[1.0], help="factor of the latents")
    draws.add_argument(
        "--max_attempts",
        type=positive_int,
        nargs="+",
        default=[1],
        help="draws of an image that the `labeler` takes for another class; 1: no filter",
    )
    draws.add_argument(
        "--min_confidence",
        type=below_one,
        nargs="+",
        default=[0.0],
        help="draw again, too, where the `labeler` gives the class less than this probability",
    )
    draws.add_argument(
        "--choose_from",
        type=positive_int,
        nargs="+",
        default=[1],
        help="draw this many times as many, and keep those that cover best in the features of the `labeler`; 1: no "
        "choice",
    )

    fixed = parser.add_argument_group("fixed sets (protocol A)")
    fixed.add_argument("--selection", nargs="+", choices=SELECTIONS, default=["random"], help="each is a row")
    fixed.add_argument(
        "--candidates", type=positive_int, default=100, help="images drawn for each one that k-means or herding keeps"
    )
    fixed.add_argument(
        "--latent_steps",
        type=non_negative_int,
        nargs="+",
        default=[0],
        help="steps of optimising the latents after the choice; each number is a row of each selection",
    )
    fixed.add_argument(
        "--pool",
        type=pool_argument,
        nargs="+",
        default=[PoolEntry("convnet3")],
        metavar="CLASSIFIER",
        help="networks that latents are optimised for; k-means and herding use the features of the last one; "
        "default: convnet3",
    )
    fixed.add_argument("--pool_steps", type=positive_int, default=PoolRecipe.steps, help="training steps of each")

    hub = parser.add_argument_group("Hugging Face Hub")
    add_hub_arguments(
        hub, "the pipeline, with the results on its card", "hub_model_id", "--pipeline, or the name of its folder"
    )
    return parser


def pool_argument(text: str) -> PoolEntry:
    """The type of an argument that takes entries of a pool."""
    try:
        return pool_entry(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    """
    The arguments; `pool` is a list of [`PoolEntry`].

    Raises:
        SystemExit: If one is not valid, with status 2 after a message, as argparse has it.
        ValueError: If one has no effect beside the others.
    """
    parser = make_parser()
    args, given = parser.parse_args(input_args), given_flags(parser, input_args)
    makes_sets = "A" in args.protocols
    chooses = makes_sets and args.selection != ["random"]
    compares = not {*COMPARED}.isdisjoint(args.protocols)
    without = f"without protocol {' or '.join(COMPARED)} in `--protocols`"
    held_out = ("train_split", "test_split", "max_train_samples")
    refuse_idle_flags(
        given,
        [
            (
                args.validation,
                held_out,
                "with `--validation`, where options.json in `--pipeline` says what was held out",
            ),
            idle_data_flags(given),
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
            (
                "B" not in args.protocols,
                ("noise_scale", "max_attempts", "min_confidence", "choose_from"),
                "without protocol B",
            ),
            (max(args.max_attempts) == 1, ("min_confidence",), "without `--max_attempts` above 1"),
            ("before_matching" not in args.controls, ("before_matching",), "without before_matching in `--controls`"),
            (
                not compares,
                ("before_matching", "soft_labels", "without_augmentation", "learning_rate", "mixed_precision"),
                without,
            ),
            (
                not compares and bool({*args.controls} - {"streamed"}),
                ("controls",),
                f"for names other than streamed {without}",
            ),
            (not args.push_to_hub, ("hub_model_id", "hub_token", "hub_private_repo"), "without `--push_to_hub`"),
        ],
    )
    return args
