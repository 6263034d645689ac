"""Views beyond shift and mirror, compared with torchvision's own operations, rectangles and colors."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from krl_runtime.errors import UsageError
from krl_runtime.images.preprocessing import Preprocessing
from krl_train.config import AugmentConfig
from krl_train.data import Augmentation, PixelSet, colors
from krl_train.data.colors import AutoAugment, ColorJitter, apply_operation, operations
from krl_train.data.draws import Draws
from krl_train.data.rectangles import Erasing, ResizedCrop
from krl_train.loop import BatchStream
from krl_train.worker import Worker

THEIRS = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
COLOR = (0.4, 0.3, 0.2, 0.1)
EVERYTHING = AugmentConfig(
    random_resized_crop=True, rotate=10, zoom=1.1, auto_augment="randaugment", color_jitter=COLOR, erase=0.5
)


def images(count: int, channels: int = 3, height: int = 24, width: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count + channels)
    coarse = torch.randint(0, 256, (count, channels, 4, 4), generator=generator, dtype=torch.uint8)
    return functional.resize(coarse, [height, width])


def resolved(config: AugmentConfig, height: int = 24, width: int = 20, **changes) -> Augmentation:
    return Augmentation.resolve(config, Preprocessing(height, width, **changes), flip=True, seed=3)


def draws(count: int, view: int = 0) -> Draws:
    return Draws(7, np.arange(count), view)


def test_the_views_of_the_default_are_what_they_were() -> None:
    """Hashes are of the version that had shift, mirror, rotation, zoom and mixup alone."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for config, size, fraction in ((AugmentConfig(), (16, 16), 1), (AugmentConfig(flip="none"), (112, 80), 0.875)):
        augmentation = resolved(config, *size, crop_fraction=fraction)
        shape = [side + 2 * augmentation.margin for side in size]
        pixels = torch.randint(0, 256, (20, 3, *shape), generator=generator, dtype=torch.uint8)
        views = augmentation(pixels, np.arange(20) * 7, 5)
        found.append(hashlib.sha256(views.contiguous().numpy().tobytes()).hexdigest()[:16])
    assert found == ["da4f900aa7ae64b2", "291b609928ec73a6"]


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
@pytest.mark.parametrize(("height", "width", "channels"), [(24, 20, 3), (20, 40, 1)])
def test_operations_are_torchvisions(policy, height: int, width: int, channels: int) -> None:
    theirs = THEIRS[policy]()
    space = operations(policy, height, width)
    assert list(space) == list(theirs._AUGMENTATION_SPACE)
    image = images(1, channels, height, width)[0]
    changed = 0
    for name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        expected = magnitudes(31, height, width)
        assert list(space[name]) == ([] if expected is None else [float(value) for value in expected])
        assert (name in colors._SIGNED) == signed
        for number in (0, 9, 30) if space[name] else (0,):
            for sign in (1, -1) if signed else (1,):
                magnitude = sign * float(expected[number]) if space[name] else 0.0
                wanted = theirs._apply_image_or_video_transform(image, name, magnitude, theirs.interpolation, {})
                assert torch.equal(apply_operation(image, name, magnitude), wanted), (name, magnitude)
                changed += not torch.equal(wanted, image)
    assert changed > 15


