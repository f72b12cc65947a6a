"""Chains written by a serving engine: vLLM's and SGLang's protocol, from servers around a tiny model."""

import base64
import io
import json

import pytest
import torch
from fake_server import Reply, Server, answer
from PIL import Image

from cir_cot.chains.openai_servers import OpenAIServers
from cir_cot.data.scene_files import write_scenes
from cir_cot.engines import served
from cir_cot.engines.chat_server import without_special_tokens
from cir_cot.engines.served import ServedRetriever, serve_with
from cir_cot.errors import InputError
from cir_cot.evaluation.readings import record_encoder
from cir_cot.heads import load_retriever
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import write_tiny
from cir_cot.prompts import RET, cot_to_text
from cir_cot.records import Cot
from cir_cot.retriever import ChainReader
from cir_cot.scripts.eval import build_index, retrieval, search

CHAINS = (
    Cot("a red square", "the square becomes blue", "a blue square"),
    Cot("a small dog", "the dog is kept, a cat is added", "a small dog and a cat"),
    Cot("a coat", "no button is kept", "a coat without buttons"),
)
TEXTS = ["make it blue", "add a cat", "no buttons; <ret><|im_end|>"]
SENT = [*TEXTS[:2], "no buttons; < ret>< |im_end|>"]  # the same without special tokens
ENGINES = ("vllm", "sglang")
STOP = {"vllm": "stop_reason", "sglang": "matched_stop"}


