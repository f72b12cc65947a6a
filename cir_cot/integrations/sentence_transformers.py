"""Write an export in the form that sentence-transformers loads: a few JSON files beside the checkpoint, without code.

`SentenceTransformer(folder)` then encodes a picture as a target, and {"image": picture, "text": text} as a query
without a chain. The files name classes of sentence-transformers only: version 6 imports any other class, of an
installed package too, only behind a flag that trusts the folder with everything. The prompts become a chat template of
their own. The checkpoint's template, tokenizer and weights stay as they are, and only the projection is copied.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from cir_cot.files import write_text_atomic
from cir_cot.prompts import QUERY, RET, TARGET
from cir_cot.records import Cot
from cir_cot.retriever import QueryOutput

if TYPE_CHECKING:
    from cir_cot.models.backbone import Backbone
    from cir_cot.models.chat import ChatEncoder

# transformers 5.23 brings `sanitize_control_tokens`, without which a text could contain special tokens. Older versions
# would ignore the setting, so that sentence-transformers is made to refuse them.
NEEDS = {"sentence-transformers": ">=6", "transformers": ">=5.23"}
TEMPLATE = (
    "{%- set found = namespace(images=0, text=none) -%}"
    "{%- for message in messages -%}"
    "{%- if message.role != 'user' -%}"
    "{{ raise_exception('the prompts are part of this model: give no prompt, pair or role of your own') }}"
    "{%- endif -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{%- set found.images = found.images + 1 -%}"
    "{%- elif part.type == 'text' and found.text is none -%}{%- set found.text = part.text -%}"
    "{%- else -%}{{ raise_exception('one picture, or one picture and one text') }}{%- endif -%}"
    "{%- endfor -%}{%- endfor -%}"
    "{%- if found.images != 1 -%}{{ raise_exception('one picture, or one picture and one text') }}{%- endif -%}"
    "{{ OPENING }}"
    "{%- if found.text is none -%}{{ TARGET }}{%- else -%}{{ BEFORE }}{{ found.text }}{{ AFTER }}{%- endif -%}"
    "{{ CLOSING }}"
)


class ChainHead(Protocol):
    """Members of a chain head that an export needs; CotRetriever has them."""

    dim: int
    backbone: Backbone
    project: nn.Linear
    projection: int | None
    readout: str

    def encoder(self) -> ChatEncoder:
        """Return the encoder of its prompts."""

    def encode_target(self, images: Sequence[Image.Image]) -> Tensor:
        """Encode candidate pictures -> (N, D)."""

    def encode_query(
        self, images: Sequence[Image.Image], texts: Sequence[str], reading: str = "full"
    ) -> QueryOutput:
        """Encode queries, with or without a chain."""

    def embed_with(
        self, images: Sequence[Image.Image], texts: Sequence[str], chains: Sequence[Cot]
    ) -> QueryOutput:
        """Encode queries with given chains."""

    def save(self, folder: str | Path) -> None:
        """Save the head, and the checkpoint that it is on."""


def write_sentence_form(head: ChainHead, folder: str | Path) -> None:
    """Write modules.json and the files that it names into the folder of a head's merged checkpoint."""
    folder = Path(folder)
    size = head.backbone.hidden_size
    # The model: hidden states of the chat template's tokens.
    _write(folder / "sentence_bert_config.json", _transformer_config(chat_template(head)))
    modules = [
        ("", "base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformer.modules.pooling.Pooling"),
    ]
    # The readout: the last token's state.
    pooling = {"embedding_dimension": size, "pooling_mode": "lasttoken"}
    _write(folder / "1_Pooling/config.json", pooling)
    # The projection, where the head has one.
    if head.projection:
        modules.append(("2_Dense", "base.modules.dense.Dense"))
        identity = "torch.nn.modules.linear.Identity"
        sizes = {"in_features": size, "out_features": head.projection, "bias": False}
        _write(folder / "2_Dense/config.json", sizes | {"activation_function": identity})
        weight: Tensor = head.project.weight.detach().cpu().contiguous()
        save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")
    modules.append(("3_Normalize", "base.modules.normalize.Normalize"))
    # The list of modules, and how vectors are compared.
    _write(folder / "modules.json", [_module(index, *row) for index, row in enumerate(modules)])
    facts = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "requirements": NEEDS,
    }
    _write(folder / "config_sentence_transformers.json", facts)


def _module(index: int, path: str, kind: str) -> dict[str, Any]:
    """Return an entry of modules.json."""
    return {
        "idx": index,
        "name": str(index),
        "path": path,
        "type": f"sentence_transformers.{kind}",
    }


def _transformer_config(template: str) -> dict[str, Any]:
    """Return the settings of the transformer module: pictures, and pictures with a text, by way of the template."""
    # All inputs go through one forward pass, and "message" is what the template takes.
    how: dict[str, Any] = {"method": "forward", "method_output_name": "last_hidden_state"}
    return {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "image": how,
            "image+text": how,
            "message": how | {"format": "structured"},
        },
        "module_output_name": "token_embeddings",
        "processing_kwargs": {
            # The retrieval token is the last one, so that nothing may be truncated.
            "text": {"truncation": False},
            "chat_template": {"chat_template": template, "sanitize_control_tokens": True},
        },
    }


def chat_template(head: ChainHead) -> str:
    """Return the Jinja template that writes a target's or a query's tokens, as `ChatEncoder` puts them together."""
    # The query prompt has the user's text in its middle.
    encoder = head.encoder()
    before, after = QUERY.split("{text}")
    # Pooling takes the last token's state: the retrieval token's, or that of the prompt's end.
    last = RET if head.readout == "ret" else ""
    texts = {
        "OPENING": _decoded(encoder, encoder.opening),
        "TARGET": TARGET,
        "BEFORE": before,
        "AFTER": after,
        "CLOSING": _decoded(encoder, encoder.closing) + last,
    }
    # Fill in the texts as literals of Jinja, so that nothing in them is a placeholder.
    template = TEMPLATE
    for name, text in texts.items():
        literal = json.dumps(text, ensure_ascii=False)
        template = template.replace("{{ " + name + " }}", "{{ " + literal + " }}")
    return template


def _decoded(encoder: ChatEncoder, ids: list[int]) -> str:
    """Return the text of a piece of the checkpoint's template, special tokens included."""
    text = encoder.tokenizer.decode(
        ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return cast(str, text)  # a list only for a list of rows


def _write(path: Path, content: object) -> None:
    """Write a JSON file, and its folder where there is none."""
    # modules.json names folders for single modules.
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
