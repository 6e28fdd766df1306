#!/bin/bash
# configs/label_free/README.md: a real ViT-S/14 teaches a small ViT without labels, on three seeds.
#
#     notebooks/label_free/run.sh    from the project's root; it goes on where it was stopped
set -euo pipefail

program=${DISTILL_DYNAMICS:-.venv/bin/python -m distill_dynamics}
python=${PYTHON:-.venv/bin/python}
runs=runs/label_free
config="--config configs/label_free/fashion_mnist.yaml"

$python notebooks/study/real_vit_weights.py
mkdir -p $runs
# shellcheck disable=SC2086
$program cache-teacher $config --out $runs/cache
for seed in 0 1 2; do
  # shellcheck disable=SC2086
  $program fit $config --seed_everything $seed --model.teacher_cache $runs/cache --runs_dir $runs --name "seed$seed" \
    --ckpt_path auto --wandb.mode disabled
done
$python notebooks/label_free/table.py $runs
# shellcheck disable=SC2086
$program report $runs/seed[0-2] --out $runs/report.html
# shellcheck disable=SC2086
$program analyze --data configs/label_free/fashion_mnist.yaml --value_range global layer scaled --out $runs/analysis --model \
  "{name: vit_small_patch14_dinov2, checkpoint: runs/study/real_vit/weights.safetensors, timm_kwargs: {img_size: 98}, label: teacher}" \
  "{name: vit_tiny_patch16_224, checkpoint: $runs/seed0/student, label: student}"
