#!/bin/sh
# Train a resnet18 on photographs in class folders, distill it into a mobilenet_v3_small, and export the student.
#
#   sh examples/03_flowers_photographs.sh DATA OUT [TEACHER_EPOCHS] [STUDENT_EPOCHS] [SIZE]
#
# DATA     folder with CLASS/*.jpg; a fifth of the images is held out, chosen by hash
# OUT      folder for the runs and the bundle
# EPOCHS   of the teacher and of the student (40 each)
# SIZE     of the network's input in pixels (64)
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
