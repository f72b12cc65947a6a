"""Which ways of starting a run on several processes can work: the others are refused before any model is loaded."""

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers import TrainingArguments

from cir_cot.errors import InputError


def zero_stage(args: TrainingArguments) -> int:
    """Stage of DeepSpeed's ZeRO, 0 without DeepSpeed."""
    return args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else 0


def uses_fsdp(args: TrainingArguments) -> bool:
    """Whether FSDP shards the model, asked for by --fsdp or by accelerate launch, which says so before any model is."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def shards_parameters(args: TrainingArguments) -> bool:
    """Whether a process holds a part of each weight only, so that all must run each layer at the same moment."""
    return zero_stage(args) == 3 or uses_fsdp(args)


def refuse_impossible(
    args: TrainingArguments,
    quantization: str | None = None,
    trains_vision: bool = False,
    vision_cache: bool = False,
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
    if uses_fsdp(args) and args.distributed_state.distributed_type in (
        DistributedType.NO,
        DistributedType.MULTI_CPU,
    ):
        raise InputError("FSDP needs several accelerators: accelerate leaves it out on CPUs and in a single process, "
                         "and every process would hold the whole model; start without it")  # fmt: skip
    if quantization and args.fp16:
        raise InputError(
            f"quantization {quantization} with fp16: the dequantised products overflow; use --bf16"
        )


def prepare_deepspeed(args: TrainingArguments) -> None:
    """Let each process load whole weights under ZeRO-3, which DeepSpeed partitions later; tell it of CPU processes.

    transformers would partition weights while loading, and the retrieval token's row could not be written. On CPUs
    accelerate starts the processes' group without DeepSpeed, which then counts one process.
    """
    if zero_stage(args) and args.use_cpu and args.world_size > 1:
        import deepspeed

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    if zero_stage(args) == 3:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
