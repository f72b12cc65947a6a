"""Run the cells of a notebook as a kernel would, and keep what they show."""

import ast
import base64
import contextlib
import io
from typing import Any

TEXT = "text/plain"


def run_cells(notebook: dict) -> dict[str, Any]:
    """Run all code cells in order in one session, and write their outputs into the notebook.

    Returns:
        The names that the session has at its end.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    for cell in notebook["cells"]:
        if cell["cell_type"] != "code":
            continue
        count += 1
        cell["execution_count"] = count
        cell["outputs"] = _run("".join(cell["source"]), f"cell {count}", names, count)
    return names


def _run(source: str, where: str, names: dict[str, Any], count: int) -> list[dict]:
    """Run a cell; its last expression is shown, as in a notebook."""
    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs: list[dict] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": text})
    if value is not None:
        shown = {"output_type": "execute_result", "metadata": {}, "execution_count": count}
        outputs.append(shown | {"data": _forms(value)})
    return outputs


def _forms(value: object) -> dict[str, Any]:
    """Return a value in the forms that a notebook shows: HTML, PNG, text."""
    forms: dict[str, Any] = {}
    html = getattr(value, "_repr_html_", None)
    if html is not None:
        forms["text/html"] = html().splitlines(True)
    png = getattr(value, "_repr_png_", None)
    if png is not None:
        forms["image/png"] = base64.b64encode(png()).decode()
    text = type(value).__name__ if forms else repr(value)
    return forms | {TEXT: [text]}
