"""The Combiners against second implementations, the router's loads with and without balance, and the recipe."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import tiny_training
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from cir_cot.data import load_benchmark
from cir_cot.errors import InputError
from cir_cot.evaluation.evaluate import evaluate
from cir_cot.heads import load_retriever
from cir_cot.heads.combiners import (
    DenseCombiner,
    MoeCombiner,
    SparseMoe,
    count_parameters,
    hidden_for,
)
from cir_cot.heads.moe import MoeRetriever
from cir_cot.losses import load_balance
from cir_cot.models.clip import load_clip
from cir_cot.models.tiny_clip import write_tiny_clip
from cir_cot.scripts.train import moe
from cir_cot.training.parsing import parse_arguments

CONFIGS = Path(moe.__file__).parent / "configs"
QUIET = [
    "--report_to",
    "none",
    "--disable_tqdm",
    "true",
    "--save_strategy",
    "no",
    "--logging_steps",
    "1",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    corpus = [record.text for record in tiny_training.records(36)]
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), corpus=corpus, init=4.0)


def make_head(tiny, **settings) -> MoeRetriever:
    torch.manual_seed(0)
    return MoeRetriever(load_clip(str(tiny)), str(tiny), **settings)


# ---- the layer


def row_by_row(layer: SparseMoe, z, top_k: int):
    """The mixture of experts, one row and expert at a time, from the weights alone."""
    rows = []
    for row in z:
        logits = layer.router.weight @ row + layer.router.bias
        chosen = sorted(range(len(logits)), key=lambda e: -logits[e].item())[:top_k]
        weights = torch.stack([logits[e] for e in chosen]).exp()
        weights = weights / weights.sum()
        out = 0
        for expert, weight in zip(chosen, weights, strict=True):
            linear = layer.experts[expert][0]
            out = out + weight * functional.gelu(linear.weight @ row + linear.bias)
        rows.append(out)
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("idle", [0, 1])
def test_sorted_by_expert_equals_row_by_row(top_k, idle):
    torch.manual_seed(top_k)
    layer = SparseMoe(24, 40, 4 + idle, top_k, improved=False, routing="learned").eval()
    if idle:
        layer.router.bias.data[2] = -1e3  # never chosen
    z, results = torch.randn(17, 24), []
    for way in (lambda rows: layer(rows)[0], lambda rows: row_by_row(layer, rows, top_k)):
        layer.zero_grad()
        leaf = z.clone().requires_grad_()
        out = way(leaf)
        (out * torch.linspace(-1, 1, 40)).sum().backward()
        results.append({"out": out.detach(), "rows": leaf.grad})
        results[-1] |= {name: parameter.grad for name, parameter in layer.named_parameters()}
    ours, theirs = results
    for name, value in ours.items():
        # the reference never touches an idle expert; here it takes part with nothing, so that processes agree
        expected = torch.zeros_like(value) if theirs[name] is None else theirs[name]
        assert (value - expected).abs().max() < 1e-5, name
    assert theirs["out"].abs().max() > 0.1
    assert bool(idle) == (theirs["experts.2.0.weight"] is None)


def test_every_row_passes_the_shared_expert_of_the_improved_layer():
    torch.manual_seed(0)
    layer, z = SparseMoe(8, 6, 3, 2, improved=True, routing="learned").eval(), torch.randn(5, 8)
    torch.testing.assert_close(layer(z)[0], row_by_row(layer, z, 2) + layer.shared(z))


def test_no_row_is_dropped_when_all_want_the_same_expert():
    layer = SparseMoe(8, 8, 4, 1, improved=False, routing="learned").eval()
    layer.router.bias.data[1] = 1e3
    z = torch.randn(50, 8)
    out, route = layer(z)
    assert (route.chosen == 1).all()
    assert (out - functional.gelu(layer.experts[1][0](z))).abs().max() < 1e-6


def test_the_improved_router_computes_in_float32_under_autocast():
    torch.manual_seed(0)
    z = torch.randn(64, 32)
    for improved, dtype in ((True, torch.float32), (False, torch.bfloat16)):
        layer = SparseMoe(32, 8, 4, 2, improved, "learned").eval()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.route(z).logits.dtype == dtype


def test_random_routing_is_even_in_training_and_an_average_afterwards():
    layer = SparseMoe(8, 8, 4, 2, improved=False, routing="random")
    torch.manual_seed(0)
    route = layer.route(torch.randn(4000, 8))
    assert (route.shares(4).mean(dim=0) - 0.25).abs().max() < 0.02
    assert (route.shares(4) > 0).sum(dim=1).unique().tolist() == [2]
    assert not torch.equal(route.chosen, layer.route(torch.randn(4000, 8)).chosen)
    z = torch.randn(5, 8)
    out, route = layer.eval()(z)
    everyone = torch.stack([expert(z) for expert in layer.experts]).mean(dim=0)
    assert (out - everyone).abs().max() < 1e-6
    assert torch.equal(route.shares(4), torch.full((5, 4), 0.25))


# ---- the Combiners, from their formulas in docs/moe.md


def features(rows: int = 9, dim: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    return torch.randn(rows, dim), torch.randn(rows, dim)


def layer_norm(x, weight, bias):
    return (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True, unbiased=False) + 1e-5
    ).sqrt() * weight + bias


def faithful_by_formula(w: dict, image, text, heads: int = 4, top_k: int = 2):
    """CLIP4Cir-MoE from its weights by name, one query at a time, in float64; dropout off."""
    w = {name: value.double() for name, value in w.items()}
    dense = lambda name, x: w[f"{name}.weight"] @ x + w[f"{name}.bias"]  # noqa: E731
    outputs = []
    for i, t in zip(image.double(), text.double(), strict=True):
        tokens = [
            layer_norm(dense(f"{side}.0", x), w[f"{side}.1.weight"], w[f"{side}.1.bias"]).clamp(
                min=0
            )
            for side, x in (("text", t), ("image", i))
        ]
        width = len(tokens[0])
        q, k, v = (
            [
                w["attention.in_proj_weight"][at : at + width] @ x
                + w["attention.in_proj_bias"][at : at + width]
                for x in tokens
            ]
            for at in (0, width, 2 * width)
        )
        z = []
        for one, token in enumerate(tokens):
            parts = []
            for head in range(heads):
                cut = slice(head * width // heads, (head + 1) * width // heads)
                scores = (
                    torch.stack([q[one][cut] @ k[other][cut] for other in (0, 1)])
                    / (width // heads) ** 0.5
                )
                share = scores.exp() / scores.exp().sum()
                parts.append(share[0] * v[0][cut] + share[1] * v[1][cut])
            z.append(
                layer_norm(
                    token + dense("attention.out_proj", torch.cat(parts)),
                    w["norm.weight"],
                    w["norm.bias"],
                )
            )
        z = torch.cat(z)
        logits = dense("moe.router", z)
        chosen = logits.argsort(descending=True)[:top_k].tolist()
        total = sum(logits[e].exp() for e in chosen)
        h = sum(
            logits[e].exp() / total * functional.gelu(dense(f"moe.experts.{e}.0", z))
            for e in chosen
        )
        base = dense("mix.2", h.clamp(min=0))
        gate = 1 / (1 + (-dense("gate.3", dense("gate.0", z).clamp(min=0))).exp())
        out = base + gate * t + (1 - gate) * i
        outputs.append(out / out.norm())
    return torch.stack(outputs)


def test_faithful_is_the_published_formula():
    image, text = features()
    torch.manual_seed(1)
    combiner = MoeCombiner(16, 64, 128, 4, 2, improved=False, routing="learned").eval()
    with torch.no_grad():
        for parameter in combiner.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms away from 0 and 1
        ours = functional.normalize(combiner(image, text)[0], dim=-1)
        theirs = faithful_by_formula(combiner.state_dict(), image, text)
    assert (ours - theirs).abs().max() < 1e-5
    assert (theirs - functional.normalize((image + text).double(), dim=-1)).abs().max() > 0.05


def test_dense_is_clip4cirs_formula():
    image, text = features()
    combiner = DenseCombiner(16, 64, 128).eval()
    w = combiner.state_dict()
    dense = lambda name, x: x @ w[f"{name}.weight"].T + w[f"{name}.bias"]  # noqa: E731
    z = torch.cat([dense("text.0", text).clamp(min=0), dense("image.0", image).clamp(min=0)], dim=1)
    weight = dense("gate.3", dense("gate.0", z).clamp(min=0)).sigmoid()
    theirs = dense("mix.3", dense("mix.0", z).clamp(min=0)) + weight * text + (1 - weight) * image
    ours, words, route = combiner(image, text)
    assert (ours - theirs).abs().max() < 1e-5
    assert torch.equal(words, combiner(image, text)[1])
    assert words.shape == (9, 1)
    assert route is None


def test_parameters_are_the_published_ones():
    moe4 = lambda top_k: MoeCombiner(640, 2560, 5120, 4, top_k, False, "learned")  # noqa: E731
    whole = count_parameters(lambda: moe4(2))
    idle = 2 * count_parameters(lambda: nn.Linear(5120, 5120))
    dense = count_parameters(lambda: DenseCombiner(640, 2560, 5120))
    assert [round(count / 1e6, 1) for count in (whole, whole - idle, dense)] == [167.2, 114.8, 59.0]


@pytest.mark.parametrize("wanted", [114_755_844, 167_194_884])
def test_a_dense_combiner_of_equal_size_can_be_made(wanted):
    hidden = hidden_for(wanted, 640, 2560)
    assert abs(count_parameters(lambda: DenseCombiner(640, 2560, hidden)) / wanted - 1) < 1e-4


def test_the_improved_combiner_starts_at_the_sum_of_stage_one():
    image, text = features()
    torch.manual_seed(0)
    combiner = MoeCombiner(16, 64, 128, 4, 2, improved=True, routing="learned").train()
    out, weight, _ = combiner(image, text)
    assert torch.equal(weight, torch.full((9, 16), 0.5))
    assert (
        functional.normalize(out, dim=-1) - functional.normalize(image + text, dim=-1)
    ).abs().max() < 1e-6
    loss = (out * torch.randn_like(out)).sum()
    gradients = torch.autograd.grad(loss, [combiner.mix[-1].weight, combiner.gate[-1].weight])
    assert all(gradient.abs().max() > 1e-3 for gradient in gradients)  # it can leave the start


# ---- the head


def test_explanations_name_experts_and_weights(tiny):
    head = make_head(tiny).eval()
    images = [
        tiny_training.Pictures().load(name) for name in ("red-blue", "green-red", "blue-cyan")
    ]
    texts = ["make the bar red", "make the bar cyan", "other words"]
    out = head.encode_query(images, texts)
    for words, choice in zip(out.explanations, out.routing, strict=True):
        assert list(choice) == ["expert 0", "expert 1", "expert 2", "expert 3"]
        assert sum(choice.values()) == pytest.approx(1)
        (first, one), (second, two) = sorted(choice.items(), key=lambda item: -item[1])[:2]
        assert words == f"{first} ({one:.2f}), {second} ({two:.2f}); text weight 0.50"
    dense = make_head(tiny, combiner="dense").eval().encode_query(images, texts)
    assert dense.routing == []
    assert all(re.fullmatch(r"text weight 0\.\d\d", words) for words in dense.explanations)


def test_the_losses_of_the_router_are_those_of_the_batch(tiny):
    head = make_head(tiny).train()
    image, text = features(32, head.dim)
    torch.manual_seed(3)
    combined = head.combine(image, text)
    torch.manual_seed(3)
    route = head.combiner(image, text)[2]
    probabilities = route.logits.softmax(dim=1)
    balance = head.batch_losses(combined.rows)["balance"]
    assert balance.item() == pytest.approx(load_balance(probabilities, route.chosen).item())
    z = route.logits.exp().sum(dim=1).log().square().mean()
    assert combined.aux["router_z"].item() == pytest.approx(z.item(), rel=1e-5)
    assert combined.stats["expert_1"].item() == pytest.approx(route.shares(4)[:, 1].mean().item())
    assert head.eval().combine(image, text).aux == {}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"combiner": "sparse"}, "'sparse' is not one of"),
        ({"routing": "telepathic"}, "'telepathic' is not one of"),
        ({"top_k": 5}, "top_k 5"),
        ({"top_k": 0}, "top_k 0"),
        ({"projection": 6}, "projection 6"),
    ],
)
def test_unusable_settings_are_named(tiny, settings, words):
    with pytest.raises(InputError, match=words):
        make_head(tiny, **settings)


def loads(head: MoeRetriever, image, text) -> list[float]:
    with torch.no_grad():
        return head.eval().combiner(image, text)[2].shares(4).mean(dim=0).tolist()


def test_balance_brings_idle_experts_back_and_without_it_they_stay_idle(tiny):
    """The router starts out sending nearly every row to two of four experts."""
    torch.manual_seed(0)
    image, text = torch.randn(256, 32), torch.randn(256, 32)
    target = functional.normalize(image + 0.5 * text.roll(1, 1), dim=-1)
    least = {}
    for balance in (0.0, 0.1):
        head = make_head(tiny, projection=32, hidden=32).train()
        head.combiner.moe.router.bias.data[:2] += 3.0
        assert min(loads(head, image, text)) < 0.05
        optimizer = torch.optim.Adam(head.combiner.parameters(), lr=3e-3)
        for _ in range(60):
            combined = head.train().combine(image, text)
            loss = functional.cross_entropy(
                functional.normalize(combined.features, dim=-1) @ target.T / 0.1, torch.arange(256)
            )
            optimizer.zero_grad()
            (loss + balance * head.batch_losses(combined.rows)["balance"]).backward()
            optimizer.step()
        least[balance] = min(loads(head, image, text))
    assert least[0.0] < 0.05 < least[0.1]


# ---- the recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    tiny_training.write_dataset(root, tiny_training.records(22))
    return root


def train(model, root, out, *more: str) -> int:
    argv = [
        "--model",
        str(model),
        "--root",
        str(root),
        "--output_dir",
        str(out),
        "--per_device_train_batch_size",
        "8",
    ]
    return moe.main([*argv, *QUIET, "--num_train_epochs", "2", "--learning_rate", "1e-3", *more])


class Counted:
    """Counts forward passes of CLIP's towers, whoever makes them."""

    def __enter__(self):
        self.passes = 0
        self.hook = register_module_forward_hook(self.count)
        return self

    def count(self, module, inputs, output):
        self.passes += type(module).__name__ in (
            "CLIPVisionTransformer",
            "CLIPTextTransformer",
            "CLIPVisionModel",
        )

    def __exit__(self, *error):
        self.hook.remove()


