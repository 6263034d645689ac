from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from krl_compress.distillers import REGISTRY, Distiller, FrozenTeacher, FusedTeacher, PeerTask, parse_loss
from krl_compress.distillers.feature_taps import Taps, match_taps
from krl_compress.teachers.features import ModuleFeatures
from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, OptimConfig
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream
from krl_train.models import Network, build_model
from krl_train.models.features import FeatureMap, list_feature_maps
from krl_train.tasks import Batch, Supervised
from krl_train.worker import Worker


def network(name: str = "resnet8", seed: int = 0, classes: int = 4, size: int = 32) -> Network:
    torch.manual_seed(seed)
    return Network(build_model(name, classes, 3), Preprocessing(size, size))


def batch(count: int = 8, size: int = 32, classes: int = 4) -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, 3, size, size)).astype(np.uint8))
    return Batch(pixels, torch.arange(count) % classes, torch.arange(count), 0)


LABELS = torch.arange(64) % 4
NAMES = ("a", "b", "c", "d")


@pytest.mark.parametrize("name", [name for name in REGISTRY if name not in ("ce", "bce")])
def test_every_loss_can_be_a_term_and_teaches(name: str) -> None:
    options = ":negatives=32" if name == "crd" else ""
    torch.manual_seed(3)
    objective = Distiller(
        network("resnet8"), FrozenTeacher(network("resnet20", seed=1)), [parse_loss(name + options)], labels=LABELS
    )
    optimizer = torch.optim.SGD(objective.parameters(), lr=1e-4)
    parts = objective(batch())
    assert set(parts) == {"loss", name}
    assert parts["loss"].item() == pytest.approx(REGISTRY[name].weight * parts[name].item(), rel=1e-5)
    parts["loss"].backward()
    gradient = sum(p.grad.abs().sum() for p in objective.network.parameters() if p.grad is not None)
    assert 0 < gradient < float("inf")
    optimizer.step()
    assert all(parameter.grad is None for parameter in objective.teacher.network.parameters())
    # nothing of a loss but the student's own weights is in what a run keeps
    assert set(objective.network.backbone.state_dict()) == set(network("resnet8").backbone.state_dict())


def test_terms_are_weighted_and_warmed_up() -> None:
    terms = [parse_loss("ce:weight=0.5"), parse_loss("kd:weight=2,warmup=4,temperature=3")]
    objective = Distiller(network(), FrozenTeacher(network("resnet20", seed=1)), terms).eval()
    for epoch, factor in ((0, 0.25), (1, 0.5), (3, 1.0), (9, 1.0)):
        parts = objective(replace(batch(), epoch=epoch))
        expected = 0.5 * parts["ce"] + 2 * factor * parts["kd"]
        torch.testing.assert_close(parts["loss"], expected)


