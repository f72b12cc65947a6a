"""A tiny training set-up that the trainer's tests and the processes of the distributed test share."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from cir_cot.heads.cot import CotRetriever
from cir_cot.models.backbone import load_backbone
from cir_cot.models.tiny_qwen import tiny_model, tiny_processor, tiny_tokenizer
from cir_cot.records import Cot, Record, write_records
from cir_cot.training.arguments import CirArguments
from cir_cot.training.dataset import CirDataset
from cir_cot.training.trainer import CirTrainer

COLOURS = ("red", "green", "blue", "yellow", "cyan", "magenta")
SIZES = {"hidden": 32, "intermediate": 64, "layers": 2, "vision_depth": 1, "vision_hidden": 32}


class Pictures:
    """Stands in for a folder of pictures: the id "a-b" is a picture of colour a with a bar of colour b."""

    def load(self, name: str) -> Image.Image:
        ground, bar = name.split("-")
        picture = Image.new("RGB", (56, 56), ground)
        ImageDraw.Draw(picture).rectangle((14, 0, 28, 56), fill=bar)
        return picture


def record(index: int, reference: str, bar: str) -> Record:
    """The query "make the bar <bar>"; every third one has no chain, chains differ in length."""
    ground = reference.split("-")[0]
    cot = Cot(
        f"a {reference} picture",
        "change the bar" + ", keep it" * (index % 2),
        f"{ground} with a {bar} bar",
    )
    text, target = f"make the bar {bar}", f"{ground}-{bar}"
    return Record(
        str(index),
        reference,
        text,
        (target,),
        None if index % 3 == 2 else cot,
        source=f"toy/{ground}",
    )


def records(count: int) -> list[Record]:
    """`count` queries over six references; some share their target, so that false negatives occur."""
    return [
        record(i, f"{COLOURS[i % 6]}-{COLOURS[(i + 1) % 6]}", COLOURS[(i // 6 % 3 + 2 + i) % 6])
        for i in range(count)
    ]


def write_dataset(root: Path, records: list[Record]) -> None:
    """A folder dataset's train split of these queries, with real files."""
    (root / "images").mkdir(parents=True)
    images = sorted({image for record in records for image in (record.reference, *record.targets)})
    for image in images:
        Pictures().load(image).save(root / "images" / f"{image}.png")
    (root / "gallery.train.txt").write_text("\n".join(images) + "\n")
    write_records(root / "records.train.jsonl", records)


def tiny_head(lora: bool = True, dropout: float = 0.0, **settings) -> CotRetriever:
    """A chain head on a tiny Qwen2.5-VL, the same weights every time."""
    rows = records(36)
    corpus = [
        f"{row.text} {row.cot.caption} {row.cot.reasoning} {row.cot.conclusion}"
        for row in rows
        if row.cot
    ]
    tokenizer = tiny_tokenizer(corpus, vocab_size=400)
    base = tiny_model("qwen2_5_vl", tokenizer, **SIZES), tiny_processor("qwen2_5_vl", tokenizer)
    torch.manual_seed(0)  # for the adapter and the projection
    adapter = {"r": 4, "alpha": 8, "dropout": dropout} if lora else None
    return CotRetriever(load_backbone(base, lora=adapter), "tiny", temperature=0.1, **settings)


def awake_head(**options) -> CotRetriever:
    """A head whose adapters do something: LoRA's B starts at zero, where A has no gradient and dropout no effect."""
    return awaken(tiny_head(projection=16, learn_temperature=True, **options))


def awaken(head: CotRetriever) -> CotRetriever:
    for name, value in head.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1, generator=torch.Generator().manual_seed(1))
    return head


def trainer(
    folder, head=None, rows: int = 22, callbacks=None, validation=None, **arguments
) -> CirTrainer:
    """A trainer of `head` on `rows` queries; four rows a batch unless said otherwise, logging every step."""
    options = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    args = CirArguments(**options | arguments)
    return CirTrainer(
        head or tiny_head(),
        args,
        CirDataset(records(rows), Pictures()),
        validation,
        callbacks=callbacks,
    )
