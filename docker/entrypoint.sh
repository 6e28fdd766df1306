#!/bin/sh
# Looks at what a run needs of its container, says in one line each what is missing and what mends it, and
# becomes the command (exec: signals reach Python, and its exit status is the container's).
#
# Only `fit` is refused, with status 78 (EX_CONFIG of sysexits.h), and only where it could not do what was
# asked: it cannot write, or GPUs were asked for and there is none.
set -eu

say() { echo "container: $*" >&2; }

fit=no runs=runs accelerator=auto previous=
for word in "$@"; do
    case $word in
        fit) fit=yes ;;
        --runs_dir=*) runs=${word#*=} ;;
        --trainer.accelerator=*) accelerator=${word#*=} ;;
    esac
    case $previous in
        --runs_dir) runs=$word ;;
        --trainer.accelerator) accelerator=$word ;;
    esac
    previous=$word
done

refused=no
wrong() {
    say "$@"
    [ "$fit" = no ] || refused=yes
}

# Several of a node's processes may each come through here: the first one speaks for all of them.
[ "${SLURM_LOCALID:-0}" = 0 ] || exec "$@"

# --- writable paths: a file is made, since permissions alone do not tell of a read-only or a full disk
writable() {
    place=$1
    while [ ! -e "$place" ]; do place=$(dirname -- "$place"); done
    file=$(mktemp "$place/.writable.XXXXXX" 2>/dev/null) || return 1
    rm -f -- "$file"
}

who="uid $(id -u)"
writable "$runs" || wrong "the runs go to $runs, where $who cannot write: mount a folder of that user's there" \
    "(docker run -v DIR:$(realpath -m -- "$runs")), or start as the folder's owner (--user UID)"
writable "${TMPDIR:-/tmp}" || wrong "$who cannot write to ${TMPDIR:-/tmp}, which the data workers need:" \
    "mount a folder there, or set TMPDIR to one that is writable"
writable "${HOME:-/}" || say "$who cannot write to HOME=${HOME:-}: downloaded weights are not kept;" \
    "set HOME to a folder that is writable"

# --- shared memory: the data workers hand their batches over in it (256 images of 224 px are 154 MB)
shm=$(df -k --output=size /dev/shm 2>/dev/null | tail -n 1) || shm=0
[ "${shm:-0}" -ge 1048576 ] || say "/dev/shm has $((${shm:-0} / 1024)) MiB, and data workers stop with a bus error" \
    "where it is full: docker run --shm-size 64g (Kubernetes: an emptyDir with medium Memory on /dev/shm)"

# --- GPUs
asked=
case $accelerator in
    gpu | cuda) asked="--trainer.accelerator $accelerator" ;;
    auto)
        for name in NVIDIA_VISIBLE_DEVICES CUDA_VISIBLE_DEVICES SLURM_GPUS_ON_NODE; do
            value=$(printenv "$name" || true)
            case $name=$value in
                *= | *=void | *=none | *=-1 | SLURM_GPUS_ON_NODE=0) continue ;;
            esac
            asked="$name=$value"
            break
        done
        ;;
esac
if [ -z "$asked" ]; then
    say "no GPU was asked for: this runs on the CPU"
elif ! command -v nvidia-smi >/dev/null; then
    wrong "GPUs were asked for ($asked), but the container has no NVIDIA driver: install the NVIDIA Container" \
        "Toolkit on the host and use docker run --gpus all (for the CPU: --trainer.accelerator cpu)"
elif ! gpus=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1); then
    wrong "GPUs were asked for ($asked), but nvidia-smi fails:" \
        "$(echo "$gpus" | head -n 1) Mend the driver of the host, or take another host"
elif ! reason=$(python -W ignore -c 'import torch; torch.cuda.init()' 2>&1); then
    wrong "GPUs were asked for ($asked), but PyTorch cannot use them (driver $(echo "$gpus" | head -n 1 | cut -d, -f 2)):" \
        "$(echo "$reason" | tail -n 1)"
else
    say "$(echo "$gpus" | wc -l) x $(echo "$gpus" | head -n 1)"
fi

[ "$refused" = no ] || exit 78
exec "$@"