def test_standardized_terms_ignore_the_scale_of_logits() -> None:
    from krl_compress.losses import kd, standardize

    student, teacher = network(), network("resnet20", seed=1)
    objective = Distiller(student, FrozenTeacher(teacher), [parse_loss("kd:temperature=2,standardize")]).eval()
    with torch.no_grad():
        z_s, z_t = student.eval()(batch().pixels), teacher.eval()(batch().pixels)
    value = objective(batch())["kd"]
    torch.testing.assert_close(value.detach(), standardize(kd)(7 * z_s + 3, z_t, temperature=2.0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kdd", r"unknown loss 'kdd' \(did you mean 'kd'\?\); accepted: ce, kd"),
        ("kd:temprature=3", r"kd has no 'temprature' \(did you mean 'temperature'\?\)"),
        ("kd:temperature=warm", "temperature is 'warm'; accepted: a number"),
        ("at:standardize", "does not compare logits"),
    ],
)
def test_wrong_terms_say_what_is_accepted(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_loss(text)


def test_a_loss_given_twice_and_none_at_all() -> None:
    with pytest.raises(UsageError, match="given twice"):
        Distiller(network(), None, [parse_loss("ce"), parse_loss("ce:weight=2")])
    with pytest.raises(UsageError, match="no loss to minimize"):
        Distiller(network(), None, [])


def taps_of(student: Network, teacher: Network, at: Sequence[str]) -> list[tuple[FeatureMap, FeatureMap]]:
    return match_taps(ModuleFeatures(student), ModuleFeatures(teacher), at)


def test_places_of_cifar_networks_are_their_stages() -> None:
    pairs = taps_of(network("resnet8"), network("resnet56"), ())
    assert [(a.name, b.name) for a, b in pairs] == [("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")]
    assert [a.shape for a, _ in pairs] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_places_match_by_resolution_across_architectures_and_sizes() -> None:
    pairs = taps_of(network("mobilenet_v3_small", size=64), network("resnet18", size=96), ())
    assert [round(64 / a.shape[1]) for a, _ in pairs] == [round(96 / b.shape[1]) for _, b in pairs]
    assert pairs[-1][1].name == "layer4"
    assert len(pairs) >= 4


def test_places_can_be_named_and_wrong_names_list_the_candidates() -> None:
    pairs = taps_of(network("resnet8"), network("resnet20"), ["layer2.0=layer2.1", "layer3"])
    assert [(a.name, b.name) for a, b in pairs] == [("layer2.0", "layer2.1"), ("layer3", "layer3")]
    message = r"--feature-taps layer9: the student has no feature map 'layer9'; it has: conv1 16"
    with pytest.raises(UsageError, match=message):
        taps_of(network("resnet8"), network("resnet20"), ["layer9"])
    with pytest.raises(UsageError, match=r"teacher has no feature map 'stem'"):
        taps_of(network("resnet8"), network("resnet20"), ["layer1=stem"])


def test_networks_without_a_common_resolution_list_the_candidates() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shrink = torch.nn.Conv2d(3, 4, 5, stride=5)
            self.linear = torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(self.shrink(x).mean((2, 3)))

    odd = Network(Flat(), Preprocessing(32, 32))
    message = r"share no resolution; name taps with --feature-taps.*shrink 4×6×6.*layer1 16×32×32"
    with pytest.raises(UsageError, match=message):
        taps_of(odd, network("resnet8"), ())


def test_taps_read_what_the_modules_put_out() -> None:
    net = network("resnet8").eval()
    maps = {item.name: item for item in list_feature_maps(net)}
    taps = Taps(ModuleFeatures(net), [maps["layer1"], maps["layer3"]], embedding=True)
    with taps.reading() as features:
        logits = net(batch().pixels)
    x = net.backbone.bn1(net.backbone.conv1(batch().pixels * net.scale + net.offset)).relu()
    first = net.backbone.layer1(x)
    third = net.backbone.layer3(net.backbone.layer2(first))
    torch.testing.assert_close(features.maps[0], first)
    torch.testing.assert_close(features.maps[1], third)
    torch.testing.assert_close(net.backbone.linear(features.embedding), logits)
    assert not net.backbone.layer1._forward_hooks  # nothing stays behind
    assert list_feature_maps(net)[0].name == "conv1"


class Fixed:
    features = None

    def fold(self) -> None: ...

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits

    def __call__(self, given: Batch) -> torch.Tensor:
        return self.logits


def test_fusion_is_the_hand_computed_mixture() -> None:
    first, second = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0], [0.0, 4.0]])
    given = Batch(torch.zeros(2, 1, 1, 1), torch.tensor([0, 1]), torch.arange(2), 0)
    teachers = [Fixed(first), Fixed(second)]
    torch.testing.assert_close(FusedTeacher(teachers, "mean")(given), (first + second) / 2)

    def ce(z: np.ndarray, y: int) -> float:
        return float(np.log(np.exp(z).sum()) - z[y])

    rows = []
    for n, y in enumerate((0, 1)):
        entropies = np.array([ce(first[n].numpy(), y), ce(second[n].numpy(), y)])
        weights = 1 - np.exp(entropies) / np.exp(entropies).sum()  # K − 1 = 1
        rows.append(weights[0] * first[n].numpy() + weights[1] * second[n].numpy())
    np.testing.assert_allclose(FusedTeacher(teachers, "confidence")(given).numpy(), rows, rtol=1e-5)

    recall = torch.tensor([[0.9, 0.2], [0.5, 0.6]])  # the first knows class 0 better, the second class 1
    torch.testing.assert_close(FusedTeacher(teachers, "class", recall)(given), torch.stack([first[0], second[1]]))
    with pytest.raises(UsageError, match="fusion takes two or more"):
        FusedTeacher(teachers[:1], "mean")


def test_features_need_a_live_teacher() -> None:
    with pytest.raises(UsageError, match="need one live teacher"):
        Distiller(network(), Fixed(torch.zeros(8, 4)), [parse_loss("at")])


