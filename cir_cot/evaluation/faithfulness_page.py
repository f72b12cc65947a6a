"""Tables and the page of `cir-cot faithfulness`."""

from collections.abc import Mapping
from html import escape

from cir_cot.webpage import document, table, zoomable

from .tables import Table

EXPECTED = {"move": "should move", "stay": "should stay", "": ""}


def faithfulness_tables(content: Mapping[str, dict]) -> list[Table]:
    """Return the tables of results.json: edits, composition, attribution, planted words."""
    tables = []
    for name, study in content.items():
        rows = []
        for row in study["edits"]:
            if not row["queries"]:
                rows.append([row["edit"], EXPECTED[row["should"]], 0, *[""] * 6])
                continue
            low, high = row["moved_interval"]
            rows.append(
                [
                    row["edit"],
                    EXPECTED[row["should"]],
                    row["queries"],
                    row["cosine"],
                    row["moved"],
                    f"{low} to {high}",
                    row["found_before"],
                    row["found_after"],
                    f"{row['rank_before']:g} -> {row['rank_after']:g}",
                ]
            )
        header = ["edit", "", "queries", "cosine", "first answer moved %", "95 % interval",
                  "R@1 before", "after", "median rank"]  # fmt: skip
        tables.append(Table(f"{name}: edits", header, rows, EDITS_NOTE))
        gap = study["composition"]
        tables.append(
            Table(f"{name}: R@1 by what is given", list(gap), [list(gap.values())], GAP_NOTE)
        )
        if "attribution" in study:
            parts = study["attribution"]
            title = f"{name}: what the query's vector is made of"
            tables.append(Table(title, list(parts), [list(parts.values())], SHARES_NOTE))
        if "arrivals" in study:
            found = study["arrivals"]
            title = f"{name}: a picture of the swapped attribute added to the gallery"
            tables.append(Table(title, list(found), [list(found.values())], ARRIVALS_NOTE))
        if "planted" in study:
            rows = [[part, *values.values()] for part, values in study["planted"].items()]
            names = list(next(iter(study["planted"].values())))
            title = f"{name}: a wrong word planted"
            tables.append(Table(title, ["section", *names], rows, PLANTED_NOTE))
    return tables


EDITS_NOTE = (
    "Each edit changes one part of the chain that the model wrote, or the picture; the rest stays. Cosine of the "
    "edited query's vector with its own; the interval is a bootstrap over queries."
)
GAP_NOTE = (
    "Right answers at rank 1, in percent: with the chain, with the picture alone, with the text alone, with either of "
    "both; composed: found with the chain and by neither alone."
)
SHARES_NOTE = (
    "Gradient x input of the similarity to the target, the absolute values summed over a part's tokens; the mean over "
    "queries."
)
ARRIVALS_NOTE = (
    "Queries whose first answer is the added picture, in percent: with the edited chain, and with the chain as it was, "
    "which should not lead there."
)
PLANTED_NOTE = (
    "A wrong word in the true chain, after which the model writes on. written: conclusions that say what the word "
    "leads to; left: first answers that are no right ones any more; arrived: of the planted scenes that are in the "
    "gallery, those found first. In percent."
)


def faithfulness_page(studies: Mapping[str, dict]) -> str:
    """Return the page: the tables, and queries with one attribute swapped beside what was found before and after.

    Args:
        studies: by name "content" (see `faithfulness_tables`), "examples" and the "images" they show.
    """
    body = []
    for shown in faithfulness_tables({name: study["content"] for name, study in studies.items()}):
        rows = [[str(value) for value in row] for row in shown.rows]
        body.append(table(shown.title, shown.header, rows, shown.note))
    for name, study in studies.items():
        body.append(f"<h2>{escape(name)}: one attribute of the conclusion swapped</h2>")
        for one in study["examples"]:
            pictures = []
            for key, label in (
                ("reference", "reference"),
                ("first", "found before"),
                ("then", "found after"),
            ):
                picture = zoomable(study["images"].load(one[key]), label)
                pictures.append(f"<figure>{picture}<figcaption>{label}</figcaption></figure>")
            body.append(
                f"<section><p><b>{escape(one['text'])}</b></p><div>{''.join(pictures)}</div>"
                f"<p>{escape(one['before'])}<br>{escape(one['after'])}</p></section>"
            )
    return document("Does the answer follow the chain?", body)
