"""Run CIRR, FashionIQ and CIRCO as tasks of mteb by their official protocols, and a retriever as mteb's encoder.

This needs the extra `mteb`; nothing else in the library imports this module. mteb contributes its models and the format
of its results. Ranking and scoring are this library's, from the local annotation files: the gallery is the split's
list, the reference is in it or not as the benchmark defines, `rank` breaks ties against the model, and
`score_rankings` computes the numbers, here as fractions: mteb's search removes no reference and scores no image sets.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

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
from cir_cot.data.benchmark import Benchmark
from cir_cot.data.scoring import score_rankings
from cir_cot.errors import InputError
from cir_cot.evaluation.encode import check_embeddings
from cir_cot.evaluation.evaluate import check_pictures
from cir_cot.evaluation.ranking import rank
from cir_cot.evaluation.readings import query_encoder
from cir_cot.fingerprint import fingerprint
from cir_cot.images import ImageStore
from cir_cot.retriever import Retriever, inference


class Rows(Dataset):
    """Hold pictures by name, each with its text where there are texts; a picture is decoded when it is needed."""

    def __init__(self, images: ImageStore, names: Sequence[str], texts: Sequence[str] = ()):
        self.images = images
        self.names = names
        self.texts = texts

    @property
    def features(self) -> tuple[str, ...]:
        """Name the columns, as mteb's models expect it."""
        return ("id", "image", *(("text", "query") if self.texts else ()))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        name = self.names[index]
        row: dict[str, object] = {"id": name, "image": self.images.load(name)}
        if self.texts:
            row["text"] = self.texts[index]
            row["query"] = self.texts[index]
        return row


def columns(rows: Sequence[dict]) -> dict[str, list]:
    """Collate rows into columns, the form of mteb's batches."""
    return {key: list(map(itemgetter(key), rows)) for key in rows[0]}


class CirTask(AbsTaskRetrieval):
    """Evaluate on a validation split below `root`, a folder as `cir-cot score --root` takes it; nothing is downloaded.

    Example:
        mteb.evaluate(CirEncoder(retriever), CirrVal("data/cirr"))
    """

    benchmark: ClassVar[str]
    data_loaded: bool

    def __init__(self, root: str | Path):
        super().__init__()
        self.root = root

    def load_data(self, num_proc: int | None = None, **_: object) -> None:
        """Read the annotations; InputError where a file or a picture is missing."""
        if self.data_loaded:
            return
        dataset = {}
        for benchmark in load_benchmark(self.benchmark, self.root, "val"):
            images = benchmark.images()
            check_pictures(benchmark, images)
            dataset[benchmark.category or "default"] = {"val": (benchmark, images)}
        self.dataset = dataset
        self.data_loaded = True  # mteb calls this again for every model

    def _evaluate_subset(
        self,
        model: EncoderProtocol,
        data_split: tuple[Benchmark, ImageStore],
        *,
        encode_kwargs: dict[str, Any],
        hf_split: str,
        hf_subset: str,
        prediction_folder: Path | None = None,
        num_proc: int | None = None,
        timer: Callable[..., AbstractContextManager],
        **_: object,
    ) -> dict[str, float]:
        """Encode, rank and score one category -> {metric: fraction}; mteb calls this."""
        if not isinstance(model, EncoderProtocol):
            raise TypeError(
                f"{self.metadata.name} ranks embeddings; {type(model).__name__} is no encoder"
            )
        benchmark, images = data_split

        def encode(rows: Rows, kind: PromptType, phase: str) -> Tensor:
            loader = DataLoader(
                rows,
                batch_size=encode_kwargs.get("batch_size", 32),
                collate_fn=columns,
                num_workers=num_proc if num_proc is not None and num_proc > 1 else 0,
            )
            with timer(phase, split=hf_split, subset=hf_subset):
                found = model.encode(
                    loader,
                    prompt_type=kind,
                    hf_split=hf_split,
                    hf_subset=hf_subset,
                    task_metadata=self.metadata,
                    **encode_kwargs,
                )
            return check_embeddings(unit(found, model.mteb_model_meta), rows.names)

        # Encode both sides.
        references = [record.reference for record in benchmark.records]
        texts = [record.text for record in benchmark.records]
        gallery = encode(Rows(images, benchmark.gallery), PromptType.document, "Encoding corpus")
        queries = encode(Rows(images, references, texts), PromptType.query, "Encoding queries")
        # Rank and score by the benchmark's protocol.
        rankings, scores, subsets = rank(benchmark, queries, gallery)
        if prediction_folder:
            predictions = {
                name: dict(zip(ids, scores[name], strict=True)) for name, ids in rankings.items()
            }
            self._save_task_predictions(
                predictions, model, prediction_folder, hf_split=hf_split, hf_subset=hf_subset
            )
        return fractions(score_rankings(benchmark, rankings, subsets))


