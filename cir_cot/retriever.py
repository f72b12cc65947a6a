"""The Retriever protocol that every head implements, and the on-disk format of a saved retriever."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from PIL import Image
from torch import Tensor

from .errors import InputError
from .files import read_json
from .prompts import PARTS, PROMPTS_VERSION, text_to_cot
from .records import Cot

# Version of retriever.json.
FORMAT = 1
SETTINGS_FILE = "retriever.json"
HEAD_FILE = "head.safetensors"


class Flag(str):
    """Warning about a generated chain: a text, as it is printed and stored, with its kind.

    An empty flag means that there is nothing to report.

    Attributes:
        kind: "missing_token" if a section was cut at its token budget, so that the model never got to write the
            retrieval token itself; "forced_form" if a token or a tag was forced to keep the chain valid.
    """

    __slots__ = ("kind",)
    kind: Literal["", "missing_token", "forced_form"]

    def __new__(cls, kind: Literal["", "missing_token", "forced_form"], text: str) -> Self:
        """Return a flag that prints as `text`."""
        flag = super().__new__(cls, text)
        flag.kind = kind
        return flag

    def __getnewargs__(self) -> tuple[str, str]:  # type: ignore[override]  # str has one, a flag two
        return self.kind, str(self)


@dataclass(frozen=True)
class QueryOutput:
    """Embeddings of composed queries, with an explanation and a flag for each.

    Attributes:
        embeddings: query embeddings (B, D), float32 and unit.
        explanations: B texts: generated chains, or what a head says about its choice; "" for none.
        flags: B warnings, "" where there is nothing to report; an empty list means none at all.
        routing: of a head that routes each query through some of its modules, each module's share of the row by
            name. The shares of a row sum to 1; a module that was not chosen has 0. Empty for other heads.
        agreement: of queries that were read with several chains, how far their vectors agree, 0 .. 1; else empty.
    """

    embeddings: Tensor
    explanations: list[str]
    flags: list[str] = field(default_factory=list)
    routing: list[dict[str, float]] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)

    @property
    def chains(self) -> list[Cot | None]:
        """Return the explanations as chains, None for one that is none or is incomplete."""
        return [text_to_cot(text) for text in self.explanations]


def concatenate_outputs(parts: Sequence[QueryOutput], dim: int = 0) -> QueryOutput:
    """Join the outputs of several batches; without any, the embeddings are (0, dim)."""
    embeddings = [torch.zeros(0, dim)] if not parts else []
    explanations: list[str] = []
    flags: list[str] = []
    routing: list[dict[str, float]] = []
    agreement: list[float] = []
    for part in parts:
        embeddings.append(part.embeddings.float().cpu())
        explanations += part.explanations
        # A batch without flags has nothing to report.
        flags += part.flags or [""] * len(part.explanations)
        routing += part.routing
        agreement += part.agreement
    return QueryOutput(torch.cat(embeddings), explanations, flags, routing, agreement)


def in_order(
    batches: Sequence[Sequence[int]], outputs: Sequence[QueryOutput], dim: int = 0
) -> QueryOutput:
    """Join the outputs of batches of rows in the order of the rows' numbers.

    Args:
        batches: numbers of the rows of each batch; together 0 to B - 1, each once.
        outputs: the output of each batch.
        dim: D, for no rows at all.
    """
    joined = concatenate_outputs(outputs, dim)
    places = [0] * len(joined.explanations)
    for place, row in enumerate(row for batch in batches for row in batch):
        places[row] = place
    return QueryOutput(
        joined.embeddings[places],
        [joined.explanations[place] for place in places],
        [joined.flags[place] for place in places],
        [joined.routing[place] for place in places] if joined.routing else [],
        [joined.agreement[place] for place in places] if joined.agreement else [],
    )


class Retriever(Protocol):
    """Encoder of queries and images into one space: all that evaluation, indexes, submission and demo use.

    Example:
        query = retriever.encode_query([image], ["the same, but red"])
        scores = query.embeddings @ retriever.encode_target(gallery).T  # (1, N)
    """

    dim: int

    def encode_query(self, images: Sequence[Image.Image], texts: Sequence[str]) -> QueryOutput:
        """Encode B composed queries, each a reference image and a modification text."""
        ...

    def encode_target(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode N candidate images -> (N, D), float32 and unit, in the space of the queries."""
        ...


