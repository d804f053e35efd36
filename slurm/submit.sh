# shellcheck shell=bash disable=SC2154
# The part of slurm/submit that submits: all stages, or none.
living=$(squeue -h -u "$(id -un)" -o '%A|%j|%Z' | awk -F'|' -v c="$chain." -v here="$PWD" \
  'index($2, c) == 1 && $3 == here {print $1}' | sort -nu | xargs)
[ -z "$living" ] || die "chain $chain is under way already, as jobs $living; wait for them, or scancel them"
mkdir -p "$logs"
exec 9> "$logs/lock"
flock -n 9 || die "chain $chain is being submitted by another process"
undo() {
  scancel "${number[@]}" || true
  die "stage $name was refused, so none is submitted"
}
trap undo INT TERM
for name in "${names[@]}"; do
  id=$(eval "$(line "$name")") || undo
  number["$name"]=${id%%;*} # a federation adds its cluster's name
done
trap - INT TERM
echo "$again" > "$logs/command"
for name in "${names[@]}"; do echo "$name ${number[$name]}"; done | tee "$logs/jobs"
