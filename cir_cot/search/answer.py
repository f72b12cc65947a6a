"""What a search found, as an object that JSON, pandas and notebooks show."""

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from cir_cot.errors import InputError
from cir_cot.inputs import open_picture
from cir_cot.prompts import written_parts
from cir_cot.webpage import thumbnail

from .gallery_index import Hit


@dataclass(frozen=True)
class Answer:
    """The result of one query.

    Attributes:
        hits: (image id, score) pairs, best first.
        explanation: the chain, or another explanation of the head; "" when it gives none.
        flag: what went wrong with the chain; "" when nothing did.
        routing: of a head that routes queries through experts, the share of each by name.
        encode_seconds: time to encode the query; of a batch its mean.
        search_seconds: time to search the index; of a batch its mean.
        agreement: how far several chains of the query agree, 0 .. 1; None for one chain.
        rerank: what a second look cost: pictures judged, tokens, seconds; None without one.
        vector: the query's embedding (D,).
        path_of: finds the file of a hit, for a display.
    """

    hits: list[Hit]
    explanation: str
    flag: str
    routing: dict[str, float]
    encode_seconds: float
    search_seconds: float
    agreement: float | None = None
    rerank: dict | None = None
    vector: Tensor | None = field(default=None, repr=False, compare=False)
    path_of: Callable[[str], Path] | None = field(default=None, repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Return the answer as a JSON object."""
        answer: dict[str, Any] = {
            "hits": [{"id": name, "score": round(score, 6)} for name, score in self.hits],
            "explanation": self.explanation,
            "flag": self.flag,
            "seconds": {
                "encode": round(self.encode_seconds, 4),
                "search": round(self.search_seconds, 4),
            },
        }
        # Only heads that route queries have this key.
        if self.routing:
            answer["choices"] = self.routing
        if self.agreement is not None:
            answer["agreement"] = round(self.agreement, 4)
        if self.rerank is not None:
            answer["rerank"] = self.rerank
        return answer

    def to_pandas(self) -> Any:
        """Return the hits as a data frame of rank, id and score; needs pandas."""
        import pandas  # a second when it is first used

        rows = [(rank, *hit) for rank, hit in enumerate(self.hits, 1)]
        return pandas.DataFrame(rows, columns=["rank", "id", "score"])

    def _repr_html_(self) -> str:
        """Return the chain and the hits with their pictures, as a notebook shows them."""
        chain = ""
        for part, text in written_parts(self.explanation).items():
            chain += f"<dt>{part}</dt><dd>{escape(text)}</dd>"
        cells = ""
        for rank, (name, score) in enumerate(self.hits, 1):
            caption = f"{rank}. {escape(name)} ({score:.3f})"
            cells += f"<figure>{self._picture(name)}<figcaption>{caption}</figcaption></figure>"
        flag = f"<p>{escape(self.flag)}</p>" if self.flag else ""
        style = "display: flex; flex-wrap: wrap; gap: 1em"
        return f'<dl>{chain}</dl>{flag}<div style="{style}">{cells}</div>'

    def _picture(self, name: str) -> str:
        """Return the picture of a hit as HTML, "" where its file is not there."""
        if self.path_of is None:
            return ""
        try:
            return thumbnail(open_picture(self.path_of(name)), name)
        except InputError:
            return ""


def status_line(answer: Answer, mode: str, size: int) -> str:
    """Describe an answer in one line: times, flag and routing; `size` is the number of pictures searched."""
    line = f"{mode}: read in {answer.encode_seconds:.2f} s, {size:,} pictures searched in "
    line += f"{1000 * answer.search_seconds:.1f} ms."
    if answer.flag:
        line += f" Note: {answer.flag}."
    if answer.agreement is not None:
        line += f" Its chains agree to {answer.agreement:.0%}."
    # A head that routes queries, then one that explains them otherwise than by a chain.
    if answer.routing:
        used = [f"{name} {share:.0%}" for name, share in answer.routing.items() if share]
        line += " Chosen: " + ", ".join(used)
    elif answer.explanation and not written_parts(answer.explanation):
        line += f" {answer.explanation}"
    return line
