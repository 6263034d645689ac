#!/bin/sh
# Train a GAN on MNIST and distill it into a student with one thirtieth of its parameters.
# Measure both on the features of a classifier that this script trains. Show all that was measured on one page.
# Nothing is downloaded.
#
#   sh examples/05_mnist_generator.sh ROOT OUT [EPOCHS] [LIMIT] [SAMPLES]
#
# ROOT     folder with torchvision's MNIST (ROOT/MNIST/raw)
# OUT      folder for the runs, the bundle and the images
# EPOCHS   of the teacher (5)
# LIMIT    of training images, and of real images in the measurement (all)
# SAMPLES  in the measurement (5000)
set -eu
root=$1 out=$2 epochs=${3:-5} limit=${4:+--limit $4 --val-limit $4} samples=${5:-5000}
data="--data mnist --data-root $root $limit"
set -x
krl-train fit --model resnet8 $data --epochs 3 --lr 0.05 --out "$out/classifier"
krl-train fit --task gan --model dcgan-32 $data --epochs "$epochs" --batch-size 64 --lr 0.0004 --out "$out/teacher"
measure="--features $out/classifier --score-samples $samples"
student="krl-compress distill --teacher $out/teacher $limit --batch-size 64 --precision fp32 $measure"
# Three stages: follow the teacher closely, then less closely, then closely again at a lower learning rate.
# Each stage has a new discriminator.
$student --student dsgan-11 --loss pixels --loss features --loss adversarial --epochs 3 --evaluate-every 3 \
    --lr 0.001 --discriminator-lr 0.0004 --discriminator-width 16 --out "$out/first"
$student --student "$out/first" --loss pixels:weight=3 --loss adversarial --epochs 3 \
    --lr 0.0005 --discriminator-lr 0.0004 --discriminator-width 20 --out "$out/second"
$student --student "$out/second" --loss pixels --loss adversarial --epochs 1 \
    --lr 0.0003 --discriminator-lr 0.0004 --discriminator-width 20 --out "$out/student"
for generator in teacher student; do
    krl-train evaluate "$out/$generator" --against "$out/teacher" $limit $measure --json | tee "$out/$generator.json"
    krl-deploy export "$out/$generator" -o "$out/$generator.krl"
done
krl-runtime generate "$out/student.krl" -n 64 --seed 1 --out "$out/digits"
krl-deploy quantize "$out/student.krl"
krl-runtime evaluate "$out/teacher.krl"
krl-runtime evaluate "$out/student.krl"
krl-deploy compare "$out/student.krl" --layers --json > "$out/compare.json"
krl-deploy report "$out/student.krl" -o "$out/report.html"