class EngineScript:
    """A server of one retriever's checkpoint: it tokenises and computes states as an engine does, from the request.

    It writes a chain of CHAINS by the request's number of the picture; `change` may alter a response.
    """

    def __init__(self, head, engine, change=None):
        self.processor = head.backbone.processor
        self.backbone = head.backbone
        self.ret_id = head.backbone.ret_id
        self.engine = engine
        self.change = change or (lambda response, request: response)
        self.requests = []

    def __call__(self, request: dict) -> Reply:
        self.requests.append(request)
        # The engine's own way: its chat template over the messages, then one call of its processor.
        user, assistant = request["messages"]
        url = user["content"][0]["image_url"]["url"]
        picture = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
        turns = [
            {"role": "user", "content": [{"type": "image"}, user["content"][1]]},
            {"role": "assistant", "content": [{"type": "text", "text": assistant["content"]}]},
        ]
        prompt = self.processor.apply_chat_template(turns, continue_final_message=True)
        chain = cot_to_text(CHAINS[(picture.width // 56 - 1) % len(CHAINS)])
        start = assistant["content"]
        rest = "" if start.endswith(RET) else chain[len(start) :]
        # States of prompt and answer; the last one produced the last token.
        inputs = self.processor(text=[prompt + rest], images=[picture], return_tensors="pt")
        length = len(self.processor(text=[prompt], images=[picture])["input_ids"][0])
        with torch.no_grad():
            state = self.backbone(dict(inputs))[0, -1]
        reply = answer(rest)
        choice = reply.body["choices"][0]
        choice[STOP[self.engine]] = self.ret_id
        if request["max_tokens"] == 1:
            choice |= {"finish_reason": "length", "message": {"content": "x"}}
        if request.get("return_hidden_states") == "last":
            choice["hidden_states"] = state.tolist()
        reply.body["usage"] = {"prompt_tokens": length, "completion_tokens": 9}
        reply.body = self.change(reply.body, request)
        return reply


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "base"
    return write_tiny(
        folder, hidden=32, intermediate=64, layers=2, vision_depth=1, vision_hidden=32
    )


def make_head(base, **options):
    torch.manual_seed(0)
    head = CotRetriever(load_backbone(base), str(base), max_new_tokens=12, **options).eval()
    # As far from a fresh norm as a trained one.
    norm = head.backbone.plain.model.language_model.norm
    norm.weight.data.uniform_(0.2, 3.0)
    return head


@pytest.fixture(scope="module", params=["ret", "before_ret"])
def head(request, base):
    return make_head(base, readout=request.param, projection=16)


def pictures():
    """Pictures whose widths tell the server which chain to write; the second is resized by the processor."""
    return [Image.new("RGB", (56 * (row + 1), 56), (40 * row, 9, 200)) for row in range(3)]


def ask(head, engine, change=None, texts=TEXTS, reading=None):
    script = EngineScript(head, engine, change)
    with Server(script) as server:
        remote = serve_with(head, engine, [server.url], "merged")
        return remote.encode_query(pictures(), texts, reading), script


@pytest.mark.parametrize("engine", ENGINES)
def test_chains_and_vectors_are_those_of_embed_with(head, engine):
    output, script = ask(head, engine)
    expected = head.embed_with(pictures(), SENT, CHAINS)
    assert output.explanations == expected.explanations
    assert (output.embeddings - expected.embeddings).abs().max() < 1e-5
    assert output.flags == ["", "", ""]
    # SGLang's state at the retrieval token takes one more token.
    twice = engine == "sglang" and head.readout == "ret"
    assert len(script.requests) == (6 if twice else 3)


def test_states_are_used_after_they_were_checked(head):
    script = EngineScript(head, "sglang")
    with Server(script) as server:
        remote = serve_with(head, "sglang", [server.url], "merged")
        first = remote.encode_query(pictures(), TEXTS).embeddings
        head.embed_with, kept = None, head.embed_with
        try:
            second = remote.encode_query(pictures(), TEXTS).embeddings
        finally:
            head.embed_with = kept
    assert (first - second).abs().max() < 1e-5


def test_the_prompt_holds_no_special_token_of_the_user(head):
    _, script = ask(head, "vllm")
    sent = [request["messages"][0]["content"][1]["text"] for request in script.requests]
    assert sum("< ret>" in text and "< |im_end|>" in text for text in sent) == 1
    assert not any("<ret>" in text or "<|im_end|>" in text for text in sent)
    assert without_special_tokens("a <ret> b", ["<ret>"]) == "a < ret> b"


def test_fast_and_targets_ask_no_server(head):
    output, script = ask(head, "vllm", reading="fast")
    assert script.requests == []
    expected = head.encode_query(pictures(), TEXTS, "fast").embeddings
    assert torch.equal(output.embeddings, expected)


def test_truncated_and_invalid_chains_are_decoded_locally_and_flagged(head):
    def change(response, request):
        choice = response["choices"][0]
        text = choice["message"]["content"]
        if "add a cat" in str(request["messages"]):
            choice |= {"finish_reason": "length", "message": {"content": text[:9]}}
        if "no buttons" in str(request["messages"]):
            choice["message"] = {"content": text.replace("<conclusion>", "")}
        return response

    output, _ = ask(head, "vllm", change)
    local = head.encode_query(pictures(), SENT, "full")
    assert [flag.kind for flag in output.flags] == ["", "missing_token", "forced_form"]
    assert output.explanations[0] == cot_to_text(CHAINS[0])
    assert output.explanations[1:] == local.explanations[1:]
    assert (output.embeddings[1:] - local.embeddings[1:]).abs().max() < 1e-5


def longer(response, request):
    response["usage"]["prompt_tokens"] += 1
    return response


def uncounted(response, request):
    del response["usage"]
    return response


def end_of_turn(response, request):
    response["choices"][0].update(stop_reason=None, matched_stop=151645)
    return response


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (longer, "prompt tokens where the retriever counts"),
        (uncounted, "counts None prompt tokens"),
        (end_of_turn, "and not at the retrieval token <ret>"),
    ],
)
def test_a_server_of_something_else_is_refused(head, engine, change, message):
    with pytest.raises(InputError, match=message):
        ask(head, engine, change)


def scaled_states(head):
    """States from before the final norm: what vLLM writes, and what other layers give."""
    weight = head.backbone.plain.model.language_model.norm.weight

    def change(response, request):
        choice = response["choices"][0]
        states = torch.tensor(choice["hidden_states"]) / weight.detach()
        choice["hidden_states"] = states.tolist()
        return response

    return change


def states_as(values):
    def change(response, request):
        response["choices"][0]["hidden_states"] = values
        return response

    return change


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0] * 31, "of 31 numbers, finite ones expected, where the model has 32"),
        ([float("nan")] * 32, "finite ones expected"),
        ("no states", "no list of numbers"),
        (None, "returned 0 hidden states for 3 chains"),
        ([0.5] * 32, "are not those of the retriever"),
    ],
)
def test_states_that_are_none_are_refused(head, values, message):
    with pytest.raises(InputError, match=message):
        ask(head, "sglang", states_as(values))


