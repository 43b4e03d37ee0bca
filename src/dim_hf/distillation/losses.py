"""One function per equation: adversarial, class and matching losses. Every loss is a mean over the batch."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from ..classifiers import logits_and_features


def hinge_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Hinge loss of the discriminator (arXiv 1802.05957, eq. 16). Logits of shape `(batch_size,)`."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def wasserstein_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Critic loss of WGAN without its penalty (arXiv 1704.00028, eq. 3). Logits of shape `(batch_size,)`."""
    return fake_logits.mean() - real_logits.mean()


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """Generator loss that belongs to both (arXiv 1802.05957, eq. 17). Logits of shape `(batch_size,)`."""
    return -fake_logits.mean()


def relativistic_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """
    Relativistic pairing (arXiv 1807.00734, RSGAN): how much more real the i-th real image looks than the i-th
    generated one, which shares its label. It needs R1 and R2 to converge (arXiv 2501.05441). Logits of shape
    `(batch_size,)`.
    """
    return F.softplus(fake_logits - real_logits).mean()


def relativistic_generator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Generator loss that belongs to it (arXiv 1807.00734). Logits of shape `(batch_size,)`."""
    return F.softplus(real_logits - fake_logits).mean()


def gradient_penalty(
    critic: Callable[[torch.Tensor], torch.Tensor],
    real_images: torch.Tensor,
    fake_images: torch.Tensor,
    mix: torch.Tensor,
) -> torch.Tensor:
    """
    WGAN-GP penalty without its factor (arXiv 1704.00028, eq. 3): `(|grad critic(x)| - 1)^2` at random points between
    a real and a generated image.

    Args:
        critic: Maps images to logits of shape `(batch_size,)`.
        mix: Uniform in [0, 1], of shape `(batch_size, 1, 1, 1)`.
    """
    points = torch.lerp(real_images, fake_images.detach(), mix).requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


# Steps between R1 penalties, each of which is that many times as strong (lazy regularisation, arXiv 1912.04958). R2
# is due halfway between them.
R1_INTERVAL = 16


def r1_penalty(critic: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """
    `|grad critic(x)|^2 / 2`, without its factor: the R1 penalty at real images, R2 at generated ones (arXiv
    1801.04406, eq. 9 and 10).
    """
    points = images.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=True)
    return gradient.flatten(1).square().sum(dim=1).mean() / 2


def class_loss(class_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Auxiliary class loss (arXiv 1610.09585, eq. 2): cross-entropy of `(batch_size, num_classes)` logits."""
    return F.cross_entropy(class_logits, labels)


def class_matching_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy of a pool network on the generated images: a classifier trained on real images shall give them their
    own labels. That is [`class_loss`] with a classifier which is better than the discriminator's head, and which the
    generator does not change. Like it, the loss rewards images that are typical of their class.

    Args:
        real_logits, fake_logits (`torch.Tensor` of shape `(batch_size, num_classes)`): A pool network's logits; those
            of real images take no part.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches.
    """
    return F.cross_entropy(fake_logits, labels)


def pairwise_matching_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    The matching loss of DiM's released code (arXiv 2303.04707): squared difference of the log-probabilities of the
    i-th real and the i-th generated image, which share a label and nothing else. It is least when every generated
    image has the mean log-probabilities of its class, so on its own it works against diversity.

    Args:
        real_logits, fake_logits (`torch.Tensor` of shape `(batch_size, num_classes)`): A pool network's logits.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches; the pairing already uses them.
    """
    return F.mse_loss(fake_logits.log_softmax(dim=1), real_logits.log_softmax(dim=1))


