"""Which ways of starting a run on several processes can work: the others are refused before any model is loaded."""

from . import _torchvision  # noqa: F401  # isort: skip
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from .records import InputError


def zero_stage(args: TrainingArguments) -> int:
    """Stage of DeepSpeed's ZeRO, 0 without DeepSpeed."""
    return args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else 0


def uses_fsdp(args: TrainingArguments) -> bool:
    """Whether FSDP shards the model, asked for by --fsdp or by accelerate's configuration."""
    return bool(args.fsdp) or args.distributed_state.distributed_type == DistributedType.FSDP


def shards_parameters(args: TrainingArguments) -> bool:
    """Whether a process holds a part of each weight only, so that all must run each layer at the same moment."""
    return zero_stage(args) == 3 or uses_fsdp(args)


def refuse_impossible(
    args: TrainingArguments, quantization: str | None = None, trains_vision: bool = False, vision_cache: bool = False
) -> None:
    """InputError, with the reason and the cure, for settings that cannot work together."""
    stage = zero_stage(args)
    if vision_cache and trains_vision:
        raise InputError("vision_cache with train_vision: features of a tower that trains are out of date after a "
                         "step; leave one of them out")  # fmt: skip
    if vision_cache and shards_parameters(args):
        raise InputError("vision_cache with ZeRO-3 or FSDP: a process that has all features would not join the others "
                         "in gathering the tower's weights, and all would wait forever; use DDP, ZeRO-2")  # fmt: skip
    if quantization and stage == 3:
        raise InputError(f"quantization {quantization} with ZeRO-3: packed 4- and 8-bit weights cannot be partitioned; "
                         "use train/configs/deepspeed/zero2.json, which leaves weights whole")  # fmt: skip
    if quantization and uses_fsdp(args):
        raise InputError(f"quantization {quantization} with FSDP: packed 4- and 8-bit weights cannot be sharded; use "
                         "DDP (train/configs/accelerate/gpus8.yaml) or ZeRO-2")  # fmt: skip
    if stage and args.use_cpu and args.world_size > 1:
        raise InputError("DeepSpeed on CPUs runs one process here (its batch size comes out wrong under accelerate "
                         "with several); use torchrun without DeepSpeed")  # fmt: skip
    if quantization and args.fp16:
        raise InputError(f"quantization {quantization} with fp16: the dequantised products overflow; use --bf16")


def load_whole_weights(args: TrainingArguments) -> None:
    """Let each process load whole weights under ZeRO-3, which DeepSpeed partitions later.

    transformers would partition them while loading, and the retrieval token's row could not be written.
    """
    if zero_stage(args) == 3:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
