# shellcheck shell=bash disable=SC2086
# The demo on a cluster. Copy this file under another name, edit it, and give it to slurm/submit.
#   stage NAME [after=NAME,...] [options of sbatch] prep|train|sample|verify [words of the command]
# A stage waits until the one above it is done, or those that `after` names; none, if that is empty.
data=configs/data_prep/tiny.yaml
analysis=configs/sample/tiny.yaml

stage world --cpus-per-task=2 --time=1:00:00 prep world $data world.jobs=2
stage archive --cpus-per-task=2 --time=0:20:00 prep archive $data workers.processes=2
stage shards --time=0:20:00 prep shards $data
stage observe after=archive --time=0:20:00 prep observe $data
stage autoencoder after=shards --nodes=2 --cpus-per-task=2 --time=0:30:00 train configs/train/tiny_autoencoder.yaml
stage encode --time=0:20:00 prep encode $data
stage score --nodes=2 --cpus-per-task=2 --time=0:30:00 train configs/train/tiny_score.yaml
stage sample after=score,observe --array=0-3 --cpus-per-task=1 --time=0:30:00 sample $analysis
stage verify --time=0:20:00 verify $analysis
