#!/usr/bin/env bash
# Two nodes of eight GPUs under SLURM:  sbatch train/configs/slurm.sh --config train/configs/cirr_7b.yaml --root DIR
# A job that is killed or preempted is queued again and goes on from its newest complete checkpoint.
#SBATCH --job-name=cir-cot
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HEAD_NODE="$head_node" OMP_NUM_THREADS=8
# The rank is read on each node, hence the single quotes.
srun --kill-on-bad-exit=1 bash -c 'accelerate launch --config_file train/configs/accelerate/nodes2.yaml \
  --machine_rank "$SLURM_NODEID" --main_process_ip "$HEAD_NODE" --main_process_port 29500 \
  train/sft.py --resume_from_checkpoint last "$@"' cir-cot "$@"
