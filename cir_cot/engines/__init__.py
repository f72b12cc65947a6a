"""Serving engines that write chains for a retriever: vLLM and SGLang."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cir_cot.errors import InputError

if TYPE_CHECKING:
    from cir_cot.retriever import Retriever

LOCAL = "transformers"  # chains are written by the local model


def with_engine(
    retriever: "Retriever", engine: str, urls: Sequence[str] | None, model: str | None
) -> "Retriever":
    """Return the retriever, its chains written by an engine unless that is LOCAL.

    Args:
        retriever: the loaded retriever.
        engine: LOCAL, or a name of `chat_server.ENGINES`.
        urls: servers of the retriever's export.
        model: the name under which they serve it.

    Raises:
        InputError: servers without an engine, or an engine without servers.
    """
    if engine == LOCAL:
        if urls or model:
            raise InputError("--engine-url and --engine-model need --engine vllm or sglang")
        return retriever
    if not urls or not model:
        raise InputError(
            f"--engine {engine} needs --engine-url, such as http://localhost:8000/v1, and --engine-model, the name "
            "under which it serves the export of this retriever"
        )
    from .served import serve_with

    return serve_with(retriever, engine, urls, model)