def test_mixup_is_the_same_for_both_and_counts_both_labels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32)).astype(np.uint8)
    data = PixelSet(pixels, [0, 1, 2, 3] * 4)
    config = AugmentConfig(mixup=1.0, crop_padding=0, flip="none")
    augmentation = Augmentation.resolve(config, Preprocessing(32, 32), flip=True, seed=0)
    mixed = next(BatchStream(data, augmentation, 8, seed=0).epoch(0, 0, Worker(torch.device("cpu"))))
    assert mixed.share is not None
    assert 0.5 <= mixed.share <= 1
    plain = torch.from_numpy(pixels)[mixed.indices].float()
    torch.testing.assert_close(mixed.pixels, mixed.share * plain + (1 - mixed.share) * plain.roll(1, 0))
    objective = Distiller(network(), None, [parse_loss("ce")]).eval()
    logits = objective.network(mixed.pixels)
    log_p = logits.log_softmax(1)
    rows = torch.arange(8)
    own, other = log_p[rows, data.labels[mixed.indices]], log_p[rows, data.labels[mixed.indices].roll(1)]
    expected = -(mixed.share * own + (1 - mixed.share) * other).mean()
    torch.testing.assert_close(objective(mixed)["ce"], expected)
    with pytest.raises(UsageError, match="one label for each image"):
        Distiller(network(), FrozenTeacher(network("resnet20")), [parse_loss("dkd")])(mixed)


def test_cutmix_counts_both_labels_by_their_pixels() -> None:
    levels = np.arange(16, dtype=np.uint8)
    data = PixelSet(np.broadcast_to(levels[:, None, None, None], (16, 3, 32, 32)).copy(), [0, 1, 2, 3] * 4)
    config = AugmentConfig(cutmix=1.0, crop_padding=0)
    augmentation = Augmentation.resolve(config, Preprocessing(32, 32), flip=True, seed=0)
    weights = torch.tensor([0.5, 1.0, 2.0, 4.0])
    objective = Distiller(network(), None, [parse_loss("ce")], class_weights=weights).eval()
    shares = set()
    for mixed in BatchStream(data, augmentation, 8, seed=0).epoch(0, 0, Worker(torch.device("cpu"))):
        own, other = (mixed.pixels == each[:, None, None, None] for each in (mixed.indices, mixed.indices.roll(1)))
        assert (own | other).all()
        assert own[0].float().mean().item() == pytest.approx(mixed.share, abs=1e-6)
        assert mixed.partners is not None
        assert torch.equal(mixed.partners, data.labels[mixed.indices.roll(1)])
        log_p = objective.network(mixed.pixels).log_softmax(1)
        expected = 0.0
        for share, labels in ((mixed.share, mixed.labels), (1 - mixed.share, mixed.partners)):
            nats = -log_p[torch.arange(8), labels]
            expected = expected + share * (weights[labels] * nats).sum() / weights[labels].sum()
        torch.testing.assert_close(objective(mixed)["ce"], expected)
        torch.testing.assert_close(Supervised(objective.network, 0.0, weights)(mixed)["loss"], expected)
        shares.add(mixed.share)
    assert len(shares) == 2


