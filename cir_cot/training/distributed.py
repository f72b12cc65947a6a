"""Refuse settings of distributed training that cannot work, before any model is loaded."""

from cir_cot import compat  # noqa: F401  # isort: skip
from accelerate.utils import DistributedType, parse_flag_from_env
from transformers import TrainingArguments

from cir_cot.errors import InputError
from cir_cot.ranks import ALONE, Ranks


def training_ranks(args: TrainingArguments) -> Ranks:
    """Return this process among those that train together."""
    state = args.distributed_state
    if state is None or args.world_size == 1:
        return ALONE
    return Ranks(args.process_index, args.world_size, state.wait_for_everyone, args.device)


def zero_stage(args: TrainingArguments) -> int:
    """Return the stage of DeepSpeed's ZeRO, 0 without DeepSpeed."""
    return args.deepspeed_plugin.zero_stage if args.deepspeed_plugin is not None else 0


def uses_fsdp(args: TrainingArguments) -> bool:
    """Return whether FSDP will shard the model, by --fsdp or by the settings of accelerate launch."""
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def shards_parameters(args: TrainingArguments) -> bool:
    """Return whether each process holds only a part of every weight.

    All processes must then run each layer at the same moment.
    """
    return zero_stage(args) == 3 or uses_fsdp(args)


def refuse_impossible(
    args: TrainingArguments,
    quantization: str | None = None,
    trains_vision: bool = False,
    vision_cache: bool = False,
) -> None:
    """Raise InputError, with the reason and the cure, for settings that cannot work together."""
    # A vision cache needs a frozen tower that one process can run alone.
    stage = zero_stage(args)
    if vision_cache and trains_vision:
        raise InputError(
            "vision_cache with train_vision: features of a tower that trains are out of date after "
            "a step; leave one of them out"
        )
    if vision_cache and shards_parameters(args):
        raise InputError(
            "vision_cache with ZeRO-3 or FSDP: a process that has all features would not join the "
            "others in gathering the tower's weights, and all would wait forever; use DDP or ZeRO-2"
        )
    # Packed 4- and 8-bit weights stay on one device and need bfloat16 or float32 around them.
    if quantization and stage == 3:
        raise InputError(
            f"quantization {quantization} with ZeRO-3: packed 4- and 8-bit weights cannot be "
            "partitioned; use train/configs/deepspeed/zero2.json, which does not partition weights"
        )
    if quantization and uses_fsdp(args):
        raise InputError(
            f"quantization {quantization} with FSDP: packed 4- and 8-bit weights cannot be sharded; "
            "use DDP (train/configs/accelerate/gpus8.yaml) or ZeRO-2"
        )
    if quantization and args.fp16:
        raise InputError(
            f"quantization {quantization} with fp16: the dequantised products overflow; use --bf16"
        )
    # FSDP without several accelerators is silently left out.
    alone = (DistributedType.NO, DistributedType.MULTI_CPU)
    if uses_fsdp(args) and args.distributed_state.distributed_type in alone:
        raise InputError(
            "FSDP needs several accelerators: accelerate leaves it out on CPUs and in a single "
            "process, and every process would hold the complete model; start without it"
        )


def prepare_deepspeed(args: TrainingArguments) -> None:
    """Make each process load complete weights under ZeRO-3; DeepSpeed partitions them later.

    transformers would partition weights while loading, and the embedding of the retrieval token
    could not be written. On CPUs accelerate starts the process group without DeepSpeed, which then
    counts one process, so it is initialised here.
    """
    # Two CPU processes.
    if zero_stage(args) and args.use_cpu and args.world_size > 1:
        import deepspeed

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    # Complete weights while loading.
    if zero_stage(args) == 3:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
