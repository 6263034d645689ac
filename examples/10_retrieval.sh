#!/bin/sh
# Learn embeddings of seven digits, and find images of three others that nobody trained on. Nothing is downloaded.
#
#   sh examples/10_retrieval.sh OUT [EPOCHS]
#
# OUT      folder for the images, the runs, the bundle, its index and a sheet of what was found
# EPOCHS   of teacher and student (30)
set -eu
out=$1 epochs=${2:-30}
set -x
krl-train unpack --data digits --out "$out/digits"
krl-train fit --task embedding --data "$out/digits" --held-out-classes 7 8 9 --embedding-loss contrastive --model resnet20 \
    --embedding-dim 32 --epochs "$epochs" --out "$out/teacher"
krl-compress distill --teacher "$out/teacher" --student resnet8 --epochs "$epochs" --baseline --out "$out/student"
krl-deploy export "$out/student" -o "$out/digits.krl"
krl-deploy quantize "$out/digits.krl" --data "$out/digits"
# A gallery of the three new digits: a folder for each. Images of the others are none of these.
mkdir -p "$out/gallery" "$out/others"
cp -r "$out/digits/train/7" "$out/digits/train/8" "$out/digits/train/9" "$out/gallery"
cp -r "$out/digits/val/0" "$out/digits/val/1" "$out/digits/val/2" "$out/others"
krl-runtime index "$out/digits.krl" "$out/gallery" --none-of-these 0.05 --others "$out/others"
krl-runtime search "$out/digits.krl" "$out/digits/val/7" --top-k 3 --sheet "$out/sheet.png" --gallery "$out/gallery"
krl-runtime evaluate "$out/digits.krl" "$out/gallery"
