"""What a batch holds: which tokens are attended to and supervised, which target is trained on, image numbers."""

import random

import pytest
import torch
from tiny_training import Pictures, records, tiny_head

from cir_cot.errors import InputError
from cir_cot.heads.base import TrainingRow, image_hash
from cir_cot.models.chat import IGNORE, ChatEncoder
from cir_cot.models.feature_cache import Vectors
from cir_cot.prompts import TARGET, query_prompt
from cir_cot.records import Record
from cir_cot.training.dataset import CirDataset

NAMES = ("red-blue", "green-red", "blue-cyan")


@pytest.fixture(scope="module")
def head():
    return tiny_head(lora=False)


def record(**facts) -> Record:
    return Record(
        **{"id": "q", "reference": NAMES[0], "text": "make it red", "targets": NAMES[1:]} | facts
    )


def test_the_first_target_is_trained_on(head):
    dataset = CirDataset([record()], Pictures())
    row = dataset[0, 7]
    assert (
        row.target.tobytes()
        == Pictures().load(NAMES[1]).tobytes()
        != Pictures().load(NAMES[2]).tobytes()
    )
    assert row.draw == 7
    assert head.collator()([row])["ids"][:, 0].tolist() == [image_hash(NAMES[1])]


def test_targets_may_be_vectors_from_a_store_of_their_own(head):
    vectors = Vectors({name: torch.full((3,), float(number)) for number, name in enumerate(NAMES)})
    rows = [CirDataset([record()], Pictures(), targets=vectors)[0, 0]] * 2
    assert rows[0].reference.tobytes() == Pictures().load(NAMES[0]).tobytes()
    assert head.collator()(rows)["target"]["vectors"].tolist() == [[1.0] * 3] * 2


def test_a_record_without_target_cannot_be_trained_on():
    with pytest.raises(InputError, match="'q' has no target"):
        CirDataset([record(targets=())], Pictures())[0, 0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_its_rows_with_padding_that_is_neither_attended_to_nor_supervised(head, side):
    encoder = ChatEncoder(head.backbone.processor, head.backbone.ret_id, side)
    texts, answers = (
        ["make it red", "make the bar cyan and the rest blue"],
        encoder.answer_token_ids(["a", "b c d e f g h"]),
    )
    pictures = [Pictures().load(name) for name in NAMES[:2]]
    batch, labels = encoder.query(pictures, texts, answers)
    longest = batch["input_ids"].shape[1]
    for row, (picture, text, answer) in enumerate(zip(pictures, texts, answers, strict=True)):
        alone, words = encoder.query([picture], [text], [answer])
        length = alone["input_ids"].shape[1]
        kept, padding = slice(0, length), slice(length, None)
        if side == "left":
            kept, padding = slice(longest - length, None), slice(0, longest - length)
        assert batch["input_ids"][row, kept].equal(alone["input_ids"][0])
        assert batch["attention_mask"][row, kept].tolist() == [1] * length
        assert not batch["attention_mask"][row, padding].any()
        assert labels[row, kept].equal(words[0])
        assert (labels[row, padding] == IGNORE).all()
        # the answer alone is supervised, and it stands at the row's end behind the whole prompt
        assert words[0, -len(answer) :].tolist() == answer
        assert (words[0, : -len(answer)] == IGNORE).all()
        assert query_prompt(text) in encoder.tokenizer.decode(alone["input_ids"][0])


def test_a_target_is_its_picture_the_fixed_prompt_and_the_retrieval_token(head):
    encoder = head.encoder()
    ids = encoder.target([Pictures().load(NAMES[0])])["input_ids"][0].tolist()
    assert ids[-1] == head.backbone.ret_id
    assert ids.count(head.backbone.ret_id) == 1
    assert TARGET in encoder.tokenizer.decode(ids)
    assert ids.count(encoder.image_token) == 4  # 56 x 56 pixels


def test_image_numbers_are_positive_and_use_all_63_bits():
    numbers = [image_hash(f"image {index}") for index in range(200)]
    assert len(set(numbers)) == 200
    assert 2**62 < max(numbers) < 2**63
    assert min(numbers) >= 0
    assert image_hash("red-blue") == 7924703988685597845  # the same in every process and version


def test_the_draw_of_a_row_decides_whether_it_keeps_its_chain(head):
    some = records(4)
    collator = tiny_head(lora=False, chain_dropout=0.5).collator()
    load = Pictures().load
    for draw in range(20):
        rows = [
            TrainingRow(one, load(one.reference), load(one.targets[0]), draw) for one in some[:2]
        ]
        dropped = random.Random(draw).random() < 0.5
        assert (collator(rows)["labels"] == IGNORE).all() == dropped


# ---- what a chat template must and must not do


IMAGE, TEXT = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "{{ messages[0]['content'][1]['text'] }}",
)


def encoder_of(template):
    processor = tiny_head(lora=False).backbone.processor
    processor.chat_template = template
    return ChatEncoder(processor, processor.tokenizer.convert_tokens_to_ids("<ret>"))


def test_a_template_that_shows_one_picture_and_then_the_text_is_taken():
    encoder = encoder_of(f"<|im_start|>{IMAGE}{TEXT}<|im_end|>")
    assert encoder.tokenizer.decode(encoder.opening) == f"<|im_start|>{IMAGE}"
    assert encoder.tokenizer.decode(encoder.closing) == "<|im_end|>"


@pytest.mark.parametrize(
    "template", [IMAGE, IMAGE + TEXT + TEXT, f"{IMAGE}{{{{ messages[0]['role'] }}}}", ""]
)
def test_a_template_that_does_not_show_the_text_exactly_once_is_refused(template):
    with pytest.raises(InputError, match="text exactly once"):
        encoder_of(template)


@pytest.mark.parametrize(
    "template", [TEXT, TEXT + IMAGE, IMAGE + IMAGE + TEXT, IMAGE + TEXT + IMAGE]
)
def test_a_template_that_does_not_place_one_picture_before_the_text_is_refused(template):
    with pytest.raises(InputError, match="one image token before"):
        encoder_of(template)


def test_no_text_of_a_user_is_ever_tokenised_as_a_special_token(head):
    """Every added token, alone, in words, halved and doubled; what the text said is kept letter by letter."""
    encoder = head.encoder()
    tokenizer = encoder.tokenizer
    special = {*tokenizer.all_special_ids, encoder.ret_id, encoder.image_token}
    names = list(tokenizer.get_added_vocab())
    assert len(names) > 5
    for name in names:
        for text in (
            name,
            f"a{name}b",
            f" {name} ",
            name * 2,
            name[:-1] + name,
            f"{name}\n</conclusion>{name}",
        ):
            (ids,) = encoder.plain_ids([text])
            assert not special & set(ids)
            assert tokenizer.decode(ids) == text
            (answer,) = encoder.answer_token_ids([text])
            assert [at for at, token in enumerate(answer) if token in special] == [len(answer) - 1]
    everything = "".join(names)
    hostile, plain = (
        encoder.query([Pictures().load(NAMES[0])], [text], [[]])[0] for text in (everything, "x")
    )
    for token in special:
        assert (hostile["input_ids"] == token).sum() == (plain["input_ids"] == token).sum()
