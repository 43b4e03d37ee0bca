"""What a training run is made of: losses, the matching pool, augmentation, averages, interruption, checkpoints."""