def test_each_operation_direction_and_magnitude_is_drawn_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []
    monkeypatch.setattr(colors, "apply_operation", lambda image, name, size: seen.append((name, size)) or image)
    views = torch.zeros(1400, 3, 8, 8, dtype=torch.uint8)
    AutoAugment("randaugment", 2, 9)(views, draws(1400))
    counts = Counter(name for name, _ in seen)
    assert len(seen) == 2800
    assert set(counts) == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert all(150 < count < 250 for count in counts.values())  # 200 each, with a standard deviation of 14
    turned = Counter(size for name, size in seen if name == "Rotate")
    assert set(turned) == {9.0, -9.0}
    assert min(turned.values()) > 60
    first, second = seen[::2], seen[1::2]
    assert 60 < sum(one == other for (one, _), (other, _) in zip(first, second, strict=True)) < 140  # 1 of 14
    after = Counter(other for (_, size), (other, _) in zip(first, second, strict=True) if size < 0)
    assert len(after) == 14  # the direction of the first says nothing of the second
    seen.clear()
    AutoAugment("trivialaugment", 1, None)(views, draws(1400))
    assert len(seen) == 1400
    assert len({size for name, size in seen if name == "Solarize"}) > 25


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 60)])
def test_rectangles_are_distributed_like_torchvisions(height: int, width: int) -> None:
    count = 3000
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    cropping, erasing = v2.RandomResizedCrop(8), v2.RandomErasing(p=1)
    for mine, theirs, names in (
        (ResizedCrop((0.08, 1.0), (3 / 4, 4 / 3)), cropping, ("top", "left", "height", "width")),
        (Erasing(1.0, (0.02, 0.33), (0.3, 3.3), (0.0,)), erasing, ("i", "j", "h", "w")),
    ):
        found = np.stack(mine.boxes(draws(count), height, width), 1)
        made = [theirs.make_params([image]) for _ in range(count)]
        expected = np.array([[params[name] for name in names] for params in made])
        if theirs is erasing:
            expected[[params["v"] is None for params in made]] = 0
        assert (found[:, :2] + found[:, 2:] <= (height, width)).all()
        for mine_of, theirs_of in zip(found.T, expected.T, strict=True):
            assert ks_2samp(mine_of, theirs_of).pvalue > 1e-3
        areas = [(boxes[:, 2] * boxes[:, 3]).astype(float) for boxes in (found, expected)]
        assert ks_2samp(*areas).pvalue > 1e-3


def test_a_rectangle_that_never_fits_is_the_largest_in_the_middle() -> None:
    for height, width, ratio in ((40, 8, (2.0, 3.0)), (8, 40, (0.5, 1.0)), (20, 20, (0.5, 2.0)), (8, 8, (99.0, 99.0))):
        theirs = v2.RandomResizedCrop(8, scale=(1.0, 1.0), ratio=ratio)
        params = theirs.make_params([torch.zeros(3, height, width)]) if ratio[0] < 99 else None
        boxes = ResizedCrop((1.0, 1.0), ratio).boxes(draws(50), height, width)
        for box in zip(*(part.tolist() for part in boxes), strict=True):
            if ratio == (0.5, 2.0):  # some fit
                assert box[2] <= 20 >= box[3]
            elif params is None:
                assert box == (3, 0, 1, 8)
            else:
                assert box == tuple(params[name] for name in ("top", "left", "height", "width"))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crop_is_taken_from_the_image_with_its_margin_and_resized(channels: int) -> None:
    config = AugmentConfig(random_resized_crop=True, crop_scale=(0.5, 1.0), flip="horizontal")
    kept = {"channels": channels, "mean": (0.5,) * channels, "std": (0.2,) * channels, "crop_fraction": 0.8}
    augmentation = resolved(config, 24, 20, **kept)
    assert (augmentation.margin, augmentation.padding) == (2, 0)
    pixels = images(40, channels, 28, 24)
    views = augmentation(pixels, np.arange(40), 1)
    assert (views.shape, views.dtype) == ((40, channels, 24, 20), torch.uint8)
    places = Draws(3, np.arange(40), 1)
    boxes = np.stack(ResizedCrop((0.5, 1.0), (3 / 4, 4 / 3)).boxes(places, 28, 24), 1)
    assert boxes[:, 0].min() == 0
    assert (boxes[:, 0] + boxes[:, 2]).max() > 26  # beyond what an evaluation sees
    mirrored = 0
    for image, view, (top, left, height, width) in zip(pixels.numpy(), views.numpy(), boxes, strict=True):
        rows = Image.fromarray(image.transpose(1, 2, 0).squeeze())
        cut = rows.crop((left, top, left + width, top + height)).resize((20, 24), Image.Resampling.BILINEAR)
        expected = np.asarray(cut).reshape(24, 20, channels).transpose(2, 0, 1).astype(int)
        straight, turned = (abs(expected[:, :, ::step] - view).max() for step in (1, -1))
        assert min(straight, turned) <= 2  # Pillow rounds between its two passes
        mirrored += turned < straight
    assert 10 <= mirrored <= 30


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_an_erased_rectangle_has_the_mean_color(dtype: torch.dtype) -> None:
    views = torch.full((400, 3, 24, 20), 200, dtype=dtype)
    mean = (0.2, 0.5, 0.7)
    erased = Erasing(0.25, (0.02, 0.33), (0.3, 3.3), tuple(255 * value for value in mean))(views.clone(), draws(400))
    assert erased.dtype == dtype
    which = (erased != views).flatten(1).any(1)
    assert 70 <= which.sum() <= 130
    assert torch.equal(erased[~which], views[~which])
    for view in erased[which]:
        inside = view[0] != 200
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns[None])  # a rectangle
        assert 0.01 < inside.sum() / inside.numel() < 0.36
        for channel, value in zip(view, mean, strict=True):
            tolerance = 0.51 if dtype == torch.uint8 else 1e-3
            assert (channel[inside].float() - 255 * value).abs().max() <= tolerance


