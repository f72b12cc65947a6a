"""The export as sentence-transformers loads it: a few JSON files beside the merged checkpoint, and no code in them.

`SentenceTransformer(folder)` then reads a picture as a target, and {"image": picture, "text": text} as a query without
a chain. Only classes of sentence-transformers itself are named, because version 6 imports any other, an installed
package's too, behind a flag that trusts the folder with everything. The prompts become a chat template of their own;
the checkpoint's template, tokenizer and weights stay as they are, and none is copied but the projection.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from cir_cot.files import write_text_atomic
from cir_cot.prompts import QUERY, RET, TARGET

# transformers 5.23 brings `sanitize_control_tokens`, without which a text could write special tokens; older versions
# would pass over the setting, so sentence-transformers is told to refuse them.
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


def write_sentence_form(head, folder: str | Path) -> None:
    """Write a chain head's modules.json and what it names into the folder of its merged checkpoint."""
    folder, size = Path(folder), head.backbone.hidden_size
    how = {"method": "forward", "method_output_name": "last_hidden_state"}
    reading = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "image": how,
            "image+text": how,
            "message": how | {"format": "structured"},
        },
        "module_output_name": "token_embeddings",
        "processing_kwargs": {
            "text": {
                "truncation": False
            },  # the retrieval token is the last one: nothing may be cut
            "chat_template": {
                "chat_template": chat_template(head),
                "sanitize_control_tokens": True,
            },
        },
    }
    modules = [
        ("", "base.modules.transformer.Transformer"),
        ("1_Pooling", "sentence_transformer.modules.pooling.Pooling"),
    ]
    _write(folder / "sentence_bert_config.json", reading)
    _write(
        folder / "1_Pooling/config.json", {"embedding_dimension": size, "pooling_mode": "lasttoken"}
    )
    if head.projection:
        modules.append(("2_Dense", "base.modules.dense.Dense"))
        identity = "torch.nn.modules.linear.Identity"
        sizes = {"in_features": size, "out_features": head.projection, "bias": False}
        _write(folder / "2_Dense/config.json", sizes | {"activation_function": identity})
        weight = head.project.weight.detach().cpu().contiguous()
        save_file({"linear.weight": weight}, folder / "2_Dense/model.safetensors")
    modules.append(("3_Normalize", "base.modules.normalize.Normalize"))
    _write(
        folder / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.{kind}",
            }
            for index, (path, kind) in enumerate(modules)
        ],
    )
    facts = {
        "model_type": "SentenceTransformer",
        "similarity_fn_name": "cosine",
        "requirements": NEEDS,
    }
    _write(folder / "config_sentence_transformers.json", facts)


def chat_template(head) -> str:
    """Return the Jinja template that writes a target's or a query's tokens, as `ChatEncoder` puts them together."""
    encoder = head.encoder()
    opening, closing = (
        encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (encoder.opening, encoder.closing)
    )
    before, after = QUERY.split("{text}")
    last = RET if head.readout == "ret" else ""  # pooling takes the last token's state
    parts = {
        "OPENING": opening,
        "TARGET": TARGET,
        "BEFORE": before,
        "AFTER": after,
        "CLOSING": closing + last,
    }
    template = TEMPLATE
    for name, text in parts.items():
        template = template.replace(
            "{{ " + name + " }}", "{{ " + json.dumps(text, ensure_ascii=False) + " }}"
        )
    return template


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    write_text_atomic(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
