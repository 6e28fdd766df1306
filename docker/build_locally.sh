#!/bin/sh
# Builds the image without a Docker engine, and runs the quickstart inside it as the image's unprivileged user.
#
#   docker/build_locally.sh [--short] [--archive FILE.tar]
#
#   --short          one epoch of the quickstart instead of twelve
#   --archive FILE   write the image there, for docker load, podman load, apptainer (docker-archive:FILE) or enroot
#
# Needs root on Debian or Ubuntu (buildah and debootstrap are installed where they are missing), a Debian mirror,
# a package index, and 25 GB under TMPDIR, all of which are given back at the end. The base is Debian 12, whose
# Python is 3.11, in the place of python:3.11-slim-bookworm. pip's index, timeout and certificate are those of this machine's
# pip; nothing of them stays in the image.
set -eu

short='' archive=''
while [ $# -gt 0 ]; do
    case $1 in
        --short) short="--trainer.max_epochs 1" ;;
        --archive) archive=$(realpath -m -- "$2") && shift ;;
        *) echo "usage: docker/build_locally.sh [--short] [--archive FILE.tar]" >&2 && exit 2 ;;
    esac
    shift
done
[ "$(id -u)" = 0 ] || { echo "docker/build_locally.sh: run it as root (debootstrap and chroot need that)" >&2 && exit 2; }
cd "$(dirname "$0")/.."

if ! command -v buildah >/dev/null || ! command -v debootstrap >/dev/null; then
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends buildah debootstrap
fi

place=$(mktemp -d "${TMPDIR:-/tmp}/distill_dynamics_image.XXXXXX")
export TMPDIR="$place"
build() { buildah --root "$place/storage" --runroot "$place/run" --storage-driver vfs "$@"; }
clean_up() {
    build rm --all >/dev/null 2>&1 || true
    build rmi --all --force >/dev/null 2>&1 || true
    rm -rf --one-file-system "$place"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start=$(date +%s)
say() { echo "[$(($(date +%s) - start)) s] $*"; }

say "base: Debian 12 with Python"
debootstrap --variant=minbase --include=ca-certificates,python3,python3-dev,python3-venv bookworm "$place/base" >"$place/log" \
    || { tail -n 20 "$place/log" >&2 && exit 1; }
rm -rf "$place"/base/var/cache/apt/archives/*.deb "$place"/base/var/lib/apt/lists/* "$place"/base/var/log/bootstrap.log
# debootstrap takes these from the machine it runs on.
: >"$place/base/etc/hostname"
: >"$place/base/etc/resolv.conf"
base=$(build from scratch)
build copy --quiet "$base" "$place/base" / >/dev/null
build commit --quiet --rm "$base" distill_dynamics_base >/dev/null
rm -rf "$place/base"

# What this machine's pip is told, for the pip of the build: a secret, which leaves no trace in the image.
setting() { # pip's option; the variable it has in the environment
    printenv "$2" || python3 -m pip config get "global.$1" 2>/dev/null || true
}
index=$(setting index-url PIP_INDEX_URL)
host=$(setting trusted-host PIP_TRUSTED_HOST)
seconds=$(setting timeout PIP_DEFAULT_TIMEOUT)
certificate=$(setting cert PIP_CERT)
{
    echo "[global]"
    echo "disable-pip-version-check = true"
    [ -z "$index" ] || echo "index-url = $index"
    [ -z "$host" ] || echo "trusted-host = $host"
    [ -z "$seconds" ] || echo "timeout = $seconds"
    [ -z "$certificate" ] || echo "cert = /etc/ssl/certs/ca-certificates.crt"
} >"$place/pip.conf"

say "image"
build bud --quiet --isolation chroot --network host --format docker --file docker/Dockerfile \
    --secret "id=pip.conf,src=$place/pip.conf" ${certificate:+--volume "$certificate:/etc/ssl/certs/ca-certificates.crt:ro"} \
    --build-arg BASE=localhost/distill_dynamics_base \
    --build-arg REVISION="$(git describe --always --abbrev=40 '--exclude=*' --dirty=+changes 2>/dev/null || echo unknown)" \
    --tag distill_dynamics . >"$place/log" 2>&1 || { tail -n 40 "$place/log" >&2 && exit 1; }
container=$(build from localhost/distill_dynamics)
say "built: $(du -sh --apparent-size "$(build mount "$container")" | cut -f 1)B unpacked"

say "quickstart inside"
inside() { build run --isolation chroot --network host "$container" -- "$@"; }
user=$(inside id -u)
[ "$user" != 0 ] || { echo "the image's user is root" >&2 && exit 1; }
# shellcheck disable=SC2086 # two words, or none
inside /entrypoint.sh python -m distill_dynamics fit --config configs/quickstart.yaml --name image \
    --trainer.enable_progress_bar false $short
inside test -s runs/image/report.html
say "quickstart run by user id $user: runs/image/report.html is there"

if [ -n "$archive" ]; then
    build push --quiet localhost/distill_dynamics "docker-archive:$archive:distill_dynamics:latest"
    say "written: $archive, $(du -h "$archive" | cut -f 1)B"
fi
