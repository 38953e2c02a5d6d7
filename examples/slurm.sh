#!/usr/bin/env bash
#SBATCH --job-name=anl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# An `anl` command on all GPUs of one node, or of several. From the repository's root, which all nodes share:
#   make setup
#   .venv/bin/anl profile paper && .venv/bin/anl make benchmark    # reads the indices that profiles/paper.yaml names
#   sbatch examples/slurm.sh train main
#   sbatch --nodes=2 examples/slurm.sh train main --seeds 0
# Each node starts one launcher, which starts a process for each GPU. Submit an interrupted job again, with as many nodes,
# to continue it.
set -euo pipefail
. .venv/bin/activate
gpus=${SLURM_GPUS_ON_NODE:-1}
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
threads=$(( ${SLURM_CPUS_PER_TASK:-1} / gpus ))
export OMP_NUM_THREADS=$(( threads > 0 ? threads : 1 ))
# shellcheck disable=SC2016  # SLURM_NODEID differs between nodes
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu --mixed_precision no --dynamo_backend no \
  --num_machines "$SLURM_NNODES" --num_processes "$0" --machine_rank "$SLURM_NODEID" --main_process_ip "$1" \
  --main_process_port 29500 --rdzv_backend static --module anl.cli "${@:2}"' "$(( SLURM_NNODES * gpus ))" "$main" "$@"
