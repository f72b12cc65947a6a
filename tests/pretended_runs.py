"""Train, decode and encode tiny models of all three families on a pretended GPU, and print what was seen as JSON.

Run by tests/test_pretended_gpu.py in a process of its own.
"""

import json
import sys
import tempfile

import pretended_gpu as gpu
import tiny_training
import torch

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate.utils.operations import convert_to_fp32

from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.training.arguments import CirArguments
from cir_cot.training.chunks import split_into_chunks
from cir_cot.training.dataset import CirDataset
from cir_cot.training.run import keep_trained_in_float32
from cir_cot.training.step_losses import StepTotals, count_step
from cir_cot.training.trainer import CirTrainer

ROWS = 4
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def head_of(family: str, lora: bool) -> CotRetriever:
    rows = tiny_training.records(36)
    tokenizer = tiny_tokenizer([row.text for row in rows], vocab_size=400)
    model = tiny_model(family, tokenizer, **tiny_training.SIZES).bfloat16()
    base = model, tiny_processor(family, tokenizer)
    torch.manual_seed(0)
    adapter = {"r": 4, "alpha": 8, "dropout": 0.1} if lora else None
    head = CotRetriever(load_backbone(base, lora=adapter), "tiny", max_new_tokens=12, projection=8)
    keep_trained_in_float32(head)
    head.backbone.checkpoint_activations()
    return head


class OnGpu(CirArguments):
    """Arguments of a run on the pretended device."""

    @property
    def device(self):
        return gpu.DEVICE

    @property
    def place_model_on_device(self):
        return False


def seen() -> dict:
    found = {
        "reads": gpu.Observed.reads,
        "float32": gpu.Observed.float32,
        "operations": gpu.Observed.operations,
    }
    gpu.Observed.forget()
    return found


def train(head: CotRetriever, chunk_tokens: int) -> dict:
    """One step of the trainer under autocast, as accelerate prepares the model."""
    with tempfile.TemporaryDirectory() as folder:
        args = OnGpu(output_dir=folder, per_device_train_batch_size=ROWS, chunk_tokens=chunk_tokens,
                     report_to="none", use_cpu=True, disable_tqdm=True)  # fmt: skip
        data = CirDataset(tiny_training.records(ROWS), tiny_training.Pictures())
        trainer = CirTrainer(head, args, data)
    batch = head.collator()([data[index, 0] for index in range(ROWS)])
    totals = StepTotals(*count_step([batch]))
    forward = head.forward

    def autocast(*inputs, **named):
        with torch.autocast("gpu", torch.bfloat16):
            return convert_to_fp32(forward(*inputs, **named))

    head.forward = autocast
    gpu.Observed.forget()
    loss = trainer.training_step(head.train(), batch, totals)
    found = seen() | {
        "loss": loss.cpu().item(),
        "chunks": len(split_into_chunks(batch, chunk_tokens or 10**6)),
    }
    trained = [value for value in head.parameters() if value.requires_grad]
    found["gradients"] = sorted(
        {str(value.grad.dtype) for value in trained if value.grad is not None}
    )
    found["without_gradient"] = sum(value.grad is None for value in trained)
    head.forward = forward
    return found


def decode(head: CotRetriever) -> dict:
    """Decode chains: what the last steps read, one step apart."""
    rows = tiny_training.records(4)
    pictures = [tiny_training.Pictures().load(row.reference) for row in rows]
    steps = head.eval().decode_chains(pictures, [row.text for row in rows])
    next(steps)
    gpu.Observed.forget()
    next(steps)
    found = seen()
    for state in steps:
        last = state
    gpu.Observed.forget()
    return found | {
        "finite": bool(last.vectors.isfinite().all()),
        "device": str(last.vectors.device),
    }


def encode(head: CotRetriever) -> dict:
    """Encode pictures."""
    pictures = [tiny_training.Pictures().load(row.reference) for row in tiny_training.records(4)]
    gpu.Observed.forget()
    vectors = head.eval().encode_target(pictures)
    return seen() | {"finite": bool(vectors.isfinite().all()), "device": str(vectors.device)}


def family_runs(family: str) -> dict:
    """All runs of one family."""
    found = {}
    for name, lora in (("lora", True), ("full", False)):
        found[f"{name}, plain"] = train(gpu.move(head_of(family, lora)), 0)
    found["lora, chunks"] = train(gpu.move(head_of(family, True)), 200)
    # As it is evaluated on a GPU: all in bfloat16.
    head = gpu.move(head_of(family, False).bfloat16())
    found["decode"] = decode(head)
    found["encode"] = encode(head)
    return found


def faults() -> dict:
    """What must be noticed: a mix of devices, a product in float32 under autocast, a read."""
    weight = gpu.move(torch.nn.Linear(3, 3)).weight
    try:
        message = str(weight + torch.ones(3))
    except RuntimeError as problem:
        message = str(problem)
    gpu.Observed.forget()
    with torch.autocast("gpu", torch.bfloat16):
        torch.mm(weight, weight)
    product = torch.mm(weight, weight)
    found = seen() | {"mix": message}
    product.sum().item()
    return found | {"read": sum(seen()["reads"].values())}


def main() -> None:
    with gpu.Pretended():
        found = {family: family_runs(family) for family in FAMILIES}
        json.dump(found | {"faults": faults()}, sys.stdout)


if __name__ == "__main__":
    main()