def test_peers_minimize_the_formula() -> None:
    nets = [network("resnet8", seed=seed).eval() for seed in (0, 1, 2)]
    data = PixelSet(batch().pixels.numpy(), batch().labels.tolist())
    optim = OptimConfig(lr=0.1)

    def losses(tutors, temperature: float, weight: float) -> list[float]:
        task = PeerTask(
            nets,
            tutors,
            optim,
            temperature=temperature,
            weight=weight,
            steps=1,
            batch_size=8,
            val=data,
            labels=tuple("abcd"),
        )
        parts = task.step(batch(), lambda name, loss: None)
        return [parts[f"net{index}"].item() for index in range(3)]

    with torch.no_grad():
        z = [net(batch().pixels).double().numpy() for net in nets]

    def softmax(logits: np.ndarray) -> np.ndarray:
        e = np.exp(logits - logits.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    def kl(p: np.ndarray, q: np.ndarray) -> float:
        return float((p * np.log(p / q)).sum(1).mean())

    y = np.arange(8) % 4
    ce = [-np.log(softmax(each)[np.arange(8), y]).mean() for each in z]
    p = [softmax(each) for each in z]
    mutual = [ce[i] + sum(kl(p[j], p[i]) for j in range(3) if j != i) / 2 for i in range(3)]
    np.testing.assert_allclose(losses([[1, 2], [0, 2], [0, 1]], 1.0, 1.0), mutual, rtol=1e-5)
    q = [softmax(each / 4) for each in z]
    joint = [ce[0] + 0.5 * 16 * kl(q[1], q[0]), ce[1], ce[2]]
    np.testing.assert_allclose(losses([[1], [], []], 4.0, 0.5), joint, rtol=1e-5)


def test_tutors_get_no_gradient_from_their_pupils() -> None:
    nets = [network("resnet8", seed=seed) for seed in (0, 1)]
    data = PixelSet(batch().pixels.numpy(), batch().labels.tolist())
    task = PeerTask(
        nets,
        [[1], []],
        OptimConfig(),
        temperature=4.0,
        weight=1.0,
        steps=1,
        batch_size=8,
        val=data,
        labels=tuple("abcd"),
    )
    found = {}

    def update(name: str, loss: torch.Tensor) -> None:
        for net in nets:
            net.zero_grad()
        loss.backward()
        found[name] = [any(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters()) for net in nets]

    task.step(batch(), update)
    assert found == {"net0": [True, False], "net1": [False, True]}


NET = """
class Net(torch.nn.Module):  # without batch normalization, whose statistics are each process's own
    def __init__(self, width):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.linear = torch.nn.Linear(width, 4)
    def forward(self, x):
        return self.linear(self.conv(x).tanh().mean((2, 3)))
"""
END = """
import gc
main()
gc.collect()  # a model that outlives its process group aborts the interpreter's exit, now and then
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
TWO = f"""
import sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from krl_compress.distillers import Distiller, FrozenTeacher, parse_loss
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.models import Network
from krl_train.tasks import Batch
{NET}
def main():
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = slice(rank, None, world)
    for name in sys.argv[1:]:
        torch.manual_seed(0)
        student, teacher = (Network(Net(width), Preprocessing(16, 16)).double() for width in (6, 9))
        generator = torch.Generator().manual_seed(1)
        pixels = torch.randint(0, 256, (8, 3, 16, 16), generator=generator).double()
        labels = torch.arange(8) % 4
        if name == "ce":
            labels[1:6:2] = -1  # one process has four labels, the other one
        objective = Distiller(student, FrozenTeacher(teacher), [parse_loss(name)], labels=torch.arange(32) % 4).double()
        model = DistributedDataParallel(objective)
        parts = model(Batch(pixels[mine], labels[mine], torch.arange(8)[mine], 0))
        parts["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in student.parameters()])
        if rank == 0:
            print(repr(parts["loss"].item()), repr(gradient.norm().item()), repr(gradient.sum().item()))

dist.init_process_group("gloo")
{END}"""


@pytest.mark.slow
def test_two_processes_compute_the_loss_and_gradient_of_one(tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO)
    terms = ["rkd", "sp", "dist", "pkt", "mlkd", "cc", "crd:negatives=8", "kd", "ce"]
    results = []
    for processes in ("1", "2"):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes]
        command += ["--master-port", str(29000 + os.getpid() % 1000), str(script), *terms]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        results.append(np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()]))
    alone, shared = results
    assert alone.shape == shared.shape == (len(terms), 3)
    np.testing.assert_allclose(shared[:, 1:], alone[:, 1:], rtol=1e-6, err_msg="gradient norm and sum")
    # the last two are means over the samples: each process has its own half of it, and gradients are averaged
    np.testing.assert_allclose(shared[:-2, 0], alone[:-2, 0], rtol=1e-6, err_msg="loss")


WHOLE = f"""
import sys
from pathlib import Path
import numpy as np, torch
from accelerate import PartialState
from krl_compress.distillers import Distiller, FrozenTeacher, parse_loss
from krl_compress.teachers.store import StoredTeacher
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig, PlannedLoop, OptimConfig
from krl_train.data import Augmentation, PixelSet
from krl_train.loop import BatchStream, Trainer, process_first
from krl_train.models import Network
from krl_train.tasks import ClassificationTask
{NET}
def train(how, folder):
    size = Preprocessing(8, 8)
    data = PixelSet(np.random.default_rng(0).integers(0, 256, (48, 3, 8, 8)).astype(np.uint8), list(range(4)) * 12)
    augmentation = Augmentation.resolve(AugmentConfig(), size, flip=True, seed=0)
    torch.manual_seed(0)
    student, teacher = (Network(Net(width), size) for width in (6, 9))
    answers, terms = FrozenTeacher(teacher), ["ce", "kd:weight=2", "dist", "rkd:weight=5"]
    if how == "stored":
        answers, terms = StoredTeacher(answers, "w", data, augmentation, views=2, folder=folder), terms[:3]
        with process_first("cpu"):
            answers.fill(torch.device("cpu"))
    objective = Distiller(student, answers, [parse_loss(term) for term in terms])
    loop = PlannedLoop(epochs=4, batch_size=16, precision="fp32", device="cpu")
    stream = BatchStream(data, augmentation, 16, 0, 2 if how == "stored" else None)
    optim = OptimConfig(lr=0.05, warmup=0.0)
    task = ClassificationTask(objective, optim, steps=12, batch_size=16, val=data, labels=tuple("abcd"))
    Trainer(loop, task, stream, None).fit()
    if PartialState().is_main_process:
        weights = torch.cat([p.detach().flatten() for p in student.parameters()])
        print(" ".join(map(repr, weights.tolist())))

def main():
    for how in ("live", "stored"):
        train(how, Path(sys.argv[1]))

{END}"""


@pytest.mark.slow
def test_two_processes_train_the_student_that_one_trains(tmp_path: Path) -> None:
    """With a teacher that answers each batch, and with one whose answers are stored."""
    script = tmp_path / "whole.py"
    script.write_text(WHOLE)
    weights = []
    for processes in ("1", "2"):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", processes]
        command += ["--master-port", str(30100 + os.getpid() % 1000), str(script), str(tmp_path / processes)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        weights.append(np.array([[float(value) for value in line.split()] for line in done.stdout.splitlines()]))
    assert weights[0].shape == weights[1].shape == (2, 6 * 27 + 6 + 4 * 6 + 4)
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("teacher", "last"), [("resnet20", torch.nn.ReLU), ("cifar-mobilenetv2", torch.nn.Identity)])
def test_the_regressor_can_reach_every_value_of_the_teacher(teacher: str, last: type[torch.nn.Module]) -> None:
    """Blocks of MobileNetV2 end in a convolution: a regressor that ends in a ReLU has no negative values to give."""
    objective = Distiller(
        network("resnet8"), FrozenTeacher(network(teacher, seed=1)), [parse_loss("fitnet")], labels=LABELS
    )
    assert type(objective.adapters["fitnet"][-1]) is last
    features = objective.taps[len(objective.taps) // 2][1]
    with torch.no_grad(), objective.teacher_taps.reading() as found:
        objective.teacher.network(batch().pixels)
    lowest = found.maps[len(objective.taps) // 2].min()
    assert (lowest < 0) == (last is torch.nn.Identity), features


def test_a_teacher_of_tokens_has_no_taps() -> None:
    with torch.device("meta"):
        tokens = Network(build_model("vit_b_16", 4, 3), Preprocessing(224, 224))
    with pytest.raises(UsageError, match=r"share no resolution; .* Teacher: no feature maps"):
        taps_of(network("resnet8"), tokens, ())


def peers(optim: OptimConfig, nets: list[Network]) -> PeerTask:
    data = PixelSet(np.zeros((4, 3, 32, 32), np.uint8), [0, 1, 2, 3])
    return PeerTask(
        nets, [[1], []], optim, temperature=4.0, weight=0.0, steps=100, batch_size=8, val=data, labels=NAMES
    )


def test_peers_learn_both_labels_of_a_mixture() -> None:
    nets = [network("resnet8", seed=seed).eval() for seed in (0, 1)]
    labels, partners = torch.arange(8) % 4, (torch.arange(8) + 1) % 4
    mixed = replace(batch(), partners=partners, share=0.7)
    parts = peers(OptimConfig(), nets).step(mixed, lambda name, loss: None)
    for index, net in enumerate(nets):
        with torch.no_grad():
            logits = net(mixed.pixels).double().numpy()
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        target = 0.7 * np.eye(4)[labels] + 0.3 * np.eye(4)[partners]
        assert parts[f"net{index}"].item() == pytest.approx(-(target * log_p).sum(1).mean(), rel=1e-5)


def test_peers_keep_their_moving_averages() -> None:
    nets = [network("resnet8", seed=seed) for seed in (0, 1)]
    task = peers(OptimConfig(ema=0.9), nets)
    start = nets[0].backbone.linear.weight.detach().clone()
    learner = task.learners["net0"]
    assert learner.average is not None
    learner.average.update_parameters(nets[0])  # the first one is copied
    with torch.no_grad():
        nets[0].backbone.linear.weight += 1
    learner.average.update_parameters(nets[0])
    torch.testing.assert_close(task.state()["net0.linear.weight"], start + 0.1)  # decay 0.9: a tenth of the way
    assert peers(OptimConfig(), nets).final()[1] is nets[1]
