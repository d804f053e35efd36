# shellcheck shell=bash disable=SC2154
# The part of slurm/submit that says how a chain is; what cannot be found out is left out.
set +e
[ -f "$logs/jobs" ] || die "chain $chain was never submitted; slurm/submit $chain"

# A line for each task of a job: state|reason|time|restarts|number. SLURM itself forgets a job minutes after its end,
# its accounts, where a cluster keeps them, do not, and a log that says "done" at its end was done.
tasks_of() { # NAME JOB
  squeue -h -t all -r -j "$2" -O 'State:|,Reason:|,TimeUsed:|,RestartCnt:|,JobArrayID:|' 2> /dev/null | grep . && return
  sacct -X -n -P -j "$2" -o State,Reason,Elapsed,Restarts,JobID 2> /dev/null | grep . && return
  local ends
  ends=$(tail -qn 1 "$logs/$1.$2"*.log 2> /dev/null)
  if [ -z "$ends" ] || grep -qv " done$" <<< "$ends"; then
    echo "UNKNOWN||||$2"
  else
    echo "COMPLETED||||$2"
  fi
}
# The task that tells most of a job, with a number before it: 1 it ended badly, 2 it has not ended, 3 it is done.
worst_of() {
  sed -E 's/^COMPLETED/3|&/; t; s/^(PENDING|RUNNING|COMPLETING|CONFIGURING|SUSPENDED|REQUEUED)/2|&/; t; s/^/1|/' |
    sort | head -n 1
}
row() { printf '%-12s %8s  %-24s %-20s %10s %8s  %s\n' "$@"; }

failed=''
row stage job state reason elapsed restarts 'last line of its log'
while read -r name id; do
  tasks=$(tasks_of "$name" "$id")
  IFS='|' read -r rank _ reason _ _ task <<< "$(worst_of <<< "$tasks")"
  states=$(cut -d'|' -f1 <<< "$tasks" | sort | uniq -c | awk '{printf "%s%d %s", (NR > 1 ? ", " : ""), $1, $2}')
  [[ $states == *,* ]] || states=${states#1 }
  elapsed=$(cut -d'|' -f3 <<< "$tasks" | sort -V | tail -n 1)
  restarts=$(awk -F'|' '{n += $4} END {print n + 0}' <<< "$tasks")
  log=$logs/$name.$task.log
  last=$(grep -svE '^(srun|slurmstepd|$)' "$log" | tail -n 1 | cut -c -100)
  row "$name" "$id" "$states" "$reason" "$elapsed" "$restarts" "$last"
  if [ "$rank" = 1 ] && [ -z "$failed" ]; then failed=$name failed_log=$log; fi
done < "$logs/jobs"
[ -n "$failed" ] || exit 0
echo "$failed did not end well; see $failed_log, and when that is mended: $(cat "$logs/command")"
exit 1
