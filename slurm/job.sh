# shellcheck shell=bash
# What all jobs share: one task a rank, and back into the queue whenever the work can go on.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit from the root of the checkout}"
source slurm/env.sh
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}" # srun no longer takes it over from sbatch
end=$(date --date="$(squeue -ho %e -j "$SLURM_JOB_ID")" +%s 2> /dev/null) || end='' # no limit
export SLURM_JOB_END_TIME="${SLURM_JOB_END_TIME:-$end}" # which newer SLURM tells by itself
AGAIN=75          # status of a command that saved itself and goes on when it is started again
MOST_RESTARTS=100 # of one that never gets anywhere in its time
# A task of an array by its own name: the number of its first task is also that of the whole array.
job=$SLURM_JOB_ID
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

say() { echo "slurm: $(date -Is) $*"; }
# One address for all ranks: the first node by name, or by its address where names do not resolve.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if getent hosts "$first" > /dev/null; then MASTER_ADDR=$first
else MASTER_ADDR=$(scontrol show node -o "$first" | grep -oP 'NodeAddr=\K\S+'); fi
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000)) # below the ports that connections are given

# Every task learns who it is from the scheduler, by the names all launchers use. Tasks that need each other end together.
# shellcheck disable=SC2016
tasks() {
  srun --kill-on-bad-exit="${TOGETHER:-1}" bash -c \
    'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "$@"' - "$@"
}

# SLURM's warning goes on to the tasks. Who has not left after a while is ended, while there is time to queue again.
warned() {
  asked=yes
  say "asked to leave"
  scancel --quiet --signal=USR1 "$SLURM_JOB_ID.0" || true
  (sleep 90 && scancel --quiet "$SLURM_JOB_ID.0") &
}

# Whether each node still starts a process. SLURM itself may see only later why the tasks elsewhere have failed.
nodes_answer() { timeout 60 srun --overlap --nodes="$SLURM_NNODES" --ntasks="$SLURM_NNODES" --ntasks-per-node=1 true; }

# ranked COMMAND...: run it on all tasks, and end this job with its status, or queue it again where the command goes on.
ranked() {
  local status=0 steps asked='' ended=''
  say "$SLURM_JOB_NAME $job begins on $SLURM_JOB_NODELIST, start $((${SLURM_RESTART_COUNT:-0} + 1))"
  trap warned USR1
  trap 'ended=yes' TERM # SLURM ends the job, and knows whether it is to be queued again
  tasks "$@" &
  steps=$!
  wait "$steps" || status=$?
  while kill -0 "$steps" 2> /dev/null; do status=0; wait "$steps" || status=$?; done
  if [ "$status" = 0 ]; then say "done"; fi
  if [ "$status" = 0 ] || [ -n "$ended" ]; then exit "$status"; fi
  if [ "$status" != $AGAIN ] && [ -z "$asked" ] && nodes_answer; then exit "$status"; fi
  if [ "${SLURM_RESTART_COUNT:-0}" -ge $MOST_RESTARTS ]; then
    say "no end after $MOST_RESTARTS restarts"
    exit "$status"
  fi
  say "goes on later"
  exec scontrol requeue "$job"
}
