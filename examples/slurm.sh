#!/usr/bin/env bash
#SBATCH --job-name=anl
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# One training on all GPUs of one node, or of several: from the repository's root, which all nodes see,
#   sbatch examples/slurm.sh train --group adhoc --target prior --step 1 --attention affinity --seed 0
#   sbatch --nodes=2 examples/slurm.sh train --group adhoc --target prior --step 1 --attention affinity --seed 0
# Options before the command go to anl: sbatch examples/slurm.sh --params my.yaml train ...
# Each node starts one launcher, and that one process a GPU. A job that was stopped goes on where it was when submitted again
# with as many nodes.
set -euo pipefail
. .venv/bin/activate
gpus=${SLURM_GPUS_ON_NODE:-1}
main=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export OMP_NUM_THREADS=$(( ${SLURM_CPUS_PER_TASK:-1} / gpus > 0 ? ${SLURM_CPUS_PER_TASK:-1} / gpus : 1 ))
# shellcheck disable=SC2016  # SLURM_NODEID is each node's own
srun --kill-on-bad-exit=1 bash -c 'exec accelerate launch --multi_gpu --mixed_precision no --dynamo_backend no \
  --num_machines "$SLURM_NNODES" --num_processes "$0" --machine_rank "$SLURM_NODEID" --main_process_ip "$1" \
  --main_process_port 29500 --rdzv_backend static --module anl.cli "${@:2}"' "$(( SLURM_NNODES * gpus ))" "$main" "$@"
