"""Count operations and bytes of a model at any published size."""