def test_clip_runs_once_for_each_picture_and_text_and_never_again(tiny, data, tmp_path, capsys):
    store = ["--features", str(tmp_path / "features")]
    with Counted() as first:
        assert train(tiny, data, tmp_path / "one", *store) == 0
    with Counted() as longer:
        train(
            tiny, data, tmp_path / "two", *store, "--num_train_epochs", "5", "--combiner", "dense"
        )
    assert first.passes > 0
    assert longer.passes == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "CLIP features" in line]
    total = int(lines[0].split()[2])
    assert lines[0].startswith(f"{total} of {total} ")
    assert lines[1].startswith(f"0 of {total} ")
    with Counted() as padded:
        train(tiny, data, tmp_path / "three", *store, "--pad_ratio", "1.1")  # another preprocessing
    assert padded.passes > 0


def test_training_on_features_is_training_on_pictures(tiny, data, tmp_path):
    """The head that the recipe leaves embeds pictures to what it was trained on."""
    args = parse_arguments(
        moe.MoeArguments, ["--model", str(tiny), "--root", str(data), "--output_dir", str(tmp_path)]
    )
    rows, _ = moe.load_rows(args)
    head = make_head(tiny)
    given = moe.encode(head, rows, args)
    batch = head.collator()([given[index, 0] for index in range(6)])
    plain = make_head(tiny)
    pixels = plain.collator()([rows[index, 0] for index in range(6)])
    with torch.no_grad():
        ours, theirs = (
            head.eval()(batch["query"], batch["target"]),
            plain.eval()(pixels["query"], pixels["target"]),
        )
    assert (ours.query - theirs.query).abs().max() < 1e-5
    assert (ours.target - theirs.target).abs().max() < 1e-5
    assert torch.equal(batch["ids"], pixels["ids"])


