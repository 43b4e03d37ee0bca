"""The arguments of `audit_dim.py`. This module loads no library, so that `--help` answers at once."""

import argparse

from command_line import (
    Parser,
    add_data_arguments,
    add_hub_arguments,
    add_pipeline_argument,
    given_flags,
    idle_data_flags,
    local_path,
    positive_float,
    positive_int,
    refuse_idle_flags,
    seed,
    whole_number,
)

from dim_hf.audit.names import TESTS


def make_parser() -> Parser:
    parser = Parser("Measure what a distilled data set gives away of the images that it was trained on.")
    add_pipeline_argument(parser)
    parser.add_argument("--output_dir", type=local_path, help="default: audit/ in --pipeline")
    parser.add_argument(
        "--tests",
        nargs="+",
        choices=TESTS,
        default=list(TESTS),
        help="copies: nearest images; membership: shadow runs of the whole training, which needs its options.json",
    )
    parser.add_argument(
        "--budget",
        type=positive_float,
        default=60.0,
        help="minutes of one process for membership: chooses the number of shadow runs and their steps",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of halves, canaries, noise and classifiers")

    data = parser.add_argument_group("data")
    add_data_arguments(
        data, "train", "what the pipeline was trained on; options.json in --pipeline decides if it is there"
    )
    data.add_argument("--test_split", default="test", help="images that it was not trained on")
    data.add_argument(
        "--max_train_samples",
        type=positive_int,
        help="number of images, stratified, that it was trained on; as --train_split",
    )
    data.add_argument(
        "--validation",
        action="store_true",
        help="instead of the test split, compare with the part of train that training held out",
    )

    effort = parser.add_argument_group("effort")
    effort.add_argument("--samples", type=whole_number(2), default=200, help="generated images per class")
    effort.add_argument(
        "--candidates",
        type=whole_number(10),
        default=1000,
        help="training images that are attacked, and as many others",
    )
    effort.add_argument("--classifier", default="convnet3", help="trained on generated images; also gives features")
    effort.add_argument("--epochs", type=positive_int, default=100, help="of that classifier, of 10 images per class")
    effort.add_argument("--inversion_steps", type=positive_int, default=50, help="steps of optimising each latent")

    hub = parser.add_argument_group("Hugging Face Hub")
    hub.add_argument(
        "--export_dir", type=local_path, help="folder to write what --push_to_hub uploads, with the audit on its card"
    )
    add_hub_arguments(
        hub, "the pipeline, with the audit on its card", "hub_model_id", "--pipeline, or the name of its folder"
    )
    return parser


def parse_args(input_args: list[str] | None = None) -> argparse.Namespace:
    """
    Raises:
        SystemExit: If an argument is not valid, with status 2 after a message, as argparse has it.
        ValueError: If one has no effect beside the others.
    """
    parser = make_parser()
    args, given = parser.parse_args(input_args), given_flags(parser, input_args)
    args.given = given
    refuse_idle_flags(
        given,
        [
            idle_data_flags(given),
            (
                "membership" not in args.tests,
                ("budget", "candidates", "inversion_steps"),
                "without membership in `--tests`",
            ),
            (args.validation, ("test_split",), "with `--validation`"),
            (not args.push_to_hub, ("hub_model_id", "hub_token", "hub_private_repo"), "without `--push_to_hub`"),
        ],
    )
    return args
