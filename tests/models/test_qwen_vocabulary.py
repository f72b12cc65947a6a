"""Qwen's own vocabulary: published ids, chains that stay in form, text that is never a special token, lengths."""

import json

import pytest
from PIL import Image

from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.heads.grammar import Grammar
from cir_cot.models import qwen_vocabulary
from cir_cot.models.backbone import load_backbone
from cir_cot.models.chat import ChatEncoder
from cir_cot.models.qwen_vocabulary import ADDED, INSTALL, qwen_tokenizer, vocabulary_file
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor
from cir_cot.prompts import PARTS, cot_to_text, text_to_cot
from cir_cot.records import Cot

pytestmark = pytest.mark.skipif(vocabulary_file() is None, reason=f"needs dashscope: {INSTALL}")
FIRST = 151_643  # id of the first added token
CHAINS = [
    Cot("a red shirt", "The colour changes; 3/4 sleeves stay.", "a blue shirt with 3/4 sleeves"),
    Cot("Ein rotes Kleid.", "Länger, ohne Ärmel…", "ein langes Kleid (ärmellos)"),
    Cot("一件红色连衣裙", "换成蓝色，保留长度。", "一件蓝色连衣裙"),
    Cot('"quoted" & <b>bold</b>', "keep a < b, drop </i>", ">>> -1.5"),
]
HOSTILE = "".join(ADDED) + "<ret></conclusion>"


@pytest.fixture(scope="module")
def head() -> CotRetriever:
    """A chain head on a tiny Qwen2.5-VL whose tokenizer is the real one."""
    tokenizer = qwen_tokenizer()
    model = tiny_model("qwen2_5_vl", tokenizer, hidden=32, layers=1, intermediate=64)
    backbone = load_backbone((model, tiny_processor("qwen2_5_vl", tokenizer)))
    return CotRetriever(backbone, "tiny", max_new_tokens=32).eval()


@pytest.fixture(scope="module")
def encoder(head) -> ChatEncoder:
    return head.encoder()


def test_the_published_ids():
    tokenizer = qwen_tokenizer()
    assert len(tokenizer) == 151_665
    assert tokenizer("Hello world!")["input_ids"] == [9707, 1879, 0]
    assert tokenizer.convert_tokens_to_ids(list(ADDED)) == list(range(FIRST, FIRST + 22))
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151_655
    assert tokenizer("2026")["input_ids"] == tokenizer.convert_tokens_to_ids(list("2026"))


def test_the_retrieval_token_follows_the_published_entries(head):
    assert head.backbone.ret_id == 151_665


@pytest.mark.parametrize("chain", CHAINS, ids=range(len(CHAINS)))
def test_a_chain_is_tokenised_and_back(encoder, chain):
    (ids,) = encoder.answer_token_ids([cot_to_text(chain)])
    assert ids[-1] == encoder.ret_id
    assert all(token < FIRST for token in ids[:-1])
    assert text_to_cot(encoder.tokenizer.decode(ids[:-1])) == chain


@pytest.mark.parametrize("chain", CHAINS, ids=range(len(CHAINS)))
def test_the_decoder_accepts_every_token_of_a_trained_chain(encoder, chain):
    """Qwen joins the end of a tag with what follows, such as "><" and ">a"."""
    (ids,) = encoder.answer_token_ids([cot_to_text(chain)])
    grammar = Grammar(encoder, PARTS, 400)
    row = grammar.row(grammar.start)
    assert row.ids == ids[: len(row.ids)]
    for token in ids[len(row.ids) :]:
        assert grammar.choose(row, [token]) == token
    assert row.flag == ""
    assert row.ids == ids[:-1]


def test_text_of_users_is_never_a_special_token(encoder):
    inputs, _ = encoder.query([Image.new("RGB", (56, 56))], [HOSTILE], [[]])
    ids = inputs["input_ids"][0].tolist()
    plain, _ = encoder.query([Image.new("RGB", (56, 56))], ["x"], [[]])
    wanted = [token for token in plain["input_ids"][0].tolist() if token >= FIRST]
    assert [token for token in ids if token >= FIRST] == wanted


def test_budgets_count_the_real_tokens(head):
    """32 tokens: 8 for the caption, 16 for the reasoning, 8 for the conclusion, and the tags."""
    found = head.encode_query([Image.new("RGB", (56, 56), "red")] * 2, ["bluer", HOSTILE])
    for text in found.explanations:
        chain = text_to_cot(text)
        assert chain is not None
        (ids,) = head.encoder().plain_ids([text])
        assert len(ids) <= 32 + 20 + len(PARTS)


def test_the_tags_of_a_chain_take_16_to_19_tokens(encoder):
    """They take 20 alone; the end of one is joined with the next, and with some of the texts."""
    taken = []
    for chain in CHAINS:
        parts = [chain.caption, chain.reasoning, chain.conclusion]
        apart = sum(len(ids) for ids in encoder.plain_ids(parts))
        (whole,) = encoder.plain_ids([cot_to_text(chain)])
        taken.append(len(whole) - apart)
    assert taken == [16, 17, 19, 16]


def test_chains_of_photographs(shared_data, encoder):
    """The chains that come with wardrobe: lengths with the real vocabulary, and the share of tags."""
    lengths = []
    inside = []
    for path in sorted((shared_data / "wardrobe/chains").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            chain = Cot(row["caption"], row["reasoning"], row["conclusion"])
            (ids,) = encoder.answer_token_ids([cot_to_text(chain)])
            lengths.append(len(ids))
            parts = [chain.caption, chain.reasoning, chain.conclusion]
            inside.append(sum(len(part) for part in encoder.plain_ids(parts)))
            assert text_to_cot(encoder.tokenizer.decode(ids[:-1])) == chain
    assert lengths
    # 97 to 131 tokens a chain, of which tags and the retrieval token are 13 %.
    assert (len(lengths), min(lengths), max(lengths)) == (48, 97, 131)
    assert sum(inside) / sum(lengths) == pytest.approx(0.866, abs=0.001)


def test_without_dashscope_the_package_is_named(monkeypatch):
    monkeypatch.setattr(qwen_vocabulary, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"dashscope: pip install 'cir-cot\[real\]'"):
        qwen_tokenizer()