def test_a_run_leaves_a_retriever_its_loads_and_a_report(tiny, data, tmp_path):
    assert train(tiny, data, tmp_path) == 0
    history = json.loads((tmp_path / "metrics.json").read_text())["history"]
    assert sum(history[0][f"expert_{number}"] for number in range(4)) == pytest.approx(1)
    assert {"balance_loss", "router_z_loss", "text_weight", "contrastive_loss"} <= history[0].keys()
    assert not (tmp_path / "model.safetensors").exists()  # the frozen encoder is named, not copied
    retriever = load_retriever(tmp_path, device="cpu")
    assert retriever.settings()["combiner"] == "improved"
    (benchmark,) = load_benchmark("folder", data, "train")
    result = evaluate(retriever, benchmark, benchmark.images())
    assert set(result.routing) == {record.id for record in benchmark.records}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in result.routing.values())


def test_weights_of_the_routers_losses_follow_the_combiner():
    weights = {}
    for name in ("improved", "faithful"):
        argv = ["--model", "x", "--root", "y", "--output_dir", "z", "--combiner", name]
        weights[name] = parse_arguments(moe.MoeArguments, argv).aux_weights()
    assert weights["improved"] == {"balance": 0.01, "router_z": 0.001}
    assert set(weights["faithful"].values()) == {0.0}
    assert (
        parse_arguments(moe.MoeArguments, [*argv, "--balance_weight", "0.5"]).aux_weights()[
            "balance"
        ]
        == 0.5
    )


