"""Train any head: arguments, data loading, the trainer, gradient caching and checkpoints."""
