#!/bin/sh
# Train a residual network for super-resolution x3, distill it into one of 22 thousand parameters, and export the student.
#
#   sh examples/04_super_resolution.sh SR OUT [TEACHER_EPOCHS] [STUDENT_EPOCHS] [IMAGE]
#
# SR       folder with t91/ (training), set5/ and set14/ (evaluation); no classes needed
# OUT      folder for the runs, the bundle and the enlarged image
# EPOCHS   of the teacher (200) and of the student (50)
# IMAGE    image to enlarge at the end (the first one of set5)
set -eu
sr=$1 out=$2 teacher_epochs=${3:-200} student_epochs=${4:-50}
image=${5:-$(find "$sr/set5" -type f | sort | head -n 1)}
set -x
krl-train fit --task restoration --scale 3 --model edsr-8-32 --data "$sr/t91" --val-data "$sr/set5" --size 24 \
    --batch-size 16 --epochs "$teacher_epochs" --ema 0.999 --evaluate-every 10 --out "$out/teacher"
krl-compress distill --teacher "$out/teacher" --student edsr-4-16 --baseline --size 17 --batch-size 16 \
    --epochs "$student_epochs" --ema 0.999 --evaluate-every 25 --out "$out/student"
krl-train evaluate "$out/student" --data "$sr/set14"
krl-deploy export "$out/student" -o "$out/student.krl"
krl-deploy quantize "$out/student.krl" --data "$sr/t91"
krl-runtime selftest "$out/student.krl"
krl-runtime restore "$out/student.krl" "$image" -o "$out/restored"
