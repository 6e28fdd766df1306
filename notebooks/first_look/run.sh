#!/bin/bash
# The first look of configs/methods/README.md: four methods, three seeds, a student of 16 channels.
#
#     notebooks/first_look/run.sh [WORKERS]    from the project's root; it goes on where it was stopped
set -euo pipefail

export OMP_NUM_THREADS=1
program=${DISTILL_DYNAMICS:-.venv/bin/python -m distill_dynamics}
runs=runs/first_look
base="--config configs/fashion_mnist/base.yaml --config notebooks/first_look/narrow.yaml"

train() {
  read -r method seed <<<"$1"
  case $method in
    softkd | spectralkd_l1) file=configs/fashion_mnist/$method.yaml ;;
    *) file=configs/methods/$method.yaml ;;
  esac
  # shellcheck disable=SC2086
  $program fit $base --config "$file" --seed_everything "$seed" --model.teacher_cache $runs/cache \
    --runs_dir $runs --name "$method-$seed" --ckpt_path auto \
    --wandb.mode disabled --trainer.enable_progress_bar false >>"$runs/$method-$seed.log" 2>&1 ||
    { echo "$method, seed $seed: failed, see $runs/$method-$seed.log" >&2 && return 1; }
  echo "$method, seed $seed: done"
}
export -f train
export program runs base

mkdir -p $runs
# shellcheck disable=SC2086
$program cache-teacher $base --out $runs/cache
for seed in 0 1 2; do
  printf "%s $seed\n" softkd spectralkd_l1 pca_target pca_target_random
done | xargs -P "${1:-2}" -I {} bash -c 'train "{}"'
.venv/bin/python notebooks/first_look/table.py $runs
# shellcheck disable=SC2086
$program report $runs/*-[0-9] --out $runs/report.html
