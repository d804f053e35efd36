# shellcheck shell=bash disable=SC2086
# The published settings, from the files that configs/data_prep/paper.yaml names, on nodes with four GPUs.
data=configs/data_prep/paper.yaml
analysis=configs/sample/paper.yaml
gpus="--ntasks-per-node=4 --gpus-per-node=4"

stage archive --cpus-per-task=16 --mem=64G prep archive $data workers.processes=16
stage shards --cpus-per-task=4 --mem=16G prep shards $data
stage observe after=archive --cpus-per-task=4 --mem=16G prep observe $data
# It normalises over what one process has of a batch, so its numbers are those of one process (docs/training.md).
stage autoencoder after=shards --gpus-per-node=1 train configs/train/paper_autoencoder.yaml
stage encode --gpus-per-node=1 prep encode $data
stage score --nodes=2 $gpus train configs/train/paper_score.yaml
stage sample after=score,observe --array=0-7%4 --gpus-per-node=1 sample $analysis
stage verify --mem=32G verify $analysis
