"""CIRR, FashionIQ and CIRCO by their official protocols as tasks of mteb, and a retriever as an encoder for it.

Needs the extra `mteb`; nothing else of the library imports this module. mteb brings its models and the form of its
results. What is ranked and what counts is ours, from the annotation files on the disk: the gallery is the split's list,
the reference is in it or not as the benchmark has it, `rank` decides ties against the model, and the numbers are those
of `score_rankings`, as fractions. mteb's own search and measures know no reference to remove and no image sets.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch

from cir_cot import compat  # noqa: F401  # isort: skip
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol, ModelMeta
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader, Dataset

from cir_cot.data import load_benchmark
from cir_cot.data.scoring import score_rankings
from cir_cot.errors import InputError
from cir_cot.evaluation.encode import check_embeddings
from cir_cot.evaluation.evaluate import check_pictures
from cir_cot.evaluation.ranking import rank
from cir_cot.evaluation.readings import query_encoder
from cir_cot.images import ImageStore
from cir_cot.retriever import Retriever, fingerprint, inference


class Rows(Dataset):
    """Pictures of `names`, each with its text where there are texts, decoded when asked for."""

    def __init__(self, images: ImageStore, names: Sequence[str], texts: Sequence[str] = ()):
        self.images, self.names, self.texts = images, names, texts

    @property
    def features(self) -> tuple[str, ...]:
        """Name the columns; mteb's models ask for it."""
        return ("id", "image", *(("text", "query") if self.texts else ()))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        row = {"id": self.names[index], "image": self.images.load(self.names[index])}
        return row | ({"text": self.texts[index], "query": self.texts[index]} if self.texts else {})


def columns(rows: Sequence[dict]) -> dict[str, list]:
    """Turn rows into a batch as mteb's encoders take it."""
    return {key: [row[key] for row in rows] for key in rows[0]}


class CirTask(AbsTaskRetrieval):
    """A validation split below `root`, a folder as `cir-cot score --root` takes it; nothing is downloaded."""

    benchmark: ClassVar[str]

    def __init__(self, root: str | Path):
        super().__init__()
        self.root = root

    def load_data(self, num_proc: int | None = None, **_: object) -> None:
        """Read the annotations; InputError where a file or a picture is missing."""
        if self.data_loaded:
            return
        loaded = [
            (benchmark, benchmark.images())
            for benchmark in load_benchmark(self.benchmark, self.root, "val")
        ]
        for benchmark, images in loaded:
            check_pictures(benchmark, images)
        self.dataset = {
            benchmark.category or "default": {"val": (benchmark, images)}
            for benchmark, images in loaded
        }
        self.data_loaded = True

    def _evaluate_subset(
        self,
        model: EncoderProtocol,
        data_split: tuple,
        *,
        encode_kwargs: dict,
        hf_split: str,
        hf_subset: str,
        prediction_folder: Path | None = None,
        num_proc: int | None = None,
        timer: object,
        **_: object,
    ) -> dict[str, float]:
        """Encode, rank and score one category -> {metric: fraction}; this is what mteb calls."""
        if not isinstance(model, EncoderProtocol):
            raise TypeError(
                f"{self.metadata.name} ranks embeddings; {type(model).__name__} is no encoder"
            )
        benchmark, images = data_split

        def encode(rows: Rows, kind: PromptType, phase: str) -> Tensor:
            size, workers = (
                encode_kwargs.get("batch_size", 32),
                num_proc if (num_proc or 0) > 1 else 0,
            )
            loader = DataLoader(rows, batch_size=size, collate_fn=columns, num_workers=workers)
            where = {"hf_split": hf_split, "hf_subset": hf_subset, "task_metadata": self.metadata}
            with timer(phase, split=hf_split, subset=hf_subset):
                found = model.encode(loader, prompt_type=kind, **where, **encode_kwargs)
            return check_embeddings(unit(found, model.mteb_model_meta), rows.names)

        records = benchmark.records
        asked = Rows(
            images, [record.reference for record in records], [record.text for record in records]
        )
        gallery = encode(Rows(images, benchmark.gallery), PromptType.document, "Encoding corpus")
        rankings, scores, subsets = rank(
            benchmark, encode(asked, PromptType.query, "Encoding queries"), gallery
        )
        if prediction_folder:
            predictions = {
                name: dict(zip(ids, scores[name], strict=True)) for name, ids in rankings.items()
            }
            self._save_task_predictions(
                predictions, model, prediction_folder, hf_split=hf_split, hf_subset=hf_subset
            )
        return fractions(score_rankings(benchmark, rankings, subsets))