def test_the_mean_color_is_that_of_the_networks_input() -> None:
    augmentation = resolved(AugmentConfig(erase=1.0, flip="none"), mean=(0.2, 0.6, 1.0))
    views = augmentation(torch.zeros(5, 3, 24, 20, dtype=torch.uint8), np.arange(5), 0)
    assert {tuple(color) for color in views.permute(0, 2, 3, 1).reshape(-1, 3).tolist()} == {(0, 0, 0), (51, 153, 255)}


def test_color_jitter_stays_in_its_ranges() -> None:
    gray = torch.full((500, 3, 2, 2), 100, dtype=torch.uint8)
    factors = ColorJitter(0.4, 0.0, 0.0, 0.0)(gray.clone(), draws(500))[:, 0, 0, 0].numpy() / 100
    assert (factors.min(), factors.max()) == (pytest.approx(0.6, abs=0.02), pytest.approx(1.4, abs=0.02))
    assert ks_2samp(factors, np.linspace(0.6, 1.4, 500)).pvalue > 1e-3
    red = torch.zeros(500, 3, 1, 1, dtype=torch.uint8)
    red[:, 0] = 255
    hues = ColorJitter(0.0, 0.0, 0.0, 0.1)(red.clone(), draws(500))
    assert (hues[:, 0] == 255).all()  # a tenth of a turn is less than a sixth, yellow or magenta
    assert hues[:, 1].max() > 140
    assert hues[:, 2].max() > 140
    assert ((hues[:, 1] == 0) | (hues[:, 2] == 0)).all()


def test_color_jitter_is_torchvisions_in_every_order() -> None:
    """All four kernels with the factors that were drawn, in the order that was drawn; all orders occur."""
    pixels, given = images(300), draws(300)
    found = ColorJitter(*COLOR)(pixels.clone(), given)
    theirs = v2.ColorJitter(*COLOR)
    names = ("brightness", "contrast", "saturation", "hue")
    ranges = [getattr(theirs, name) for name in names]
    orders = set()
    for position in range(300):
        factors = [low + given.uniform(300 + k)[position] * (high - low) for k, (low, high) in enumerate(ranges)]
        order = np.argsort([given.uniform(304 + k)[position] for k in range(4)])
        orders.add(tuple(order))
        params = {f"{name}_factor": factor for name, factor in zip(names, factors, strict=True)}
        wanted = theirs.transform(pixels[position], {**params, "fn_idx": torch.from_numpy(order)})
        assert torch.equal(found[position], wanted)
    assert len(orders) == 24


@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_all_kinds_depend_on_image_and_view_alone(channels: int) -> None:
    config = EVERYTHING if channels == 3 else replace(EVERYTHING, color_jitter=(0.4,))
    augmentation = resolved(config, channels=channels, mean=(0.4,) * channels, std=(0.2,) * channels)
    pixels = images(8, channels)
    before, indices, state = pixels.clone(), np.array([4, 8, 15, 16, 23, 42, 99, 1000]), torch.get_rng_state()
    whole = augmentation(pixels, indices, 2)
    assert (whole.shape, whole.dtype) == ((8, channels, 24, 20), torch.uint8)
    for place in range(8):
        alone = augmentation(pixels[place : place + 1], indices[place : place + 1], 2)
        assert torch.equal(whole[place : place + 1], alone)
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (augmentation(pixels, indices, 3), augmentation(pixels, indices + 1, 2)):
        assert not any(torch.equal(one, another) for one, another in zip(whole, other, strict=True))
    assert torch.equal(augmentation.on(torch.device("cpu"), pixels, indices, 2), whole)


