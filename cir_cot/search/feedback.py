"""Move a query towards pictures that a person likes and away from others, by Rocchio's rule."""

import torch
from torch.nn import functional

# Weights of the mean of either kind beside the query's 1: Manning, Raghavan and Schütze, Introduction to Information
# Retrieval (2008), section 9.1.1.
LIKED = 0.75
DISLIKED = 0.15


def moved(query: torch.Tensor, liked: torch.Tensor, disliked: torch.Tensor) -> torch.Tensor:
    """Return the query's vector (D,), of length 1, after a person has judged pictures.

    Args:
        query: (D,), of length 1.
        liked: (L, D), pictures that the wanted one resembles; L may be 0.
        disliked: (M, D), pictures that it does not resemble; M may be 0.
    """
    query = query.float()
    if len(liked):
        query = query + LIKED * liked.float().mean(0)
    if len(disliked):
        query = query - DISLIKED * disliked.float().mean(0)
    return functional.normalize(query, dim=0)