def test_states_from_before_the_final_norm_are_refused(head):
    with pytest.raises(InputError, match="from before the final norm"):
        ask(head, "sglang", scaled_states(head))


def test_it_is_a_chain_reader_that_names_its_engine(head):
    with Server(EngineScript(head, "vllm")) as server:
        remote = serve_with(head, "vllm", [server.url], "merged")
        assert isinstance(remote, ServedRetriever)
        assert isinstance(remote, ChainReader)
        assert remote.conditions() == head.conditions() | {"engine": "vllm"}
        assert record_encoder(remote, "full")
        with pytest.raises(InputError, match="'short' is not one of full, fast"):
            remote.encode_query(pictures(), TEXTS, "short")


class Impatient(OpenAIServers):
    """Servers that are given up at once."""

    def __init__(self, *args):
        super().__init__(*args)
        self.startup = 0.0


def test_no_server_is_one_clear_error(head, monkeypatch):
    monkeypatch.setattr(served, "OpenAIServers", Impatient)
    nobody = serve_with(head, "vllm", ["http://127.0.0.1:9/v1"], "merged")
    with pytest.raises(InputError, match=r"no server answers at http://127.0.0.1:9/v1"):
        nobody.encode_query(pictures(), TEXTS)


# ---- the commands


@pytest.fixture(scope="module")
def checkpoint(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    make_head(base).save(folder)
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, seed=0, references=2, edits=2, size=84)
    return folder


def command(checkpoint, scenes, *more):
    data = ["--benchmark", "folder", "--root", scenes, "--split", "iid", "--device", "cpu"]
    return [str(word) for word in ["--model", checkpoint, *data, *more]]


@pytest.mark.parametrize("engine", ENGINES)
def test_retrieval_names_the_engine_of_its_chains(checkpoint, scenes, tmp_path, engine):
    head = load_retriever(checkpoint, device="cpu")
    with Server(EngineScript(head, engine)) as server:
        more = ["--engine", engine, "--engine-url", server.url, "--engine-model", "merged"]
        out = tmp_path / "out"
        assert retrieval.main(command(checkpoint, scenes, *more, "--out", out)) == 0
    protocol = json.loads((out / "results.json").read_text())["protocol"]
    assert protocol["reading"] == f"full (chains by {engine})"
    assert protocol["engine"] == engine
    chains = (out / "chains.jsonl").read_text().splitlines()
    assert len(chains) == 4
    assert all(CHAINS[0].caption in line for line in chains)


def test_search_asks_the_engine(checkpoint, scenes, tmp_path, capsys):
    head = load_retriever(checkpoint, device="cpu")
    index = str(tmp_path / "index")
    images = str(scenes / "images")
    assert build_index.main(["--model", str(checkpoint), "--images", images, "--out", index]) == 0
    capsys.readouterr()
    picture = next((scenes / "images").iterdir())
    with Server(EngineScript(head, "vllm")) as server:
        argv = ["--model", checkpoint, "--index", index, "--image", picture, "--text", "bluer"]
        argv += ["--engine", "vllm", "--engine-url", server.url, "--engine-model", "m", "--json"]
        assert search.main([str(word) for word in argv]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert CHAINS[0].caption in str(answer)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--engine", "vllm"], "--engine vllm needs --engine-url"),
        (["--engine-url", "http://localhost:1/v1"], "need --engine vllm or sglang"),
        (["--engine", "vllm", "--engine-url", "ftp://x", "--engine-model", "m"], "no http"),
    ],
)
def test_half_an_engine_is_refused(checkpoint, scenes, more, message):
    with pytest.raises(InputError, match=message):
        retrieval.main(command(checkpoint, scenes, *more))


def test_a_retriever_without_chains_has_no_engine():
    with pytest.raises(InputError, match="writes no chains"):
        serve_with(object(), "vllm", ["http://localhost:1/v1"], "merged")
