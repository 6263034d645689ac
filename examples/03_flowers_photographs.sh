#!/bin/sh
# Photographs in class folders: a resnet18 is trained, teaches a mobilenet_v3_small, and that is deployed.
#
#   sh examples/03_flowers_photographs.sh DATA OUT [TEACHER_EPOCHS] [STUDENT_EPOCHS] [SIZE]
#
# DATA     folder with CLASS/*.jpg; a fifth is held out by each image's hash
# OUT      where runs and the bundle go
set -eu
data=$1 out=$2 teacher_epochs=${3:-40} student_epochs=${4:-40} size=${5:-64}
how="--zoom 1.4 --rotate 15 --optimizer adamw --lr 0.002 --weight-decay 0.05"
set -x
krl-train fit --model resnet18 --data "$data" --size "$size" --epochs "$teacher_epochs" $how \
    --warmup 0.1 --out "$out/teacher"
krl-compress distill --teacher "$out/teacher" --student mobilenet_v3_small --epochs "$student_epochs" --baseline \
    $how --out "$out/student"
krl-deploy export "$out/student" -o "$out/student.krl"
krl-deploy fp16 "$out/student.krl" --data "$data"
krl-deploy quantize "$out/student.krl" --data "$data"
krl-runtime selftest "$out/student.krl"
