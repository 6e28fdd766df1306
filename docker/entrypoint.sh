#!/bin/sh
# Looks at what a run needs of its container, says in one line each what is missing and what mends it, and
# becomes the command (exec: signals reach Python, and its exit status is the container's).
#
# Only `fit` is refused, with status 78 (EX_CONFIG of sysexits.h), and only where the command line itself asks for
# what cannot be had: a --runs_dir that cannot be written, a --trainer.accelerator that is not there. The rest are
# notes: a configuration may say otherwise, and `fit` itself refuses a run directory that it cannot write.
set -eu

# Several of a node's processes may each come through here: the first one speaks for all of them.
[ "${SLURM_LOCALID:-0}" = 0 ] || exec "$@"

say() { echo "container: $*" >&2; }

fit='' runs='' accelerator='' before='' previous=''
for word in "$@"; do
    case "$before $previous $word" in
        "-m distill_dynamics fit") fit=yes ;;
    esac
    case $previous in
        --runs_dir) runs=$word ;;
        --trainer.accelerator) accelerator=$word ;;
    esac
    case $word in
        --runs_dir=*) runs=${word#*=} ;;
        --trainer.accelerator=*) accelerator=${word#*=} ;;
        --config | --config=*) runs='' accelerator='' ;; # what comes later wins
    esac
    before=$previous previous=$word
done

refused=''
wrong() { # what the command line says about it, or nothing; what is wrong
    [ -z "$1" ] || refused=$fit
    shift
    say "$@"
}

# --- writable paths: a file is made, since permissions alone do not tell of a read-only or a full disk
writable() {
    there=$1
    while [ ! -e "$there" ]; do there=$(dirname -- "$there"); done
    file=$(mktemp "$there/.writable.XXXXXX" 2>/dev/null) || return 1
    rm -f -- "$file"
}

who="uid $(id -u)"
writable "${runs:-runs}" || wrong "$runs" \
    "$who cannot write to ${runs:-runs, where the runs go unless a configuration says otherwise}:" \
    "mount a folder of that user's there (docker run -v DIR:$(realpath -m -- "${runs:-runs}"))," \
    "or start as its owner (--user UID)"
writable "${TMPDIR:-/tmp}" || say "$who cannot write to ${TMPDIR:-/tmp}, which the data workers need:" \
    "mount a folder there, or set TMPDIR to one that is writable"
writable "${HOME:-/}" || say "$who cannot write to HOME=${HOME:-}: downloaded weights are not kept;" \
    "set HOME to a folder that is writable"

# --- shared memory: the data workers hand their batches over in it (256 images of 224 px are 39 MB)
shm=$(df -k --output=size /dev/shm 2>/dev/null | tail -n 1) || shm=0
[ "${shm:-0}" -ge 1048576 ] || say "/dev/shm has $((${shm:-0} / 1024)) MiB, and data workers stop with a bus error" \
    "where it is full: docker run --shm-size 16g (Kubernetes: an emptyDir with medium Memory on /dev/shm)"

# --- GPUs: none is a note (the run is then on the CPU), unless the command line asks for them
case $accelerator in
    '' | auto) asked='' look=yes ;;
    gpu | cuda) asked="--trainer.accelerator $accelerator, but " look=yes ;;
    *) look='' ;;
esac
if [ -z "$look" ]; then
    :
elif ! command -v nvidia-smi >/dev/null; then
    wrong "$asked" "${asked}no GPU: the container has no NVIDIA driver, which comes with docker run --gpus all" \
        "(apptainer run --nv) and the NVIDIA Container Toolkit on the host"
elif ! gpus=$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1); then
    wrong "$asked" "${asked}no GPU: nvidia-smi fails ($(echo "$gpus" | head -n 1)):" \
        "mend the driver of the host, or take another host"
elif ! reason=$(python -W ignore -c 'import torch; torch.cuda.init()' 2>&1); then
    wrong "$asked" "${asked}no GPU: PyTorch cannot use it (driver $(echo "$gpus" | head -n 1 | cut -d, -f 2)):" \
        "$(echo "$reason" | tail -n 1)"
else
    say "$(echo "$gpus" | wc -l) x $(echo "$gpus" | head -n 1)"
fi

[ -z "$refused" ] || exit 78
exec "$@"
