# The only file that knows a cluster: edit it for yours, every job sources it.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit from the root of the checkout}"
export PATH="$PWD/.venv/bin:$PATH"
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE
# One address for all ranks: the first node by name, or by its address where names do not resolve.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if getent hosts "$first" > /dev/null; then MASTER_ADDR=$first
else MASTER_ADDR=$(scontrol show node -o "$first" | grep -oP 'NodeAddr=\K\S+'); fi
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
# Every task learns who it is from the scheduler, by the names all launchers use.
ranked() { srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "$@"' ranked "$@"; }
