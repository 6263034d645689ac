"""The modules with parameters or memory: regressors, knowledge review, contrastive distillation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from krl_compress import losses as L
from krl_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("student", "teacher", "kernel"),
    [
        ((3, 8, 8), (5, 8, 8), (1, 1)),
        ((3, 8, 6), (5, 4, 3), (3, 3)),
        ((3, 4, 3), (5, 8, 6), (4, 4)),
        ((3, 8, 7), (5, 7, 5), (2, 3)),
    ],
)
def test_regressor_brings_maps_to_the_teachers_shape(
    student: tuple[int, ...], teacher: tuple[int, ...], kernel: tuple[int, int]
) -> None:
    adapter = L.regressor(student, teacher)
    out = adapter(torch.randn(2, *student, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (2, *teacher)
    assert adapter.get_submodule("0").kernel_size == kernel
    assert out.min() == 0
    assert L.regressor(student, teacher, relu=False)(torch.ones(2, *student).normal_()).min() < 0


def test_regressor_of_vectors_is_a_linear_layer() -> None:
    assert L.regressor((6,), (9,))(torch.zeros(4, 6)).shape == (4, 9)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        ((3, 4, 4), (5, 7, 7), r"\(3, 4, 4\) for teacher features \(5, 7, 7\): accepted are height and width equal"),
        ((3, 4, 4), (5,), r"\(3, 4, 4\) and teacher features \(5,\): accepted are two shapes \(C, H, W\)"),
    ],
)
def test_regressor_refuses(student: tuple[int, ...], teacher: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        L.regressor(student, teacher)


def plain_review() -> L.Review:
    """A review of known mixing: unit convolutions, and an attention of 3/4 to the place and 1/4 to the deeper one."""
    review = L.Review([2, 2], [2, 2], middle=2).eval()
    for fusion in review.fusions:
        fusion.enter[0].weight.data = torch.eye(2)[:, :, None, None]
        fusion.leave[0].weight.data = nn.functional.pad(torch.eye(2)[:, :, None, None], (1, 1, 1, 1))
    attention = review.fusions[0].attention[0]
    nn.init.zeros_(attention.weight)
    attention.bias.data = torch.tensor([math.log(3), -math.log(3)])
    return review


def test_review_mixes_each_place_with_the_deeper_ones() -> None:
    shallow, deep = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 2, 2)
    first, second = plain_review()([shallow, deep], [(4, 4), (2, 2)])
    enlarged = deep.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(second, deep, rtol=1e-4, atol=1e-4)  # batch normalization divides by 1 + 1e-5
    torch.testing.assert_close(first, 0.75 * shallow + 0.25 * enlarged, rtol=1e-4, atol=1e-4)


def test_review_gives_the_teachers_shapes_and_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    student = [torch.randn(4, c, s, s, requires_grad=True) for c, s in ((4, 8), (8, 4), (16, 2), (16, 1))]
    teacher = [torch.randn(4, c, s, s) for c, s in ((6, 8), (10, 5), (20, 2), (20, 1))]
    review = L.Review([4, 8, 16, 16], [6, 10, 20, 20])
    reviewed = review(student, [t.shape[2:] for t in teacher])
    assert [r.shape for r in reviewed] == [t.shape for t in teacher]
    torch.stack([L.hcl(r, t) for r, t in zip(reviewed, teacher, strict=True)]).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in review.parameters())
    assert all(s.grad is not None and s.grad.abs().sum() > 0 for s in student)


def test_review_works_in_the_students_deepest_channels_at_most_512() -> None:
    assert [f.enter[0].out_channels for f in L.Review([4, 8, 16], [1, 1, 1]).fusions] == [16, 16, 16]
    assert L.Review([600], [1]).fusions[0].enter[0].out_channels == 512


def test_review_refuses_other_numbers_of_places() -> None:
    with pytest.raises(UsageError, match="2 places in the student and 1 in the teacher"):
        L.Review([4, 8], [4])
    with pytest.raises(UsageError, match="1 student features and 2 sizes: accepted are 2"):
        plain_review()([torch.zeros(1, 2, 4, 4)], [(4, 4), (2, 2)])


LABELS = torch.tensor([2, 0, 1, 2, 0, 1, 2, 2])
INDEX = torch.tensor([3, 1, 5])


def contrast(seed: int = 0, **options: float) -> L.CRD:
    torch.manual_seed(7)
    return L.CRD(5, 6, LABELS, dimensions=3, seed=seed, **{"negatives": 4, **options})


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(3, 5, generator=random), torch.randn(3, 6, generator=random)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def embed(layer: nn.Linear, features: Tensor) -> np.ndarray:
    return unit(features.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())


def crd_by_loops(crd: L.CRD, student: Tensor, teacher: Tensor, negatives: np.ndarray) -> float:
    """The loss of the first batch, score by score, from the paper's formula in probabilities."""
    banks = crd.teacher_bank.numpy().copy(), crd.student_bank.numpy().copy()
    fresh = embed(crd.student_embedding, student), embed(crd.teacher_embedding, teacher)
    k, m = negatives.shape[1], len(LABELS)
    total = 0.0
    for rows, bank in zip(fresh, banks, strict=True):
        g = [
            [math.exp(v @ bank[j] / 0.07) for j in (i, *others)]
            for v, i, others in zip(rows, INDEX, negatives, strict=True)
        ]
        constant = np.mean(g) * m
        for scores in np.array(g) / constant:
            total -= math.log(scores[0] / (scores[0] + k / m))
            total -= sum(math.log((k / m) / (score + k / m)) for score in scores[1:])
    return total / len(INDEX)


