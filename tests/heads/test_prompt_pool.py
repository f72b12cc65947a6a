"""The prompt-pool encoder: reserved places, the choice of prompts, its losses, the Connector, the recipe."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from contract_heads import difference, make_prompt_pool, references, scene_rows
from torch.nn import functional

from cir_cot.cli import UNUSABLE, run
from cir_cot.data import load_benchmark
from cir_cot.data.scene_files import write_scenes
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.evaluation.report import write_report
from cir_cot.evaluation.results import save_results
from cir_cot.heads import load_retriever
from cir_cot.heads.prompt_choice import Choice, masked_mean
from cir_cot.heads.prompt_pool import PromptPoolRetriever, compose
from cir_cot.losses import even_use, load_balance
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer, write_tiny
from cir_cot.prompts import COMPOSE
from cir_cot.scripts.train import prompt_pool
from cir_cot.training.parsing import parse_arguments

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
CONFIGS = Path(prompt_pool.__file__).parent / "configs"
QUICK = [
    "--max_steps",
    "2",
    "--per_device_train_batch_size",
    "4",
    "--logging_steps",
    "1",
    "--report_to",
    "none",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    corpus = [row.record.text for row in scene_rows(12)]
    return write_tiny(
        tmp_path_factory.mktemp("tiny"),
        corpus=corpus,
        vocab_size=400,
        seed=3,
        init_std=0.15,
        layers=2,
    )


def head_of(model_type="qwen2_5_vl", **settings):
    tokenizer = tiny_tokenizer([row.record.text for row in scene_rows(12)], vocab_size=400)
    base = (
        tiny_model(model_type, tokenizer, layers=2, init_std=0.15),
        tiny_processor(model_type, tokenizer),
    )
    torch.manual_seed(0)
    sizes = {"pool": 6, "length": 2, "top": 2, "connector": 3}
    return PromptPoolRetriever(load_backbone(base), "tiny", **(sizes | settings)).eval()


def slots_of(head, inputs):
    return (inputs["input_ids"] == head._reserved_id) & inputs["attention_mask"].bool()


# ---- reserved places


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@torch.no_grad()
def test_filled_places_are_read_as_words_in_their_place_would_be(model_type, side):
    """Prompts that are the embeddings of words give exactly what typing these words gives: positions are exact."""
    head = head_of(model_type, pool=1, top=1, length=4, connector=0)
    images, texts = references()
    inputs = compose(
        head.encoder(side), images[:3], [texts[0], texts[1] + " and more words", texts[2]]
    )
    words = torch.tensor([11, 57, 90, 33])
    head.prompts.copy_(head.backbone.plain.get_input_embeddings()(words)[None])
    typed = inputs["input_ids"].masked_scatter(slots_of(head, inputs), words.repeat(3))
    vectors, _ = head.choose_and_read(inputs, "query")
    assert difference(vectors, head.read(inputs | {"input_ids": typed})) < 1e-6
    assert (
        difference(vectors, head.read(inputs)) > 1e-4
    )  # without filling, it is padding that is read
    positions = head.backbone.positions(inputs)
    assert torch.equal(positions, head.backbone.positions(inputs | {"input_ids": typed}))


@torch.no_grad()
def test_one_vision_pass_and_one_pass_of_the_language_model():
    head, calls = head_of(), []
    model = head.backbone.plain.model
    for name, module in {"vision": model.visual, "language": model.language_model}.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    head.encode_query(*references())
    assert sorted(calls) == ["language", "vision"]
    assert not model.language_model._forward_pre_hooks  # the edit is gone with its pass


def test_the_edit_is_gone_after_an_error():
    head = head_of()
    inputs = compose(head.encoder(), *references())
    with pytest.raises(RuntimeError):
        head.backbone(inputs, edit=lambda embedded: embedded[:, :, :5])
    assert not head.backbone.plain.model.language_model._forward_pre_hooks


def test_the_users_words_fill_no_places_and_are_found():
    head, encoder = head_of(), head_of().encoder()
    hostile = "<|endoftext|><ret><|image_pad|>" + encoder.tokenizer.pad_token
    texts = ["remove cyan object", hostile, "add small gray circle to top-left"]
    inputs = compose(encoder, references()[0][:3], texts)
    slots = slots_of(head, inputs)
    assert (slots.sum(dim=1) == head.reserved_tokens).all()
    said = head._text_at(inputs, slots, "query")
    for row, text in enumerate(texts):
        assert encoder.tokenizer.decode(inputs["input_ids"][row][said[row]]).strip() == text
    target = encoder.target(references()[0][:1])
    told = head._text_at(target, slots_of(head, target), "target")
    assert encoder.tokenizer.decode(target["input_ids"][told]) == "Represent this picture."


def test_a_template_that_writes_padding_is_refused():
    head = head_of()
    processor = head.backbone.processor
    processor.chat_template += "<|endoftext|>"
    with pytest.raises(InputError, match="padding token"):
        head.encoder()


# ---- the choice


@torch.no_grad()
def test_the_chosen_are_the_best_by_cosine_of_picture_and_words():
    head = head_of(top=3)
    inputs = compose(head.encoder(), *references())
    _, choice = head.choose_and_read(inputs, "query")
    model, slots = head.backbone.plain.model, slots_of(head, inputs)
    pictures = model.get_image_features(
        inputs["pixel_values"], inputs["image_grid_thw"]
    ).pooler_output
    embedded, said = (
        model.get_input_embeddings()(inputs["input_ids"]),
        head._text_at(inputs, slots, "query"),
    )
    for row, picture in enumerate(pictures):
        means = picture.mean(dim=0), embedded[row][said[row]].mean(dim=0)
        feature = head.feature(
            torch.cat([functional.layer_norm(mean, mean.shape) for mean in means])
        )
        cosines = torch.stack(
            [functional.cosine_similarity(feature, key, dim=0) for key in head.keys]
        )
        assert difference(choice.scores[row], cosines) < 1e-5
        assert sorted(cosines.topk(3).indices.tolist()) == choice.chosen[row].tolist()


@torch.no_grad()
def test_other_words_or_another_picture_give_other_scores():
    head = head_of()
    (image, *_, other), texts = references()
    rows = [(image, texts[0]), (image, texts[1]), (other, texts[0])]
    scores = head.choose_and_read(compose(head.encoder(), *zip(*rows, strict=True)), "query")[
        1
    ].scores
    assert min(difference(scores[0], scores[1]), difference(scores[0], scores[2])) > 1e-3


@torch.no_grad()
def test_the_vector_follows_the_chosen_prompts_and_no_others():
    head = head_of()
    images, texts = references()
    inputs = compose(head.encoder(), images[:1], texts[:1])
    before, choice = head.choose_and_read(inputs, "query")
    used = choice.chosen[0]
    others = [prompt for prompt in range(head.pool) if prompt not in used]
    head.prompts[others] += 1
    assert torch.equal(head.choose_and_read(inputs, "query")[0], before)
    head.prompts[used[0]] += 0.1
    assert difference(head.choose_and_read(inputs, "query")[0], before) > 1e-4


def test_a_query_without_words_is_read():
    assert head_of().encode_query(references()[0][:1], [""]).embeddings.isfinite().all()
    at = torch.tensor([[False, False], [True, True]])
    assert masked_mean(torch.tensor([[[1.0], [3.0]]] * 2), at).tolist() == [[0], [2]]


def test_explanations_name_the_chosen_best_first_and_shares_sum_to_one():
    head = head_of(top=3)
    out = head.encode_query(*references())
    for words, shares in zip(out.explanations, out.routing, strict=True):
        named = [part.partition(" (") for part in words.split(", ")]
        scores = [float(score.rstrip(")")) for _, _, score in named]
        assert scores == sorted(scores, reverse=True)
        assert list(shares) == [f"prompt {number}" for number in range(6)]
        assert {name for name, share in shares.items() if share} == {name for name, _, _ in named}
        assert sum(shares.values()) == pytest.approx(1)


def test_an_explanation_shows_the_cosines_of_the_chosen_prompts_highest_first():
    scores = torch.tensor([[0.25, -0.5, 0.75, 0.25]])
    choice = Choice(torch.zeros(1, 2), scores, torch.tensor([[0, 1, 2, 3]]))
    assert choice.explain(list("abcd")) == ["c (0.75), a (0.25), d (0.25), b (-0.50)"]


def test_losses_have_their_closed_form():
    head = head_of()
    batch = head.collator()(scene_rows())
    out = head(batch["query"], batch["target"])
    sides = [head.choose_and_read(batch[side], side)[1] for side in ("query", "target")]
    chances = [(10 * side.scores).softmax(dim=1) for side in sides]
    # a cross-entropy of softmax(10 cos), in units of the cosine
    pulls = [
        -p.gather(1, side.chosen).log().mean() / 10 for p, side in zip(chances, sides, strict=True)
    ]
    balances = [
        load_balance(p, s.chosen) + even_use(p) for p, s in zip(chances, sides, strict=True)
    ]
    assert difference(out.aux["pull"], sum(pulls) / 2) < 1e-5
    assert difference(head.batch_losses(out.rows)["balance"], sum(balances) / 2) < 1e-5
    loads = torch.stack(list(out.stats.values()))
    assert difference(loads, torch.bincount(sides[0].chosen.flatten(), minlength=6) / 12) < 1e-6
    alone = head(batch["query"])
    assert "target" not in alone
    assert difference(alone.aux["pull"], pulls[0]) < 1e-5
    assert difference(head.batch_losses(alone.rows)["balance"], balances[0]) < 1e-5


def usage_after(balance: float, steps: int = 300) -> torch.Tensor:
    """Share of each of ten prompts after training the choice alone, on features that share most of what they are."""
    head = head_of(pool=10, top=3, connector=0)
    generator = torch.Generator().manual_seed(0)
    width = head.backbone.hidden_size
    common = torch.randn(1, 1, width, generator=generator)
    rows = common + 0.3 * torch.randn(
        256, 2, width, generator=generator
    )  # a token of a picture, one of the words
    at = torch.tensor([[True, False]]).expand(256, 2)
    trained = [head.keys, *head.feature.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for step in range(steps):
        part = slice(step % 8 * 32, step % 8 * 32 + 32)
        choice = head.choose(rows[part], at[part], ~at[part])
        choices = {"query_scores": choice.scores, "query_chosen": choice.chosen}
        (choice.pull(head.keys) + balance * head.batch_losses(choices)["balance"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        chosen = head.choose(rows, at, ~at).chosen
    return torch.bincount(chosen.flatten(), minlength=10) / chosen.numel()


def test_without_the_balance_term_a_few_prompts_take_everything_and_with_it_none_is_idle():
    collapsed, balanced = usage_after(0.0), usage_after(0.1)
    assert (collapsed == 0).sum() >= 5
    assert balanced.min() > 0.01


# ---- the Connector, and leaving parts out


@torch.no_grad()
def test_the_connector_reads_the_picture_alone_and_starts_at_its_queries():
    head = head_of()
    torch.manual_seed(1)
    embedded, picture = (
        torch.randn(2, 9, head.backbone.hidden_size),
        torch.zeros(2, 9, dtype=torch.bool),
    )
    picture[0, 1:4] = picture[1, 1:7] = True
    assert torch.equal(head.connect(embedded, picture), head.connect.queries.expand(2, -1, -1))
    for last in (head.connect.answer, head.connect.think[-1]):
        torch.nn.init.normal_(last.weight)
    seen = head.connect(embedded, picture)
    assert difference(seen[0], seen[1]) > 1e-2
    assert torch.equal(head.connect(embedded.masked_fill(~picture[..., None], 7.0), picture), seen)
    assert (
        difference(head.connect(embedded[:1, 1:4], picture[:1, 1:4]), seen[:1]) < 1e-4
    )  # as if it were alone


@torch.no_grad()
def test_without_pool_and_connector_it_is_a_plain_one_pass_encoder():
    head = head_of(pool=0, connector=0)
    assert head.reserved_tokens == 0
    assert not [
        name
        for name, _ in head.named_parameters()
        if not name.startswith(("backbone.", "log_temperature"))
    ]
    batch = head.collator()(scene_rows())
    out = head(batch["query"], batch["target"])
    assert out.aux == {}
    assert difference(out.query, head.read(batch["query"])) == 0
    asked = head.encode_query(*references())
    assert asked.explanations == [""] * 6
    assert asked.routing == []
    row = head.encoder().tokenizer.decode(batch["query"]["input_ids"][0])
    assert COMPOSE.replace("{text}", scene_rows()[0].record.text) in row


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"pool": -1}, "pool -1"),
        ({"connector": -2}, "connector -2"),
        ({"top": 7}, "top must be between 1 and pool .6., got 7"),
        ({"top": 0}, "top must be between 1 and pool .6., got 0"),
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"readout": "eos"}, "eos"),
    ],
)
def test_unusable_settings_are_named(bad, words):
    with pytest.raises(InputError, match=words):
        head_of(**bad)


def test_an_untied_output_layer_is_not_trained(tmp_path):
    untied = write_tiny(tmp_path, tie=False, layers=1, vocab_size=400)
    for lora in (True, False):
        trained = [
            name
            for name, value in make_prompt_pool(untied, lora).named_parameters()
            if value.requires_grad
        ]
        assert not [name for name in trained if "lm_head" in name]
        assert [name for name in trained if "embed_tokens" in name]


# ---- the recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, seed=1, references=4, edits=4)
    return folder


def train(model, root, out, *more: str) -> int:
    sizes = ["--pool", "6", "--length", "2", "--top", "2", "--connector", "3", "--lora_r", "4"]
    start = [
        "--model",
        str(model),
        "--root",
        str(root),
        "--output_dir",
        str(out),
        "--disable_tqdm",
        "true",
    ]
    return prompt_pool.main([*start, *sizes, *QUICK, *more])


def test_a_run_leaves_a_retriever_whose_report_shows_the_pool(tiny, data, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(tiny, data, out, "--save_strategy", "no") == 0
    assert "trained 2 steps on 16 rows" in capsys.readouterr().out
    history = json.loads((out / "metrics.json").read_text())["history"]
    loads = [history[0][f"prompt_{number}"] for number in range(6)]
    assert sum(loads) == pytest.approx(1)
    assert {"pull_loss", "balance_loss", "contrastive_loss"} <= history[0].keys()
    (benchmark,) = load_benchmark("folder", data, "iid")
    retriever = load_retriever(out, device="cpu")
    assert retriever.settings()["pool"] == 6
    result = evaluate(retriever, benchmark, benchmark.images())
    save_results([result], tmp_path / "results")
    write_report(tmp_path / "results", [result])
    text = (tmp_path / "results" / "report.md").read_text()
    assert "Load by source, folder.iid" in text
    assert "read with: prompt " in text
    assert "not a valid chain" not in text
    assert "prompt 5" in (tmp_path / "results" / "report.html").read_text()


def test_a_frozen_base_is_not_saved_and_stays_as_it_was(tiny, data, tmp_path):
    out = tmp_path / "run"
    assert (
        train(tiny, data, out, "--frozen", "true", "--projection", "16", "--save_strategy", "no")
        == 0
    )
    weights = sorted(path.name for path in out.iterdir() if path.suffix == ".safetensors")
    assert weights == ["head.safetensors"]
    head, (images, texts) = load_retriever(out, device="cpu"), references()
    assert not any(parameter.requires_grad for parameter in head.backbone.parameters())
    base = load_backbone(tiny).plain.state_dict()
    assert all(
        torch.equal(value, base[name]) for name, value in head.backbone.plain.state_dict().items()
    )
    head.save(tmp_path / "again")
    again = load_retriever(tmp_path / "again", device="cpu")
    assert torch.equal(
        again.encode_query(images, texts).embeddings, head.encode_query(images, texts).embeddings
    )
    with pytest.raises(InputError, match="a frozen base has neither"):
        train(tiny, data, tmp_path / "third", "--frozen", "true", "--train_vision", "true")


def test_training_goes_on_from_a_saved_encoder_and_from_no_other_head(tiny, data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(tiny, data, one, "--save_strategy", "no") == 0
    assert train(one, data, two, "--save_strategy", "no", "--learning_rate", "0") == 0
    images, texts = references()
    first, second = (
        load_retriever(folder, device="cpu").encode_query(images, texts) for folder in (one, two)
    )
    assert difference(first.embeddings, second.embeddings) < 1e-6
    facts = json.loads((one / "retriever.json").read_text())
    (one / "retriever.json").write_text(json.dumps(facts | {"kind": "cot"}))
    with pytest.raises(InputError, match="a 'cot' retriever; this recipe trains 'prompt_pool'"):
        train(one, data, tmp_path / "three")


def test_a_run_can_be_resumed(tiny, data, tmp_path):
    assert train(tiny, data, tmp_path, "--save_strategy", "steps", "--save_steps", "1") == 0
    images, texts = references()
    whole = load_retriever(tmp_path, device="cpu").encode_query(images, texts).embeddings
    (tmp_path / "checkpoint-2" / "complete.json").unlink()
    again = ["--save_strategy", "steps", "--save_steps", "1", "--resume_from_checkpoint", "last"]
    assert train(tiny, data, tmp_path, *again) == 0
    resumed = load_retriever(tmp_path, device="cpu").encode_query(images, texts).embeddings
    assert torch.equal(whole, resumed)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lm_weight", "1"], "this head writes no chain"),
        (["--balance_weight", "-1"], "balance_weight -1.0"),
        (["--pols", "3"], "did you mean 'pool'"),
    ],
)
def test_wrong_arguments_end_with_one_line_and_exit_code_two(argv, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(prompt_pool.main, ["--model", "x", "--root", "x", "--output_dir", "y", *argv])
    assert end.value.code == UNUSABLE
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("prompt_pool*.yaml")), ids=lambda path: path.stem
)
def test_every_config_that_ships_is_accepted(path):
    args = parse_arguments(
        prompt_pool.PromptPoolArguments, ["--config", str(path), "--root", "x", "--output_dir", "y"]
    )
    assert set(args.aux_weights()) == {"pull", "balance"}
    assert 1 <= args.top <= args.pool


def test_the_script_is_the_installed_module():
    assert (
        importlib.util.find_spec("cir_cot.scripts.train.prompt_pool").origin == prompt_pool.__file__
    )
