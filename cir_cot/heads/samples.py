"""Several chains a query: the mean of the unit vectors of the likeliest chain and of drawn ones.

A chain is one guess of what is meant. The mean over several costs as many times the tokens, and how far they agree says
how sure the model is: the length of the mean of unit vectors is 1 where all point alike, less where they do not.
"""

import hashlib
from collections.abc import Iterator, Sequence

import torch
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from cir_cot.errors import InputError
from cir_cot.records import Cot
from cir_cot.retriever import QueryOutput, Retriever, inference

from .cot import CotRetriever
from .sampling import Sampling

MOST = 64  # chains a query


class SampledReader:
    """Retriever that reads each query with several chains; everything else is that of a chain head.

    Args:
        local: the chain head.
        samples: K, the likeliest chain and K - 1 drawn ones.
        temperature: of the drawn ones.
        seed: of the draws, which depend on it and on the query alone.

    Example:
        output = SampledReader(load_retriever("runs/model"), samples=4).encode_query([image], ["but red"])
        output.agreement  # [0.97]
    """

    def __init__(self, local: CotRetriever, samples: int, temperature: float = 0.7, seed: int = 0):
        if not 1 <= samples <= MOST:
            raise InputError(f"samples {samples} is outside 1 .. {MOST}")
        self.local = local
        self.samples = samples
        self.temperature = temperature
        self.seed = seed
        self.dim = local.dim
        self.depth = local.depth
        self.readings = local.readings
        self.reading = local.reading
        Sampling(temperature, [])  # refuses a bad temperature now

    @property
    def batch_size(self) -> int:
        """Return the most rows of a batch."""
        return self.local.batch_size

    @batch_size.setter
    def batch_size(self, rows: int) -> None:
        self.local.batch_size = rows

    def conditions(self) -> dict:
        """Return what numbers depend on beside the weights: the head's, and how chains are drawn."""
        drawn = {"samples": self.samples, "temperature": self.temperature}
        return {**self.local.conditions(), **drawn, "sampling_seed": self.seed}

    def encode_target(self, images: Sequence[Image]) -> Tensor:
        """Encode N candidate images -> (N, D)."""
        with inference(self.local):
            return self.local.encode_target(images)

    def embed_with(
        self, images: Sequence[Image], texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput:
        """Encode B composed queries with supplied chains."""
        with inference(self.local):
            return self.local.embed_with(images, texts, chains)

    def stream(
        self, images: Sequence[Image], texts: Sequence[str], reading: str | None = None
    ) -> Iterator[QueryOutput]:
        """Yield the likeliest chain as it grows, and finally the output of all chains."""
        with inference(self.local):
            yield from self.local.stream(images, texts, reading or self.reading)
        yield self.encode_query(images, texts, reading)

    def encode_query(
        self, images: Sequence[Image], texts: Sequence[str], reading: str | None = None
    ) -> QueryOutput:
        """Encode B composed queries; explanations and flags are those of the likeliest chains."""
        reading = reading or self.reading
        with inference(self.local):
            first = self.local.encode_query(images, texts, reading)
            vectors = [first.embeddings]
            # Without a chain there is nothing to draw.
            for number in range(1, self.samples if reading != "fast" else 1):
                seeds = [self._seed_of(*query, number) for query in zip(images, texts, strict=True)]
                drawn = Sampling(self.temperature, seeds)
                vectors.append(self.local.sample_query(images, texts, drawn, reading).embeddings)
        mean = torch.stack(vectors).mean(dim=0)  # (B, D)
        agreement = mean.norm(dim=-1).tolist()
        unit = functional.normalize(mean, dim=-1)
        return QueryOutput(unit, first.explanations, first.flags, [], agreement)

    def _seed_of(self, image: Image, text: str, number: int) -> int:
        """Return a number of 63 bits that depends on the query, the draw and the seed."""
        digest = hashlib.blake2b(digest_size=8)
        for part in (text.encode(), image.tobytes(), f"{image.size} {number} {self.seed}".encode()):
            digest.update(len(part).to_bytes(8))
            digest.update(part)
        return int.from_bytes(digest.digest()) >> 1


def with_samples(
    retriever: Retriever, samples: int, temperature: float, seed: int = 0
) -> Retriever:
    """Return the retriever, reading each query with several chains unless `samples` is 1."""
    if samples == 1:
        return retriever
    if not isinstance(retriever, CotRetriever):
        raise InputError(
            f"--samples {samples}: this retriever draws no chains itself; leave it out"
        )
    return SampledReader(retriever, samples, temperature, seed)
