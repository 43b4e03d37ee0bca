"""Names of the rows of an evaluation. This module loads no library, so that `--help` answers at once."""

PROTOCOLS = {
    "A": "Protocol A: a fixed set of ipc images per class, made once, the same in every epoch.",
    "B": "Protocol B: ipc fresh images per class and epoch.",
    "C": "Protocol C, legacy: the deployment of DiM's released code, the best of five evaluations on the test images "
    "and batch norm in training mode; for comparison with its own figures only.",
}
# Protocols whose rows are trained alike and compared with the same controls, see `protocols.py`.
COMPARED = ("A", "B")
# How the images of a fixed set are chosen, see `fixed_sets.py`.
SELECTIONS = ("random", "kmeans", "herding")
GENERATED, BEFORE_MATCHING = "generated images", "generated, before matching"
# Controls of protocols A and B on real images, see `controls.py`.
REAL = {
    "streamed": "real images, streamed",
    "random": "real subset of ipc per class",
    "equal_bytes": "real subset of equal bytes",
    "equal_bytes_lossy": "real subset of equal bytes, best codec",
    "whole": "real images, the whole set",
}