def unit(embeddings: object, meta: ModelMeta) -> Tensor:
    """Return embeddings (N, D) whose dot product is the model's similarity.

    InputError for a model whose similarity is neither cosine nor dot product.
    """
    vectors = torch.as_tensor(embeddings).float().cpu()  # (N, D)
    if meta.similarity_fn_name == ScoringFunction.DOT_PRODUCT:
        return vectors
    if meta.similarity_fn_name not in (None, ScoringFunction.COSINE):
        raise InputError(
            f"{meta.name}: similarity {meta.similarity_fn_name}; these tasks rank by cosine or dot product"
        )
    return normalize(vectors, dim=-1)


def fractions(metrics: dict) -> dict[str, float]:
    """Turn percentages into fractions, as mteb has them; CIRCO's aspects get names, and FashionIQ its Avg."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            for key, part in value.items():
                flat[f"{name} {key}"] = part / 100
        else:
            flat[name] = value / 100
    if flat.keys() == {"R@10", "R@50"}:
        flat["Avg"] = (flat["R@10"] + flat["R@50"]) / 2
    return flat


def _metadata(
    name: str, description: str, reference: str, main_score: str, subsets: Sequence[str] = ()
) -> TaskMetadata:
    """Return mteb's description of a task; `subsets` are its categories."""
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
    """Evaluate on CIRR val: 2,297 pictures, the reference removed; Avg = (R@5 + Rsub@1) / 2."""

    benchmark = "cirr"
    metadata = _metadata(
        "CIRRVal",
        "CIRR rc2 val: real-life pictures, the reference removed from the ranking, and recall within image sets.",
        "https://arxiv.org/abs/2108.04024",
        "Avg",
    )


class FashionIQVal(CirTask):
    """Evaluate on FashionIQ val, original split, each category as a subset; papers report the mean over the three.

    Captions are joined as in CLIP4Cir, and the reference is kept.
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
    """Evaluate on CIRCO val: 123,403 pictures, the reference kept, several targets; R@k counts the first one only."""

    benchmark = "circo"
    metadata = _metadata(
        "CIRCOVal",
        "CIRCO val: pictures of COCO 2017 unlabeled, several right answers a query, mAP divided by min(answers, k).",
        "https://arxiv.org/abs/2303.15247",
        "mAP@5",
    )


class CirEncoder:
    """Let mteb encode with a retriever: documents are target pictures, queries a picture and a text.

    Args:
        retriever: Any head of this library.
        name: Under which mteb stores results. Their revision is a digest of the retriever's embeddings, so that two
            checkpoints are never confused.
        reading: One of the head's own readings; None is its default.
    """

    def __init__(
        self, retriever: Retriever, name: str = "cir-cot/retriever", reading: str | None = None
    ):
        self.retriever = retriever
        self.query = query_encoder(retriever, reading)
        facts: dict[str, Any] = {
            "name": name,
            "revision": hashlib.sha256(fingerprint(retriever).tobytes()).hexdigest()[:16],
            "modalities": ["image", "text"],
            "embed_dim": retriever.dim,
            "framework": ["PyTorch"],
            "similarity_fn_name": ScoringFunction.DOT_PRODUCT,  # of unit vectors: the cosine
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
        """Encode mteb's batches -> (N, D); InputError for inputs that are neither targets nor composed queries."""
        wanted = {"image", "text"} if prompt_type == PromptType.query else {"image"}
        parts = []
        with inference(self.retriever):
            for batch in inputs:
                # A text without a picture, say, is a task of another kind.
                if wanted != {"image", "text"} & batch.keys():
                    raise InputError(
                        f"{task_metadata.name}: an input of {', '.join(sorted(batch))}; this retriever takes pictures "
                        "as documents, and a picture with a text as a query"
                    )
                if prompt_type == PromptType.query:
                    vectors = self.query(batch["image"], batch["text"]).embeddings
                else:
                    vectors = self.retriever.encode_target(batch["image"])
                parts.append(vectors.float().cpu())  # (B, D)
        return torch.cat(parts)

    def similarity(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """Return dot products (N, M) of unit vectors."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Tensor, embeddings2: Tensor) -> Tensor:
        """Return dot products (N,) row by row."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(dim=-1)