def test_processes_and_resumed_epochs_see_the_views_of_one() -> None:
    data = PixelSet(images(40).numpy(), [0] * 20 + [1] * 20)
    augmentation = resolved(replace(EVERYTHING, mixup=0.3, cutmix=1.0))
    stream, cpu = BatchStream(data, augmentation, 16, seed=0), torch.device("cpu")
    alone = list(stream.epoch(1, 0, Worker(cpu)))
    halves = [list(stream.epoch(1, 0, Worker(cpu, rank, 2))) for rank in range(2)]
    for step, batch in enumerate(alone):
        assert batch.share == halves[0][step].share == halves[1][step].share
    later = list(stream.epoch(1, 1, Worker(cpu)))
    for batch, again in zip(alone[1:], later, strict=True):
        assert torch.equal(batch.pixels, again.pixels)
        assert batch.share == again.share
    unmixed = BatchStream(data, replace(augmentation, mixup=0.0, cutmix=0.0), 16, seed=0)
    whole = list(unmixed.epoch(1, 0, Worker(cpu)))
    for rank in range(2):
        for batch, half in zip(whole, unmixed.epoch(1, 0, Worker(cpu, rank, 2)), strict=True):
            assert torch.equal(batch.pixels[rank::2], half.pixels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_cutmix_keeps_the_share_that_it_says(dtype: torch.dtype) -> None:
    augmentation = resolved(AugmentConfig(cutmix=1.0))
    views = torch.arange(6)[:, None, None, None].expand(6, 3, 24, 20).to(dtype)
    shares, centers, whole = [], [], 0
    for step in range(300):
        mixed, share = augmentation.mix(views, 2, step)
        assert mixed.dtype == dtype
        other = mixed != views
        assert torch.equal(mixed, torch.where(other, views.roll(1, 0), views))
        inside = other[0, 0]
        rows, columns = inside.any(1), inside.any(0)
        assert all(torch.equal(inside, each) for each in other.flatten(0, 1))
        assert torch.equal(inside, rows[:, None] & columns[None])
        assert share == pytest.approx(1 - inside.float().mean().item(), abs=1e-6)
        shares.append(share)
        centers.append(np.nonzero(rows.numpy())[0].mean() if rows.any() else np.nan)
        if rows.any() and not (rows[0] or rows[-1] or columns[0] or columns[-1]):  # not cut off at the border
            assert abs(rows.sum().item() / 24 - columns.sum().item() / 20) < 2 / 20  # of the view's proportions
            whole += 1
    torch.manual_seed(0)
    theirs = v2.CutMix(alpha=1.0, num_classes=2)
    expected = [theirs.make_params([views])["lam_adjusted"] for _ in range(2000)]
    assert ks_2samp(shares, expected).pvalue > 1e-3
    assert min(shares) < 0.3
    assert whole > 20
    assert np.nanstd(centers) > 3


def test_of_mixup_and_cutmix_each_batch_has_one() -> None:
    both, one = (resolved(AugmentConfig(mixup=1.0, cutmix=cutmix)) for cutmix in (1.0, 0.0))
    views = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 24, 20)
    kinds = Counter(both.mix(views, 0, step)[0].dtype for step in range(200))
    assert set(kinds) == {torch.uint8, torch.float32}
    assert 70 <= kinds[torch.uint8] <= 130
    # mixup alone draws what it always drew
    share = float(np.random.default_rng((3, 4, 5)).beta(1.0, 1.0))
    assert one.mix(views, 4, 5)[1] == max(share, 1 - share)


def test_what_is_recorded_and_logged() -> None:
    described = resolved(replace(EVERYTHING, cutmix=1.0)).describe()
    assert described == {
        **{"flip": True, "shift": 0, "rotate": 10, "zoom": 1.1, "mixup": 0.0, "cutmix": 1.0},
        **{"random_resized_crop": True, "crop_scale": [0.08, 1.0], "crop_ratio": [3 / 4, 4 / 3]},
        **{"auto_augment": "randaugment", "ra_ops": 2, "ra_magnitude": 9, "color_jitter": list(COLOR)},
        **{"erase": 0.5, "erase_scale": [0.02, 0.33], "erase_ratio": [0.3, 3.3]},
    }
    wide = resolved(AugmentConfig(auto_augment="trivialaugment"))
    assert wide.describe()["auto_augment"] == "trivialaugment"
    assert "ra_ops" not in wide.describe()