def unit(embeddings: object, meta: ModelMeta) -> Tensor:
    """Return embeddings (N, D) whose dot products are the model's similarity; InputError for another similarity."""
    vectors = torch.as_tensor(embeddings).float().cpu()
    if meta.similarity_fn_name == ScoringFunction.DOT_PRODUCT:
        return vectors
    if meta.similarity_fn_name not in (None, ScoringFunction.COSINE):
        raise InputError(
            f"{meta.name}: similarity {meta.similarity_fn_name}; these tasks rank by cosine or dot product"
        )
    return normalize(vectors, dim=-1)


def fractions(metrics: dict) -> dict[str, float]:
    """Return percentages as fractions, as mteb has them; CIRCO's by aspect beside the others, and FashionIQ's Avg."""
    flat = {}
    for name, value in metrics.items():
        parts = (
            {f"{name} {key}": part for key, part in value.items()}
            if isinstance(value, dict)
            else {name: value}
        )
        flat |= {key: part / 100 for key, part in parts.items()}
    return flat | (
        {"Avg": (flat["R@10"] + flat["R@50"]) / 2} if flat.keys() == {"R@10", "R@50"} else {}
    )


def _metadata(
    name: str, description: str, reference: str, main_score: str, subsets: Sequence[str] = ()
) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description=description,
        reference=reference,
        dataset={"path": "local files", "revision": "official"},
        type="Any2AnyRetrieval",
        category="it2i",
        modalities=["text", "image"],
        eval_splits=["val"],
        eval_langs={subset: ["eng-Latn"] for subset in subsets} if subsets else ["eng-Latn"],
        main_score=main_score,
        prompt={
            "query": "Find the picture that this picture becomes by the change that is asked for."
        },
    )


class CirrVal(CirTask):
    """CIRR val: 2,297 pictures, the reference removed; Avg = (R@5 + Rsub@1) / 2."""

    benchmark = "cirr"
    metadata = _metadata(
        "CIRRVal",
        "CIRR rc2 val: real-life pictures, the reference removed from the ranking, and recall within image sets.",
        "https://arxiv.org/abs/2108.04024",
        "Avg",
    )


class FashionIQVal(CirTask):
    """FashionIQ val, original split, a subset for each category; the mean over them is the average that papers report.

    Captions are joined as CLIP4Cir does, and the reference is kept.
    """

    benchmark = "fashioniq"
    metadata = _metadata(
        "FashionIQVal",
        "FashionIQ val, original split: dresses, shirts and tops, each in the gallery of its own category.",
        "https://arxiv.org/abs/1905.12794",
        "Avg",
        ("dress", "shirt", "toptee"),
    )


class CircoVal(CirTask):
    """CIRCO val: 123,403 pictures, the reference kept, several right answers; R@k counts the first alone."""

    benchmark = "circo"
    metadata = _metadata(
        "CIRCOVal",
        "CIRCO val: pictures of COCO 2017 unlabeled, several right answers a query, mAP divided by min(answers, k).",
        "https://arxiv.org/abs/2303.15247",
        "mAP@5",
    )


class CirEncoder:
    """A retriever as mteb's encoder: documents are target pictures, queries a picture and a text.

    `reading` is one of the head's own; None is the head's way. mteb files results under `name`, with a revision made of
    the retriever's vectors, so that another checkpoint is not taken for this one.
    """

    def __init__(
        self, retriever: Retriever, name: str = "cir-cot/retriever", reading: str | None = None
    ):
        self.retriever, self.query = retriever, query_encoder(retriever, reading)
        facts = {
            "name": name,
            "revision": hashlib.sha256(fingerprint(retriever).tobytes()).hexdigest()[:16],
        }
        facts |= {
            "modalities": ["image", "text"],
            "embed_dim": retriever.dim,
            "framework": ["PyTorch"],
        }
        facts |= {
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT,
            "experiment_kwargs": {"reading": reading or "own"},
        }
        self.mteb_model_meta = ModelMeta.create_empty(facts)

    def encode(
        self,
        inputs: DataLoader,
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **_: object,
    ) -> Tensor:
        """Encode batches of mteb's -> (N, D); InputError for what is neither a target nor a composed query."""
        wanted = {"image", "text"} if prompt_type == PromptType.query else {"image"}
        parts = []
        with inference(self.retriever):
            for batch in inputs:
                if wanted != {"image", "text"} & batch.keys():
                    raise InputError(
                        f"{task_metadata.name}: an input of {', '.join(sorted(batch))}; this retriever takes pictures "
                        "as documents, and a picture with a text as a query"
                    )
                if prompt_type == PromptType.query:
                    vectors = self.query(batch["image"], batch["text"]).embeddings
                else:
                    vectors = self.retriever.encode_target(batch["image"])
                parts.append(vectors.float().cpu())
        return torch.cat(parts)

    def similarity(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """Return dot products (N, M) of unit vectors."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """Return dot products (N,) row by row."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)
