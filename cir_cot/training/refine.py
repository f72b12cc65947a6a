"""Rank-rewarded refinement: a trained retriever draws chains of its training queries and learns from their ranks.

The start's weights are never changed: a LoRA adapter over them is trained, and without it the same model is the frozen
embedder of the reward and the reference of the divergence. So a score cannot grow by growing similarities (GRAPE, arXiv
2509.23370). Everything that is random is a function of the seed and the step: a resumed run is bitwise the same.
"""

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cir_cot.errors import InputError
from cir_cot.evaluation.encode import encode_gallery
from cir_cot.files import read_json, replacing, write_json, write_text_atomic
from cir_cot.heads.cot import CotRetriever
from cir_cot.images import ImageStore
from cir_cot.models.adapter import add_lora
from cir_cot.models.architectures import linear_layers
from cir_cot.models.loading import load_tensors
from cir_cot.prompts import text_to_cot
from cir_cot.provenance import git_state, package_versions
from cir_cot.records import Record

from .group_policy import Policy, advantages, policy_losses, reciprocal_ranks, similarities
from .rollouts import Rollouts, draw, read_rollouts, seed_of

REWARDS = {"rank": reciprocal_ranks, "similarity": similarities}
STATE = "refine_state.safetensors"
LOG = "refine.jsonl"
RUN = "run.json"


@dataclass(frozen=True)
class Refinement:
    """How a retriever is refined; the defaults without a source are ours.

    Attributes:
        steps: updates of the weights, each of new chains.
        queries: of a step.
        samples: K, chains of a query; 8 as UME-R1 and trl have it.
        passes: times that a step's chains are learned from.
        temperature: of the draws.
        learning_rate: of Adam, constant.
        reward: "rank" or "similarity", the control.
        form: reward of a chain whose form had not to be forced.
        length: what a chain of `max_new_tokens` costs.
        rank_lora: r of the adapter; alpha is 2 r.
        seed: of queries and draws.
        save_every: steps between checkpoints.
        policy: weights of the loss.
    """

    steps: int = 200
    queries: int = 8
    samples: int = 8
    passes: int = 1
    temperature: float = 1.0
    learning_rate: float = 1e-4
    reward: str = "rank"
    form: float = 0.1
    length: float = 0.1
    rank_lora: int = 16
    seed: int = 0
    save_every: int = 20
    policy: Policy = Policy()

    def __post_init__(self) -> None:
        for name in ("steps", "queries", "passes", "rank_lora", "save_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)} is not at least 1")
        if self.samples < 2:
            raise InputError(f"samples {self.samples}: chains are compared, so give at least 2")
        if self.reward not in REWARDS:
            raise InputError(f"reward {self.reward!r} is not one of {', '.join(REWARDS)}")


