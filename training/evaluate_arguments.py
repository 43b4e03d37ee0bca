"""The arguments of evaluate_dim.py. This module loads no library, so that `--help` answers at once."""

import argparse

from command_line import HelpWithDefaults, given_flags, local_path, refuse_idle_flags

from dim_hf.distillation.pool import PoolRecipe
from dim_hf.evaluation.codecs import CODECS
from dim_hf.evaluation.judges import DeploymentRecipe
from dim_hf.evaluation.names import PROTOCOLS, REAL, SELECTIONS
from dim_hf.models.generator_dim import STORAGE_FORMS


CONTROLS = ("before_matching", *REAL)


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
    protocol.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=["B"])
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
