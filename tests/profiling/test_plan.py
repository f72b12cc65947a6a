"""`cir-cot plan`: what it says of tiny models is what they need, and full sizes take minutes without a GPU."""

import json
from pathlib import Path

import pytest
import tiny_training
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cir_cot.cards import CARDS, GIB, Accelerator
from cir_cot.errors import InputError
from cir_cot.heads.cot import CotRetriever
from cir_cot.models.tiny_qwen import tiny_processor, tiny_tokenizer, write_tiny
from cir_cot.peak_bytes import peak_bytes
from cir_cot.profiling.fake_head import GridsAlone, fake_head
from cir_cot.profiling.fake_meter import FakeMeter
from cir_cot.profiling.fake_passes import decoding, picture_side, prompts
from cir_cot.profiling.plan import (
    PlanArguments,
    Step,
    advise,
    measure_step,
    memory_of,
    plan,
    weight_bytes,
    wire_bytes,
)
from cir_cot.profiling.synthetic import SyntheticPairs
from cir_cot.scripts.train import plan as script
from cir_cot.training.chain_training import SETTINGS
from cir_cot.training.run import load_head
from cir_cot.training.step_losses import StepTotals, count_step
from cir_cot.training.trainer import CirTrainer

CONFIGS = Path(script.__file__).parent / "configs"
CARD = CARDS["h100-80"]
WORDS = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    corpus = SyntheticPairs(0, 28).corpus()
    return write_tiny(
        tmp_path_factory.mktemp("base"), corpus=corpus, vocab_size=400, **tiny_training.SIZES
    )


@pytest.fixture(scope="module", autouse=True)
def first_pass(base, tmp_path_factory):
    """The first cached step of a process allocates the vision cache's hash lanes, 1 MiB that stays."""
    folder = tmp_path_factory.mktemp("first")
    measure_step(arguments(base, folder, chunk_tokens=690), CARD, WORDS)


def arguments(base, folder, **options):
    given = {
        "output_dir": str(folder),
        "model": str(base),
        "root": ".",
        "per_device_train_batch_size": 6,
        "chunk_tokens": 0,
        "lora_r": 4,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
    }
    return PlanArguments(**(given | options))


def prepared(args):
    """A trainer of the real head, its batch, and the totals of the step."""
    head = load_head(CotRetriever, args, SETTINGS)
    pairs = SyntheticPairs(args.per_device_train_batch_size, picture_side(head), WORDS)
    trainer = CirTrainer(head, args, pairs)
    inputs = head.collator()([pairs[index, 0] for index in range(len(pairs))])
    model = trainer.accelerator.prepare_model(head.train(), device_placement=False)
    return trainer, model, inputs, StepTotals(*count_step([inputs]))


def real_step(args):
    """The trainer's step on real tensors: its peak beside gradients, and its operations."""
    trainer, *step = prepared(args)
    trained = sum(value.nbytes for value in step[0].parameters() if value.requires_grad)
    peak = peak_bytes(lambda: trainer.training_step(*step))
    again, *step = prepared(args)
    with FlopCounterMode(display=False) as counter:
        again.training_step(*step)
    return peak - trained, counter.get_total_flops()


@pytest.mark.parametrize(
    "options",
    [
        {"lora_r": 0},
        {"lora_r": 0, "recompute": True, "bf16": True},
        {"lora_r": 0, "attn": "eager", "bf16": True},
        {"dtype": "bfloat16", "bf16": True},
        {"dtype": "bfloat16", "recompute": True},
    ],
)
def test_a_plain_step_needs_what_was_planned(base, tmp_path, options):
    args = arguments(base, tmp_path, **options)
    step = measure_step(args, CARD, WORDS)
    activations, operations = real_step(args)
    assert step.activations == pytest.approx(activations, rel=0.02)
    assert step.operations == operations
    assert step.chunks == 1


class Products(TorchDispatchMode):
    """Collects matrix products in which a number is float32, by the shapes of their factors."""

    NAMES = ("aten::mm", "aten::addmm", "aten::bmm", "aten::convolution")

    def __init__(self):
        super().__init__()
        self.shapes = []
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        if name in self.NAMES or "scaled_dot_product" in name:
            factors = [leaf for leaf in args if isinstance(leaf, torch.Tensor)]
            if name.endswith("attention_for_cpu_backward"):
                factors = factors[:5]  # without the logarithms of its sums, always float32
            self.count += 1
            if any(factor.dtype == torch.float32 for factor in factors):
                self.shapes.append(tuple(tuple(factor.shape) for factor in factors))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("lora_r", [4, 0])