def energy_matching_loss(real: torch.Tensor, fake: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Energy distance between the real and the generated logits or features of each class (Szekely and Rizzo, 2013):
    `2 E|r - f| - E|r - r'| - E|f - f'|` over the pairs that share a label, divided by `E|r - r'|` so that networks
    and layers of any scale weigh alike. Its expectation is least, and zero, when the two distributions are equal
    within each class: unlike pairs matched one to one, it rewards diversity.

    A label that occurs once in the batch adds only to the first term, which would favour collapse, so such images are
    left out.

    Args:
        real, fake (`torch.Tensor` of shape `(batch_size, ...)`): Logits, or the outputs of one layer.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches.
    """
    real, fake = real.flatten(1), fake.flatten(1)
    same = labels[:, None] == labels[None, :]
    others = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    partners = others.sum(dim=1)
    # Each image weighs the same, whatever the number of its class in the batch.
    within = others / partners.clamp(min=1)[:, None]
    across = same * (partners > 0)[:, None] / (partners + 1)[:, None]
    real_real = (within * _distances(real, real)).sum()
    fake_fake = (within * _distances(fake, fake)).sum()
    real_fake = (across * _distances(real, fake)).sum()
    return (2 * real_fake - real_real - fake_fake) / real_real.detach().clamp(min=1e-6)


def energy_probability_matching_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """
    [`energy_matching_loss`] of the softmax probabilities. The distance between logits is mostly that between images
    which the network is sure of; that between probabilities tells whether as many generated as real images lie near
    a border between classes.

    Args:
        real_logits, fake_logits (`torch.Tensor` of shape `(batch_size, num_classes)`): A pool network's logits.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches.
    """
    return energy_matching_loss(real_logits.softmax(dim=1), fake_logits.softmax(dim=1), labels)


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    # By products, not differences: those of features would take batch_size^2 times their memory. The constant keeps
    # the gradient finite where two rows are equal, as on the diagonal.
    squares = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)[None, :] - 2 * first @ second.T
    return (squares.clamp(min=0) + 1e-8).sqrt()


def standardised_matching_loss(
    real_logits: torch.Tensor, fake_logits: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """
    Kullback-Leibler divergence `KL(real || fake)` between the softmax of the i-th real and that of the i-th generated
    image, whose logits are standardised first to mean 0 and standard deviation 1 over the classes (arXiv 2501.04202;
    the standardisation is that of arXiv 2403.01427). What counts is how the classes relate, not how sure the network
    is. Like the other pairwise loss it is least when every generated image has its class's mean probabilities.

    Args:
        real_logits, fake_logits (`torch.Tensor` of shape `(batch_size, num_classes)`): A pool network's logits.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches; the pairing already uses them.
    """
    real, fake = (
        ((logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)).log_softmax(dim=1)
        for logits in (real_logits, fake_logits)
    )
    return F.kl_div(fake, real, reduction="batchmean", log_target=True)


def class_mean_matching_loss(
    real_features: torch.Tensor, fake_features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """
    Squared distance between the mean real and the mean generated features of each class (arXiv 2404.17732), over the
    mean squared length of the real features, so that layers of any scale and size weigh alike.

    The distance of the two means of a batch also counts how widely the generated images of a class are spread, which
    would favour collapse. It is estimated without that bias: `E r.r' + E f.f' - 2 E r.f` over the pairs of different
    images that share a label, which can be below 0. An image whose label occurs once in the batch takes no part.

    Args:
        real_features, fake_features (`torch.Tensor` of shape `(batch_size, ...)`): The outputs of one layer.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches.
    """
    real, fake = real_features.flatten(1), fake_features.flatten(1)
    others = (labels[:, None] == labels[None, :]).fill_diagonal_(False)
    within = others / others.sum(dim=1).clamp(min=1)[:, None]
    products = real @ real.T + fake @ fake.T - real @ fake.T - fake @ real.T
    taking_part = others.any(dim=1)
    scale = (real.detach().square().sum(dim=1) * taking_part).sum()
    return (within * products).sum() / scale.clamp(min=1e-6)


def sample_matching_loss(
    real_features: torch.Tensor, fake_features: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """
    Squared distance between the features of the i-th real and the i-th generated image, which share a label (arXiv
    2404.17732), over the mean squared length of the real features. Like [`pairwise_matching_loss`], it is least when
    every generated image has the mean features of its class.

    Args:
        real_features, fake_features (`torch.Tensor` of shape `(batch_size, ...)`): The outputs of one layer.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches; the pairing already uses them.
    """
    return (fake_features - real_features).square().sum() / real_features.detach().square().sum().clamp(min=1e-6)


LogitsOrFeaturesLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# Of the logits, and of the outputs of several layers, over which the loss is averaged.
LOGIT_LOSSES: dict[str, LogitsOrFeaturesLoss] = {
    "class": class_matching_loss,
    "pairwise": pairwise_matching_loss,
    "energy": energy_matching_loss,
    "energy_probabilities": energy_probability_matching_loss,
    "standardised": standardised_matching_loss,
}
FEATURE_LOSSES: dict[str, LogitsOrFeaturesLoss] = {
    "features": class_mean_matching_loss,
    "energy_features": energy_matching_loss,
    "sample_features": sample_matching_loss,
}


def matching_loss(
    weights: dict[str, float],
    classifier: nn.Module,
    real_images: torch.Tensor,
    fake_images: torch.Tensor,
    labels: torch.Tensor,
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda values: values,
) -> torch.Tensor:
    """
    Matching loss of one pool network on a real and a generated batch of the same labels.

    Args:
        weights (`dict[str, float]`): Factors of `"class"`, `"pairwise"` (the paper's), `"energy"`,
            `"energy_probabilities"` and `"standardised"`, which compare logits, and of `"features"`,
            `"energy_features"` and `"sample_features"`, which compare what the classifier's `feature_layers` give.
        classifier: Maps images in [-1, 1] to logits of shape `(batch_size, num_classes)`; its weights get no gradient.
        real_images, fake_images (`torch.Tensor` of shape `(batch_size, channels, size, size)`):
            In [-1, 1], both under one shared augmentation.
        labels (`torch.Tensor` of shape `(batch_size,)`): The labels of both batches.
        gather: Brings the outputs of all processes together, over which the loss is computed.
    """
    forward = logits_and_features if weights.keys() & FEATURE_LOSSES.keys() else lambda c, images: (c(images), {})
    with torch.no_grad():
        real_logits, real_features = forward(classifier, real_images)
    fake_logits, fake_features = forward(classifier, fake_images)
    total = torch.zeros((), device=labels.device)
    # Distances are small differences of large products, which bfloat16 would drown.
    with torch.autocast(labels.device.type, enabled=False):
        labels = gather(labels)
        real_logits, fake_logits = gather(real_logits.float()), gather(fake_logits.float())
        features = [
            (gather(real_features[layer].float()), gather(fake_features[layer].float())) for layer in fake_features
        ]
        for name, weight in weights.items():
            if name in LOGIT_LOSSES:
                loss = LOGIT_LOSSES[name](real_logits, fake_logits, labels)
            else:
                layers = [FEATURE_LOSSES[name](real, fake, labels) for real, fake in features]
                loss = torch.stack(layers).mean()
            total = total + weight * loss
    return total
