"""FID, KID, precision, recall, density and coverage against hand-computed values and independent implementations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from _helpers.digits import train_run, write_digits
from krl_runtime.errors import RunError, UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.metrics.generation import FeatureNet, coverage_metrics, frechet_distance, kernel_distance, same_latent
from krl_train.models import ModelSpec
from krl_train.models.generators import build_generator
from krl_train.run import Run


def test_fid_of_gaussians_in_one_dimension_is_known() -> None:
    # Exact mean and variance: |2 - 5|² + (1 - 2)² for standard deviations 1 and 2.
    unit = torch.tensor([-1.0, 1.0] * 500, dtype=torch.float64)
    unit = unit / unit.std()
    assert frechet_distance((2 + unit)[:, None], (5 + 2 * unit)[:, None]) == pytest.approx(9 + 1)
    assert frechet_distance(unit[:, None], unit[:, None]) == pytest.approx(0, abs=1e-9)


def test_fid_is_that_of_scipys_matrix_root() -> None:
    random = np.random.default_rng(0)
    real = random.normal(size=(200, 6)) @ random.normal(size=(6, 6))
    fake = random.normal(1.0, size=(150, 6)) @ random.normal(size=(6, 6))
    covariances = np.cov(real.T), np.cov(fake.T)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.square(real.mean(0) - fake.mean(0)).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(torch.from_numpy(real), torch.from_numpy(fake)) == pytest.approx(expected, rel=1e-9)


class _Mean(torch.nn.Module):
    """Features that need no network: the mean of each row of pixels."""

    num_features = 4

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().mean((1, 3))


def test_fid_is_torchmetrics_own() -> None:
    random = torch.Generator().manual_seed(0)
    sets = [torch.randint(0, most, (80, 3, 4, 4), generator=random, dtype=torch.uint8) for most in (256, 128)]
    metric = FrechetInceptionDistance(feature=_Mean())
    metric.set_dtype(torch.float64)
    metric.update(sets[0], real=True)
    metric.update(sets[1], real=False)
    mine = frechet_distance(_Mean()(sets[0]), _Mean()(sets[1]))
    assert mine == pytest.approx(float(metric.compute()), rel=1e-4)


def test_kid_is_the_unbiased_estimate() -> None:
    real = torch.tensor([[0.0], [1.0]])
    fake = torch.tensor([[2.0], [3.0]])

    def kernel(x: float, y: float) -> float:
        return (x * y + 1) ** 3

    # Within each set all pairs of two different ones, across all pairs: k(0,1), k(2,3), and the mean of four.
    across = (kernel(0, 2) + kernel(0, 3) + kernel(1, 2) + kernel(1, 3)) / 4
    expected = kernel(0, 1) + kernel(2, 3) - 2 * across
    assert kernel_distance(real, fake, subsets=3) == pytest.approx(expected)


def test_kid_is_torchmetrics_own_and_near_zero_for_the_same_distribution() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(100, 5), 0.5 + torch.randn(100, 5)
    assert kernel_distance(real, fake, subsets=1) == pytest.approx(float(poly_mmd(real, fake)), rel=1e-4)
    values = [kernel_distance(torch.randn(50, 5), torch.randn(50, 5), subsets=1) for _ in range(60)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error  # a biased estimate would lie above


def test_coverage_metrics_by_brute_force() -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(40, 2), 0.7 + 0.6 * torch.randn(30, 2)

    def radius(points: torch.Tensor, index: int, k: int) -> float:
        distances = sorted(float((points[index] - other).norm()) for j, other in enumerate(points) if j != index)
        return distances[k - 1]

    k = 3
    real_radius = [radius(real, index, k) for index in range(40)]
    fake_radius = [radius(fake, index, k) for index in range(30)]
    near = [[float((x - y).norm()) for y in fake] for x in real]
    inside = [[near[i][j] <= real_radius[i] for j in range(30)] for i in range(40)]
    expected = {
        "precision": np.mean([any(inside[i][j] for i in range(40)) for j in range(30)]),
        "recall": np.mean([any(near[i][j] <= fake_radius[j] for j in range(30)) for i in range(40)]),
        "density": np.sum(inside) / (k * 30),
        "coverage": np.mean([any(row) for row in inside]),
    }
    assert coverage_metrics(real, fake, neighbors=k) == pytest.approx(expected)


def test_the_same_images_are_precise_and_covered_and_far_ones_are_not() -> None:
    torch.manual_seed(0)
    real = torch.randn(50, 3)
    same = coverage_metrics(real, real.clone())
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    far = coverage_metrics(real, real + 100)
    assert far == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_features_that_do_not_compare_are_refused() -> None:
    for function in (frechet_distance, kernel_distance, coverage_metrics):
        with pytest.raises(UsageError, match=r"features \[10, 3\] and \[10, 4\]"):
            function(torch.zeros(10, 3), torch.zeros(10, 4))
    with pytest.raises(UsageError, match="6 rows or more"):
        coverage_metrics(torch.zeros(5, 3), torch.zeros(5, 3))


def _constant(level: float, size: int = 16, latent: int = 2) -> torch.nn.Module:
    preprocessing = Preprocessing(size, size, channels=1, mean=(0.5,), std=(0.5,))
    generator = build_generator(ModelSpec("mlp-2", 0, 1, {"latent": latent}), preprocessing).eval()
    with torch.no_grad():
        last = generator.backbone[2]
        last.weight.zero_()
        last.bias.fill_(float(torch.atanh(torch.tensor(level / 127.5 - 1))))
    return generator


def test_same_latent_psnr_by_hand() -> None:
    latents = torch.randn(5, 2)
    result = same_latent(_constant(100), _constant(110), latents)
    assert result["psnr"] == pytest.approx(10 * np.log10(255**2 / 10**2), abs=1e-3)
    assert result["psnr_mean"] == result["psnr"]  # each image is off by the same
    # Constant images: the luminance term of SSIM alone, with C1 = (0.01 · 255)².
    c1 = (0.01 * 255) ** 2
    assert result["ssim"] == pytest.approx((2 * 100 * 110 + c1) / (100**2 + 110**2 + c1), abs=1e-4)
    assert same_latent(_constant(100), _constant(100), latents)["psnr"] is None
    assert same_latent(_constant(100, 8), _constant(110, 8), latents)["ssim"] is None
    linear = _constant(100)
    with torch.no_grad():
        linear.backbone[0].weight.fill_(1)
        linear.backbone[0].bias.zero_()
        linear.backbone[2].weight.fill_(0.1)
    several = same_latent(linear, _constant(110), torch.tensor([[-1.0, 0.0], [0.5, 0.5]]))
    base = float(torch.atanh(torch.tensor(100 / 127.5 - 1)))
    errors = [10.0, abs(127.5 * (np.tanh(base + 0.2) + 1) - 110)]  # hidden units 0, 0 and 1, 1
    assert several["psnr"] == pytest.approx(10 * np.log10(255**2 / np.mean(np.square(errors))), abs=1e-3)
    assert several["psnr_mean"] == pytest.approx(np.mean([20 * np.log10(255 / e) for e in errors]), abs=1e-3)
    with pytest.raises(UsageError, match="latents of 2 and 3"):
        same_latent(_constant(100), _constant(100, latent=3), latents)


def test_features_of_a_classifier_are_what_its_last_layer_sees(tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", write_digits(tmp_path / "data", per_class=5, val_per_class=5), steps=1)
    net = FeatureNet(run.path, torch.device("cpu"))
    pixels = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    statistics = net.statistics(pixels)
    last = [module for module in net.network.backbone.modules() if isinstance(module, torch.nn.Linear)][-1]
    logits = last(statistics.features.float())
    torch.testing.assert_close(logits, net.network(pixels), rtol=1e-4, atol=1e-5)
    assert statistics.predictions.tolist() == logits.argmax(1).tolist()
    assert net.describe()["weights_sha256"] == run.record.weights_sha256
    # Images of another size and with colors are brought to the classifier's own, as the device would.
    other = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8)
    fitted = np.stack([run.record.preprocessing(image.permute(1, 2, 0).numpy()) for image in other])
    assert torch.equal(net.statistics(other).features, net.statistics(torch.from_numpy(fitted)).features)
    with pytest.raises(RunError, match="does not exist"):
        FeatureNet(tmp_path / "nothing", torch.device("cpu"))


def test_features_of_a_classifier_at_chance_are_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = train_run(tmp_path / "run", write_digits(tmp_path / "data", per_class=5, val_per_class=5), steps=1)
    for top1, doubted in ((0.19, True), (0.21, False)):
        record = replace(run.record, metrics={**run.record.metrics, "top1": top1})
        path = Run.write(tmp_path / f"run-{top1}", record, run.state()).path
        caplog.clear()
        FeatureNet(path, torch.device("cpu"))
        assert ("hardly more than chance" in caplog.text) is doubted