@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_step_in_bfloat16_computes_no_product_in_float32(kind, lora_r, tmp_path):
    """Beside the similarities of InfoNCE and its statistics, (B, D) with (D, B), whose precision decides ranks."""
    corpus = SyntheticPairs(0, 28).corpus()
    base = write_tiny(tmp_path / "base", kind, corpus=corpus, vocab_size=400, **tiny_training.SIZES)
    args = arguments(base, tmp_path / "run", dtype="bfloat16", lora_r=lora_r)
    head = fake_head(args)
    pairs = SyntheticPairs(6, picture_side(head), WORDS)
    trainer = CirTrainer(head, args, pairs)
    inputs = head.collator()([pairs[index, 0] for index in range(6)])
    totals = StepTotals(*count_step([inputs]))
    model = trainer.accelerator.prepare_model(head.train(), device_placement=False)
    with FakeMeter(CARD) as meter, Products() as products:
        trainer.training_step(model, inputs, totals)
    assert products.count > 100
    width = head.dim
    similar = {((6, width), (width, 6)), ((6, 6), (6, width)), ((width, 6), (6, 6))}
    assert set(products.shapes) <= similar
    # Reads by the host that would wait for a GPU: M-RoPE positions and windows are most of them.
    assert meter.synchronisations <= 100


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_decoding_step_reads_nothing_but_its_tokens(kind, tmp_path):
    corpus = SyntheticPairs(0, 28).corpus()
    base = write_tiny(tmp_path / "base", kind, corpus=corpus, vocab_size=400, **tiny_training.SIZES)
    head = fake_head(arguments(base, tmp_path / "run", dtype="bfloat16"), inference=True)
    found = decoding(head, CARD, rows=4, new=8)
    assert found["synchronisations_per_step"] <= 2


def test_decoding_needs_what_its_steps_do(base, tmp_path):
    """Eight tokens one by one over a real cache; the plan runs the first and the last of them."""
    args = arguments(base, tmp_path)
    head = load_head(CotRetriever, args, SETTINGS).eval()
    head.backbone.model.merge_adapter()
    inputs = prompts(head, 3)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        positions = head.backbone.positions(inputs)
        cache = head.backbone.new_cache()
        head.backbone(inputs, positions, cache)
        mask = torch.cat([inputs["attention_mask"]] + [torch.ones(3, 1).long()] * 8, dim=1)
        for step in range(8):
            positions = head.backbone.next_positions(positions)
            before = inputs["input_ids"].shape[1] + step
            token = {
                "input_ids": torch.zeros(3, 1, dtype=torch.long),
                "attention_mask": mask[:, : before + 1],
            }
            hidden = head.backbone(token, positions, cache)[:, -1]
            head.backbone.logits(hidden)
    planned = decoding(fake_head(args, inference=True), CARD, rows=3, new=8)
    assert planned["operations"] == counter.get_total_flops()
    assert planned["kernels"] > 8 * planned["kernels_per_step"] > 0
    # Each step reads more of the cache than the one before.
    head = fake_head(args, inference=True)
    three, five, many = (decoding(head, CARD, rows=3, new=new)["seconds"] for new in (3, 5, 65))
    assert (many - five) / 60 > 1.001 * (five - three) / 2


