#!/bin/sh
# Distill a published resnet56 into a resnet8 (75 thousand parameters) on CIFAR-10.
# Also train the same student without a teacher, for comparison. Show all that was measured on one page.
#
#   sh examples/02_cifar10_published_teacher.sh DATA WEIGHTS OUT [EPOCHS]
#
# DATA     folder with train/CLASS/*.png and val/CLASS/*.png
# WEIGHTS  cifar10_resnet56-*.th of akamaster/pytorch_resnet_cifar10
# OUT      folder for the runs and the bundle
# EPOCHS   of the student (30)
set -eu
data=$1 weights=$2 out=$3 epochs=${4:-30}
set -x
krl-train import --weights "$weights" --model resnet56 --mean .485 .456 .406 --std .229 .224 .225 \
    --data "$data" --out "$out/teacher"
krl-compress distill --teacher "$out/teacher" --student resnet8 --data "$data" --epochs "$epochs" --baseline \
    --out "$out/resnet8"
krl-deploy export "$out/resnet8" -o "$out/resnet8.krl"
krl-deploy fp16 "$out/resnet8.krl" --data "$data"
krl-deploy quantize "$out/resnet8.krl" --data "$data"
krl-runtime selftest "$out/resnet8.krl"
# The page: the teacher's predictions need its bundle, and its other parts are results of these commands.
krl-deploy export "$out/teacher" -o "$out/teacher.krl"
krl-runtime evaluate "$out/resnet8.krl" "$data"
krl-deploy compare "$out/resnet8.krl" --layers --json > "$out/compare.json"
krl-runtime bench "$out/resnet8.krl" --variant int8 --backend cpu --layers --json > "$out/layers.json"
krl-deploy check "$out/resnet8.krl" --target jetpack-6.2 --json > "$out/check.json"
krl-deploy report "$out" --data "$data" --title "resnet8 on CIFAR-10" -o "$out/report.html"
