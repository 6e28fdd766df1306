#!/bin/bash
# One experiment on several hosts without a scheduler: the same line on every host, each with its own NODE_RANK.
#
#   HEAD=10.0.0.1 NODES=2 NODE_RANK=0 GPUS=8 docker/torchrun/fit.sh \
#       --config configs/imagenet/base.yaml --config configs/imagenet/softkd.yaml --name softkd
#
# HEAD         the host of NODE_RANK 0, by a name or an address that all hosts reach; PORT (29400) must be open there,
#              and all ports between the hosts for the gradients
# NODES        how many hosts
# GPUS         processes on this host, one a GPU
# RESTARTS     how often the processes are started again where one dies (3); each time they go on from the last
#              checkpoint
#
# Everything after the script's name goes to `fit`; --name is needed, so that a restart finds its run. The folder it
# is run in, with `runs/` and the data, must be the same on all hosts (a shared file system). To change where hosts
# do not know each other's names: `export PET_LOCAL_ADDR=` this host's address. And where they have several
# networks: `export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0`, the interface to use: on GPUs gradients go by
# NCCL and the ranks' word to stop by Gloo, on CPUs all by Gloo.
#
# A host that went down joins again by the same line: the others wait for it, ten minutes. So does the whole job,
# whatever ended it. For that to happen by itself, a systemd unit with Restart=on-failure, or
#
#   until docker/torchrun/fit.sh ...; do sleep 10; done
#
# SIGTERM to torchrun (systemctl stop) stops all processes with a checkpoint; torchrun then ends with status 1.

set -eu
: "${HEAD:?the first host, as in HEAD=10.0.0.1}" "${NODES:?how many hosts}" "${NODE_RANK:?0 on HEAD, 1, 2, ... on the others}"
: "${GPUS:?processes on this host, one a GPU}"

# By itself torchrun gives a host that joins again no way to learn where the others meet.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# How long torchrun waits, in seconds, for processes that it asks to stop: they finish a step and write a checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120

# is_host: torchrun's own guess needs a host name that resolves to the address others use.
exec torchrun --nnodes="$NODES" --nproc-per-node="$GPUS" --max-restarts="${RESTARTS:-3}" \
    --rdzv-id=distill --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" \
    --rdzv-conf="is_host=$([ "$NODE_RANK" = 0 ] && echo 1 || echo 0)" \
    -m distill_dynamics fit "$@" --trainer.num_nodes "$NODES" --trainer.devices "$GPUS" --ckpt_path auto