def test_gray_images_have_no_saturation_and_no_hue() -> None:
    gray = {"channels": 1, "mean": (0.5,), "std": (0.2,)}
    assert resolved(AugmentConfig(color_jitter=(0.4,)), **gray).jitter == ColorJitter(0.4, 0.4, 0.0, 0.0)
    assert resolved(AugmentConfig(color_jitter=(0.4, 0.2, 0.0)), **gray).jitter == ColorJitter(0.4, 0.2, 0.0, 0.0)
    for given in ((0.4, 0.4, 0.4), (0.4, 0.4, 0.0, 0.1)):
        with pytest.raises(
            UsageError, match="changes saturation or hue, which gray images do not have; give one number"
        ):
            resolved(AugmentConfig(color_jitter=given), **gray)
    assert resolved(AugmentConfig(color_jitter=(0.4,))).jitter == ColorJitter(0.4, 0.4, 0.4, 0.0)
    assert resolved(AugmentConfig(color_jitter=(0.4, 0.3, 0.2))).jitter == ColorJitter(0.4, 0.3, 0.2, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"random_resized_crop": True, "crop_scale": (0.0, 1.0)}, "--crop-scale is 0 1; accepted: two increasing"),
        ({"random_resized_crop": True, "crop_scale": (0.5, 1.5)}, "--crop-scale is 0.5 1.5; .*, up to 1"),
        ({"random_resized_crop": True, "crop_ratio": (2.0, 1.0)}, "--crop-ratio is 2 1"),
        ({"random_resized_crop": True, "crop_ratio": (1.0, float("inf"))}, "--crop-ratio is 1 inf"),
        ({"random_resized_crop": True, "crop_ratio": (float("nan"), 1.0)}, "--crop-ratio is nan 1"),
        ({"random_resized_crop": True, "crop_padding": 2}, "leave --crop-padding out"),
        ({"crop_scale": (0.5, 1.0)}, "--crop-scale is for --random-resized-crop"),
        ({"erase_ratio": (1.0, 1.0)}, "--erase-ratio is for --erase"),
        ({"erase": 1.5}, "--erase is 1.5; accepted: 0 to 1"),
        ({"erase": 0.5, "erase_scale": (0.5, 0.2)}, "--erase-scale is 0.5 0.2"),
        ({"ra_ops": 3}, "--ra-ops is for --auto-augment randaugment"),
        ({"auto_augment": "trivialaugment", "ra_magnitude": 3}, "--ra-magnitude is for --auto-augment randaugment"),
        ({"auto_augment": "randaugment", "ra_ops": 0}, "--ra-ops is 0; accepted: 1 or more"),
        ({"auto_augment": "randaugment", "ra_magnitude": 31}, "--ra-magnitude is 31; accepted: 0 to 30"),
        ({"auto_augment": "autoaugment"}, "accepted: none, randaugment, trivialaugment"),
        ({"color_jitter": (0.4, 0.4)}, "--color-jitter is 0.4 0.4; accepted: one number"),
        ({"color_jitter": (0.4, -0.1, 0.0)}, "--color-jitter is 0.4 -0.1 0; accepted: 0 or more"),
        ({"color_jitter": (0.4, 0.4, 0.4, 0.6)}, "hue 0.6; accepted: 0 to 0.5"),
        ({"cutmix": -1.0}, "--cutmix is -1.0; accepted: 0 or more"),
        ({"mixup": float("nan")}, "--mixup is nan; accepted: 0 or more"),
        ({"rotate": -5.0}, "--rotate is -5.0; accepted: 0 or more"),
        ({"augment": False, "cutmix": 1.0}, "--cutmix means nothing with --no-augment"),
        ({"augment": False, "random_resized_crop": True}, "--random-resized-crop means nothing with --no-augment"),
    ],
)
def test_options_out_of_range_or_without_effect_are_refused(options, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AugmentConfig(**options)