@pytest.mark.parametrize("recompute", [False, True])
def test_a_cached_step_needs_what_was_planned(base, tmp_path, recompute):
    """Twenty-four rows in eight chunks are planned from the rows of two."""
    rows = {"per_device_train_batch_size": 24, "chunk_tokens": 690}
    args = arguments(base, tmp_path, recompute=recompute, **rows)
    step = measure_step(args, CARD, WORDS)
    activations, operations = real_step(args)
    assert step.activations == pytest.approx(activations, rel=0.02)
    assert step.operations == pytest.approx(operations, rel=0.02)
    assert step.chunks == 8


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_pictures_without_pixels_have_the_same_grids_and_stay_apart(kind):
    real = tiny_processor(kind, tiny_tokenizer()).image_processor
    real.size = {"shortest_edge": 3136, "longest_edge": 147_456}
    sides = [(383, 383), (640, 480), (30, 900), (56, 57), (1024, 683)]
    images = [Image.new("RGB", side, (n, 9, 9)) for n, side in enumerate(sides)]
    ours = GridsAlone(real)(images)
    theirs = real(images=images, return_tensors="pt")
    assert torch.equal(ours["image_grid_thw"], theirs["image_grid_thw"])
    assert ours["pixel_values"].shape == theirs["pixel_values"].shape
    # 300 pictures of one size differ in bfloat16, too, and one picture is the same each time.
    many = [Image.new("RGB", (56, 56), (n % 256, n // 256, 0)) for n in range(300)]
    stand_in = GridsAlone(real)
    seen = [stand_in([image])["pixel_values"].bfloat16()[0, 0].item() for image in many]
    assert len(set(seen)) == 300
    assert stand_in(many[7:8])["pixel_values"][0, 0].item() == seen[7]


def test_the_meter_counts_kernels_bytes_and_reads(base, tmp_path):
    head = fake_head(arguments(base, tmp_path))
    weight = head.backbone.plain.get_input_embeddings().weight  # (V, H), fake
    with FakeMeter(Accelerator(80, 1e12, 1e9, 1e9)) as meter:
        out = weight @ weight.T  # one kernel
        out.view(-1)  # none
        torch.ones(3).tolist()  # a read
        assert out.sum().item() == 0  # a kernel, and a read of a fake number
    rows, width = weight.shape
    assert meter.operations == 2 * rows * rows * width
    assert meter.kernels == 2
    assert meter.synchronisations == 2
    assert meter.moved == 2 * weight.nbytes + out.nbytes + out.nbytes + 4
    assert meter.seconds == pytest.approx(meter.moved / 1e9)
    assert out.nbytes + 4 <= meter.peak <= out.nbytes + 16  # the list's three numbers


STEP = Step(
    rows=8,
    tokens=800,
    chunks=4,
    weights=10 * GIB,
    gradients=8 * GIB,
    activations=6 * GIB,
    largest_block=1 * GIB,
    operations=0,
    kernels=0,
    synchronisations=0,
    seconds=0.0,
    passes=12,
    sent=96,
)


def test_what_processes_share():
    def gib(gpus, sharding):
        parts = memory_of(STEP, gpus, sharding)
        return {name: value / GIB for name, value in parts.items()}

    alone = {"weights": 10, "gradients": 8, "optimizer": 16, "activations": 6, "peak": 40}
    assert gib(1, "ddp") == gib(1, "zero2") == gib(1, "zero3") == alone
    assert gib(4, "ddp") == alone | {"gradients": 16, "peak": 48}
    assert gib(4, "zero2") == alone | {"gradients": 2, "optimizer": 4, "peak": 22}
    shared = alone | {"weights": 4.5, "gradients": 2, "optimizer": 4, "peak": 16.5}
    assert gib(4, "zero3") == shared
    # What FSDP2 gathers was measured among the activations.
    assert gib(4, "fsdp2") == shared | {"weights": 2.5, "peak": 14.5}


def test_what_goes_over_the_wire():
    assert wire_bytes(STEP, 4, "ddp") == 12 * GIB + 96
    assert wire_bytes(STEP, 4, "zero3") == 12 * GIB + 96 + 0.75 * 10 * 12 * GIB
    assert wire_bytes(STEP, 4, "fsdp2") == 96


def test_quantised_weights_are_those_of_the_blocks_linear_layers(base, tmp_path):
    head = fake_head(arguments(base, tmp_path, dtype="bfloat16"))
    plain = weight_bytes(head, None)
    linear = sum(
        value.numel()
        for name, value in head.named_parameters()
        if "language_model.layers" in name and value.dim() == 2 and "lora_" not in name
    )
    assert plain - weight_bytes(head, "int8") == linear
    assert plain - weight_bytes(head, "nf4") == pytest.approx(linear * (2 - 0.515875), abs=100)


def test_the_advice_is_what_fits(base, tmp_path):
    args = arguments(base, tmp_path, chunk_tokens=400)
    memory = memory_of(STEP, 1, "ddp")
    assert advise(args, STEP, memory, 39 * GIB, "ddp") == "set chunk_tokens to 256"
    assert advise(args, STEP, memory, 33 * GIB, "ddp") == "set recompute: true"
    args.recompute = True
    assert "quantization: nf4" in advise(args, STEP, memory, 33 * GIB, "ddp")
    args.lora_r = 0
    assert "train an adapter" in advise(args, STEP, memory, 33 * GIB, "ddp")


def test_a_plan_refuses_what_cannot_fit(base, tmp_path):
    args = arguments(base, tmp_path)
    found = plan(args, Accelerator(1e-3, 1e12, 1e12, 1e12), passes=False)
    assert not found["fits"]
    assert found["advice"]
    assert plan(args, CARD, passes=False)["fits"]
    args.quantization = "nf4"
    with pytest.raises(InputError, match="packed weights are not sharded"):
        plan(args, CARD, 8, "zero3")


KEYS = {
    "fits",
    "peak_gib",
    "weights_gib",
    "activations_gib",
    "optimizer_gib",
    "operations",
    "kernels",
    "synchronisations",
    "seconds",
    "decode",
    "encode",
    "advice",
}


def test_the_command_prints_a_plan(base, capsys):
    config = str(CONFIGS / "joint.yaml")
    argv = ["--model", str(base), "--config", config, "--card", "l4-24", "--json"]
    assert script.main([*argv, "--per_device_train_batch_size", "4", "--lora_r", "4"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found.keys() >= KEYS
    assert found["decode"]["tokens_per_second"] > 0
    assert found["encode"]["pictures_per_second"] > 0
    assert "memory of a process" in captured.err


SHIPPED = [
    ("cirr_7b", "7B", "h100-80"),
    ("fashioniq_7b", "7B", "h100-80"),
    ("trace_7b", "7B", "h100-80"),
    ("stage1", "7B", "h100-80"),
    ("joint", "7B", "h100-80"),
    ("cirr_3b", "3B", "l4-24"),
    ("cirr_7b_24gb", "7B", "l4-24"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "size", "card"), SHIPPED)
def test_a_config_that_ships_fits_the_card_it_names(config, size, card, capsys):
    """One to two minutes each; the rows of one process, of which two chunks are measured."""
    argv = ["--model", size, "--config", str(CONFIGS / f"{config}.yaml"), "--card", card]
    assert script.main([*argv, "--training-only", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"]
    assert found["memory_mb"] < 1536