@pytest.mark.parametrize(("options", "kept"), [({}, 0.5), ({"momentum": 0.8}, 0.8)])
def test_crd_by_loops_and_what_it_remembers(options: dict[str, float], kept: float) -> None:
    crd, (student, teacher) = contrast(**options), batch()
    negatives = torch.tensor([[1, 2, 4, 5], [0, 2, 3, 6], [0, 1, 3, 4]])
    expected = crd_by_loops(crd, student, teacher, negatives.numpy())
    before = crd.student_bank.numpy().copy()
    loss = crd(student, teacher, INDEX, negatives=negatives)
    assert loss.item() == pytest.approx(expected, rel=1e-5)

    remembered = before.copy()
    remembered[INDEX] = unit(kept * before[INDEX] + (1 - kept) * embed(crd.student_embedding, student))
    np.testing.assert_allclose(crd.student_bank, remembered, rtol=1e-5, atol=1e-6)

    loss.backward()  # the banks have changed meanwhile
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in crd.parameters())


def test_crd_keeps_its_constants_and_in_evaluation_its_memory() -> None:
    crd = contrast()
    crd(*batch(0), INDEX)
    constants, bank = crd.log_constants.clone(), crd.student_bank.clone()
    crd.eval()(*batch(1), INDEX)
    assert torch.equal(crd.student_bank, bank)
    crd.train()(*batch(1), INDEX)
    assert torch.equal(crd.log_constants, constants)
    assert not torch.equal(crd.student_bank, bank)


def test_crd_gives_no_gradient_to_the_teacher() -> None:
    student, teacher = (x.requires_grad_() for x in batch())
    contrast()(student, teacher, INDEX).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_crd_draws_every_sample_of_other_classes_about_equally() -> None:
    crd = contrast(negatives=6000)
    drawn = crd._draw(INDEX)
    for row, i in zip(drawn, INDEX, strict=True):
        counts = row.bincount(minlength=len(LABELS)) / 6000
        others = (LABELS - LABELS[i]).bool()
        assert counts[~others].tolist() == [0] * int((~others).sum())
        torch.testing.assert_close(counts[others], torch.full_like(counts[others], 1 / others.sum()), atol=0.03, rtol=0)


def test_crd_is_seeded_and_resumes() -> None:
    one, same, other = contrast(1), contrast(1), contrast(2)
    assert torch.equal(one._draw(INDEX), same._draw(INDEX))
    assert not torch.equal(one.student_bank, other.student_bank)
    one(*batch(0), INDEX)
    assert not torch.equal(one._draw(INDEX), same._draw(INDEX))
    same.load_state_dict(one.state_dict())
    assert one(*batch(1), INDEX).item() == same(*batch(1), INDEX).item()


def test_crd_under_autocast_compares_in_float32() -> None:
    crd, negatives = contrast().eval(), torch.tensor([[1, 2, 4, 5], [0, 2, 3, 6], [0, 1, 3, 4]])
    embeddings = [torch.randn(3, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    plain = crd._contrast(*embeddings, INDEX, negatives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert crd._contrast(*embeddings, INDEX, negatives).item() == plain.item()
        assert crd.train()(*batch(), INDEX).dtype == torch.float32
    assert crd.student_bank.dtype == torch.float32


def test_crd_learns_to_tell_samples_apart() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(20) % 4
    teacher = torch.randn(20, 6, generator=random)
    torch.manual_seed(0)
    student, crd = nn.Embedding(20, 5), L.CRD(5, 6, labels, dimensions=4, negatives=16)
    learnt = [*student.parameters(), *crd.parameters()]
    history = []
    for _ in range(40):
        index = torch.randperm(20, generator=random)
        loss = crd(student(index), teacher[index], index)
        with torch.no_grad():
            for parameter, gradient in zip(learnt, torch.autograd.grad(loss, learnt), strict=True):
                parameter -= 0.05 * gradient
        history.append(loss.item())
    assert history[-1] < 0.5 * history[0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), "at least 2 classes"),
        (torch.tensor([0.0, 1.0]), "of torch.float32: accepted is one class, an integer"),
        (torch.tensor([0, -1]), "an integer from 0"),
        (torch.tensor([[0, 1]]), r"labels \(1, 2\)"),
    ],
)
def test_crd_refuses_labels(labels: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        L.CRD(5, 6, labels)


def test_crd_refuses_features_and_index() -> None:
    crd, (student, teacher) = contrast(), batch()
    with pytest.raises(UsageError, match=r"student embeddings \(3, 5, 1\) and teacher embeddings \(3, 6\): .*\(N, D\)"):
        crd(student[..., None], teacher, INDEX)
    with pytest.raises(UsageError, match=r"index \(2,\) of torch.int64 for embeddings \(3, 5\): .*\(3,\), int64"):
        crd(student, teacher, INDEX[:2])