class Refiner:
    """Refine a chain head on the queries of one image store.

    Args:
        head: a trained head; its weights are merged, and stay as they are below the new adapter.
        records: queries with targets; their chains, if any, are only compared with.
        images: the store of their pictures.
        gallery: image ids of the fixed index; targets are added to it.
        plan: how.
        folder: holds the log and the checkpoint.
    """

    def __init__(
        self,
        head: CotRetriever,
        records: Sequence[Record],
        images: ImageStore,
        gallery: Sequence[str],
        plan: Refinement,
        folder: Path,
    ):
        self.head = head.eval()
        self.records = records
        self.images = images
        self.plan = plan
        self.folder = folder
        self.step = 0
        # The fixed index, by the start's weights.
        targets = [name for record in records for name in record.targets]
        names = list(dict.fromkeys([*gallery, *targets]))
        self.column = {name: number for number, name in enumerate(names)}
        self.gallery = encode_gallery(head, names, images, head.batch_size)
        self.centre = self.gallery.mean(dim=0)
        self._adapt()
        self.parameters = {n: p for n, p in head.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=plan.learning_rate)

    def _adapt(self) -> None:
        """Freeze the start, and put an adapter over it that does nothing yet."""
        backbone = self.head.backbone.merge()
        backbone.frozen = False
        self.head.requires_grad_(False)
        lora = {"r": self.plan.rank_lora, "alpha": 2 * self.plan.rank_lora, "dropout": 0.0}
        torch.manual_seed(self.plan.seed)
        layers = linear_layers(backbone.config.model_type)
        backbone.model = cast(Any, add_lora(backbone.plain, lora, layers, None))
        self.head.eval()

    def run(self, tell: Callable[[dict], None] = lambda line: None) -> None:
        """Take the steps that are left, telling each one's log line."""
        while self.step < self.plan.steps:
            line = self.take_step()
            with (self.folder / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            tell(line)
            if self.step % self.plan.save_every == 0 or self.step == self.plan.steps:
                self.save_state()

    def chosen_records(self) -> list[Record]:
        """Return the queries of the next step: those of a permutation for each pass over the data."""
        chosen = []
        for place in range(self.step * self.plan.queries, (self.step + 1) * self.plan.queries):
            turn, number = divmod(place, len(self.records))
            order = list(range(len(self.records)))
            random.Random(seed_of(self.plan.seed, "order", turn)).shuffle(order)
            chosen.append(self.records[order[number]])
        return chosen

    def take_step(self) -> dict:
        """Draw chains, reward them, learn from them -> the step's log line."""
        plan = self.plan
        # Draw K chains of each query.
        records = [record for record in self.chosen_records() for _ in range(plan.samples)]
        pictures = [self.images.load(record.reference) for record in records]
        seeds = [seed_of(plan.seed, self.step, row) for row in range(len(records))]
        texts = [record.text for record in records]
        drawn = draw(self.head, pictures, texts, seeds, plan.temperature)
        # Read them by the start's weights, and reward them.
        with torch.no_grad(), cast(Any, self.head.backbone.model).disable_adapter():
            start, frozen = read_rollouts(self.head, drawn)
        rewards, line = self._reward(records, drawn, frozen.cpu())
        advantage = advantages(rewards, plan.samples).to(start.device)  # (R,)
        # Learn.
        of_token = advantage.repeat_interleave(drawn.chosen.sum(dim=1).to(start.device))  # (S,)
        old = start
        for turn in range(plan.passes):
            new, vectors = read_rollouts(self.head, drawn)
            old = new.detach() if turn == 0 else old
            loss, divergence = policy_losses(new, old, start, of_token, plan.policy)
            drift = (1 - (vectors * frozen).sum(dim=-1)).mean() + self._target_drift(records)
            total = loss.mean() + plan.policy.kl * divergence.mean() + plan.policy.anchor * drift
            self.optimizer.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
            self.optimizer.step()
            if turn == 0:
                line["kl"] = divergence.mean().item()
                line["drift"] = drift.item()
                line["random_similarity"] = (vectors.detach().cpu() @ self.centre).mean().item()
        self.step += 1
        return {"step": self.step} | {name: round(value, 6) for name, value in line.items()}

    def _target_drift(self, records: Sequence[Record]) -> Tensor:
        """Return how far the step's targets have moved from the index."""
        if self.head.foreign is not None:
            return torch.zeros((), device=self.head.backbone.device)
        names = list(dict.fromkeys(record.targets[0] for record in records))
        inputs = self.head.target_inputs()([self.images.load(name) for name in names])
        device = self.head.backbone.device
        vectors = self.head.embed_targets({key: part.to(device) for key, part in inputs.items()})
        stored = self.gallery[[self.column[name] for name in names]].to(device)
        return (1 - (vectors * normalize(stored, dim=-1)).sum(dim=-1)).mean()

    def _reward(
        self, records: Sequence[Record], drawn: Rollouts, vectors: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Reward R chains by the start's embeddings (R, D) -> (R,), and what is logged of them."""
        targets = [[self.column[name] for name in record.targets] for record in records]
        found = REWARDS[self.plan.reward](vectors, self.gallery, targets)
        good = torch.tensor([float(not row.flag) for row in drawn.rows])
        lengths = torch.tensor([float(len(row.ids)) for row in drawn.rows])
        cost = self.plan.length * lengths / self.head.max_new_tokens
        line = {"reward": found.mean().item(), "form": good.mean().item()}
        line["length"] = lengths.mean().item()
        # Conclusions that equal the annotated ones, where there are such.
        texts = self.head.backbone.processor.tokenizer.batch_decode([r.ids for r in drawn.rows])
        pairs = [(text_to_cot(t), r.cot) for t, r in zip(texts, records, strict=True) if r.cot]
        if pairs:
            right = [bool(a and b and a.conclusion == b.conclusion) for a, b in pairs]
            line["exact_conclusion"] = sum(right) / len(right)
        return found + self.plan.form * good - cost, line

    def save_state(self) -> None:
        """Write the adapter, Adam's moments and the step, in one file that is there completely or not at all."""
        tensors = {"step": torch.tensor(float(self.step))}
        for name, parameter in self.parameters.items():
            tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value.detach().cpu().contiguous()
        with replacing(self.folder / STATE) as path:
            safetensors.torch.save_file(tensors, path)

    def load_state(self) -> None:
        """Go on from the checkpoint, if there is one; log lines behind it are dropped."""
        if (self.folder / STATE).exists():
            tensors = load_tensors(self.folder / STATE)
            self.step = int(tensors["step"])
            for name, parameter in self.parameters.items():
                with torch.no_grad():
                    parameter.copy_(tensors[f"weight.{name}"])
                kept = ("step", "exp_avg", "exp_avg_sq")
                moments = {key: tensors[f"{key}.{name}"] for key in kept}
                state = {key: value.clone() for key, value in moments.items()}
                for key in kept[1:]:
                    state[key] = state[key].to(parameter.device)
                self.optimizer.state[parameter] = state
        log = self.folder / LOG
        if log.exists():
            kept_lines = log.read_text(encoding="utf-8").splitlines()[: self.step]
            write_text_atomic(log, "".join(f"{line}\n" for line in kept_lines))


def check_refine_folder(folder: Path, asked: dict, argv: Sequence[str]) -> None:
    """Claim a new or empty folder, or find that it is of the same run; InputError otherwise.

    Args:
        folder: of the result.
        asked: what makes a run the same run, as JSON holds it.
        argv: the command line, for run.json.
    """
    path = folder / RUN
    if path.exists():
        held = read_json(path)
        if not isinstance(held, dict) or held.get("arguments") != asked:
            raise InputError(f"{folder}: holds a run with other settings; give another --out")
    elif folder.exists() and any(not file.name.startswith(".") for file in folder.iterdir()):
        raise InputError(f"{folder}: is not empty; give a new folder")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        facts = {"argv": list(argv), "arguments": asked, "git": git_state()}
        write_json(path, facts | {"versions": package_versions(), "seed": asked["seed"]})


def run_facts(plan: Refinement, **asked: object) -> dict:
    """Return what makes a run the same run, as JSON holds it."""
    return json.loads(json.dumps(asdict(plan) | asked))