@pytest.mark.parametrize("name", ["moe_fashioniq", "moe_faithful"])
def test_the_configs_that_ship_are_accepted(name):
    args = parse_arguments(
        moe.MoeArguments, ["--config", str(CONFIGS / f"{name}.yaml"), "--root", "y"]
    )
    assert args.per_device_train_batch_size == 4096
    assert (args.aux_weights()["balance"] > 0) == (name == "moe_fashioniq")


# ---- the benchmark of its dispatch


def test_the_benchmark_of_dispatch_compares_equal_results(tmp_path, capsys):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "moe_dispatch.py"
    spec = importlib.util.spec_from_file_location("moe_dispatch", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    out = tmp_path / "found.json"
    options = ["--batch", "5", "--dim", "4", "--pairs", "1", "--device", "cpu", "--json", str(out)]
    assert script.main(options) == 0
    found = json.loads(out.read_text())
    assert found["ratio"]["time"] == pytest.approx(
        found["peer"]["seconds"] / found["ours"]["seconds"]
    )
    assert found["largest_difference"] < 1e-5
    layer = SparseMoe(8, 8, 4, 2, improved=False, routing="learned").eval()
    z = torch.randn(6, 8)
    assert (script.row_by_row(layer, z) - row_by_row(layer, z, 2)).abs().max() < 1e-5
    assert script.difference([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 4.0])]) == 0.5
    assert "time" in capsys.readouterr().out
