# shellcheck shell=bash
# The one file that knows your cluster: edit it. `slurm/submit` and every job source it, in the root of the checkout.
# module load python/3.11 cuda/12.4
export PATH="$PWD/.venv/bin:$PATH"

# What all jobs ask for; a stage of a chain, or the command line of sbatch, may say otherwise.
# export SBATCH_ACCOUNT=climate SBATCH_PARTITION=gpu

# The network between the nodes, where the libraries take the wrong one: NCCL is for GPUs, gloo for processors.
# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0