@runtime_checkable
class ChainReader(Retriever, Protocol):
    """Retriever that encodes a query with a chain of thought, generated or supplied.

    Attributes:
        reading: the reading that is used when none is asked for.
        readings: names of the readings that `encode_query` offers, see READINGS.
    """

    reading: str
    readings: Sequence[str]

    def encode_query(
        self, images: Sequence[Image.Image], texts: Sequence[str], reading: str | None = None
    ) -> QueryOutput:
        """Encode B composed queries by one of `readings`, by default `reading`."""
        ...

    def embed_with(
        self, images: Sequence[Image.Image], texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput:
        """Encode B composed queries with supplied chains instead of generated ones."""
        ...

    def stream(
        self, images: Sequence[Image.Image], texts: Sequence[str], reading: str | None = None
    ) -> Iterator[QueryOutput]:
        """Encode B composed queries, yielding the chains generated so far; the last output is complete."""
        ...


class Judgement(NamedTuple):
    """What a reranker says of the K candidates of a query.

    Attributes:
        scores: (K,) float32, logit of yes minus logit of no.
        tokens: tokens that were read, those of the query once.
    """

    scores: Tensor
    tokens: int


class Judge(Protocol):
    """Reranker: it looks at a query together with each candidate picture."""

    def judge(
        self,
        reference: Image.Image,
        text: str,
        chain: Cot | None,
        candidates: Sequence[Image.Image],
    ) -> Judgement:
        """Judge whether each of K candidates is what a query asks for."""
        ...


@dataclass(frozen=True)
class Reading:
    """One way to encode queries, listed in READINGS.

    Attributes:
        name: as commands and results spell it.
        parts: sections of the chain that the model generates before the retrieval token.
        needs_chains: whether the records must bring chains of their own.
        baseline: whether it leaves out one half of the query; any retriever can do that.
    """

    name: str
    parts: tuple[str, ...] = ()
    needs_chains: bool = False
    baseline: bool = False

    @property
    def by_head(self) -> bool:
        """Whether a ChainReader offers it as an argument of `encode_query`."""
        return not (self.needs_chains or self.baseline)


_READINGS = (
    # The model generates the chain, its conclusion alone, or a chain only where it is unsure without one.
    Reading("full", parts=PARTS),
    Reading("short", parts=("conclusion",)),
    Reading("adaptive", parts=PARTS),
    # The retrieval token follows the prompt at once.
    Reading("fast"),
    # The annotated chain is encoded: an upper bound, because the annotator may have seen the target.
    Reading("oracle", needs_chains=True),
    # Baselines: what the reference image alone, or the text alone, would find.
    Reading("image_only", baseline=True),
    Reading("text_only", baseline=True),
)
# By name, in the order in which commands list them.
READINGS = {reading.name: reading for reading in _READINGS}
# What a ChainReader offers.
CHAIN_READINGS = tuple(reading.name for reading in _READINGS if reading.by_head)


_SETTING_TYPES: dict[str, type] = {
    "format": int,
    "kind": str,
    "backbone": str,
    "dim": int,
    "prompts": str,
    "settings": dict,
}


def read_settings(folder: str | Path) -> dict:
    """Return retriever.json of a saved folder.

    Raises:
        InputError: the folder holds no retriever, an unfinished one, or one of another format or prompt version.
    """
    path = Path(folder) / SETTINGS_FILE
    if not path.exists():
        raise InputError(f"{folder}: no {SETTINGS_FILE} here; give the folder that training wrote")
    settings = read_json(path)
    # Types of all required entries. `frozen` is optional: older folders lack it.
    for key, kind in _SETTING_TYPES.items():
        if not isinstance(settings, dict) or type(settings.get(key)) is not kind:
            raise InputError(
                f"{path}: {key!r} is missing or no {kind.__name__}; save the retriever again"
            )
    assert isinstance(settings, dict)
    if type(settings.get("frozen", False)) is not bool:
        raise InputError(
            f"{path}: 'frozen' is {settings['frozen']!r}, neither true nor false; save the retriever again"
        )
    # Versions that this code can read.
    if settings["format"] != FORMAT:
        raise InputError(
            f"{path}: format {settings['format']}, this version reads {FORMAT}; use the version that wrote it"
        )
    if settings["prompts"] != PROMPTS_VERSION:
        raise InputError(
            f"{path}: trained with prompts {settings['prompts']!r}, this version writes {PROMPTS_VERSION!r}; "
            "use the version that trained it, or train again"
        )
    return settings


@contextmanager
def inference(retriever: Retriever | Judge) -> Iterator[None]:
    """Turn off gradients and dropout; afterwards each module is back in its mode, training or not."""
    # Any other retriever has no modes to switch.
    modes: dict[torch.nn.Module, bool] = {}
    if isinstance(retriever, torch.nn.Module):
        modes = {module: module.training for module in retriever.modules()}
    # Set the flag itself: `eval` of a module may be overridden.
    for module in modes:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
