from itertools import islice

import jax
import numpy as np
import pytest

from freeadv_jax.data.sampling import Extra, array_batches, steps_per_pass
from freeadv_jax.data.split import Split
from freeadv_jax.errors import InputError


def numbered(examples, height=8, width=7, channels=3):
    """Return images of distinct non-zero noise, labelled by their numbers."""
    rng = np.random.default_rng(3)
    images = rng.integers(1, 256, (examples, height, width, channels), np.uint8)
    return Split(images, np.arange(examples, dtype=np.int32))


def drawn(
    split, number, *, first=0, batch_size=8, seed=0, pad=0, flip=False, **options
):
    batches = array_batches(
        split, batch_size=batch_size, seed=seed, pad=pad, flip=flip, **options
    )
    return jax.device_get(list(islice(batches(first), number)))


def labels_of(batches):
    return np.concatenate([batch["label"] for batch in batches])


def test_every_image_appears_exactly_once_a_pass_in_a_new_order():
    split = numbered(64)
    batches = drawn(split, 16)
    first, second = labels_of(batches[:8]), labels_of(batches[8:])
    np.testing.assert_array_equal(np.sort(first), np.arange(64))
    np.testing.assert_array_equal(np.sort(second), np.arange(64))
    assert (first != second).any()
    assert (first != np.arange(64)).any()


def test_images_keep_their_labels_and_their_pixels():
    split = numbered(20)
    for batch in drawn(split, 3):
        assert batch["image"].dtype == np.uint8
        assert batch["label"].dtype == np.int32
        np.testing.assert_array_equal(batch["image"], split.images[batch["label"]])


def test_the_remainder_of_a_pass_is_dropped():
    labels = labels_of(drawn(numbered(21), 4)).reshape(2, 16)
    for one_pass in labels:
        assert len(set(one_pass.tolist())) == 16
    assert set(labels[0].tolist()) != set(labels[1].tolist())


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_a_batch_is_the_same_from_the_start_and_from_its_own_step(step):
    split = numbered(30)  # Three steps a pass.
    from_start = drawn(split, 10, pad=2, flip=True)
    for one, other in zip(
        from_start[step:], drawn(split, 10 - step, first=step, pad=2, flip=True)
    ):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_another_seed_draws_other_images_and_other_offsets():
    split = Split(numbered(16).images[:1].repeat(16, 0), np.arange(16, dtype=np.int32))
    (one,), (other,) = (drawn(split, 1, seed=seed, pad=2) for seed in (0, 1))
    assert (one["label"] != other["label"]).any()
    assert (one["image"] != other["image"]).any()


def test_batches_have_the_same_bits_on_one_and_on_eight_devices(monkeypatch):
    split = numbered(40)
    options = {"batch_size": 16, "pad": 2, "flip": True}
    eight = drawn(split, 5, **options)
    with monkeypatch.context() as one_device:
        device = jax.devices()[:1]
        one_device.setattr(jax, "devices", lambda: device)
        one = drawn(split, 5, **options)
    for name in ("image", "label"):
        for batch, same in zip(eight, one):
            np.testing.assert_array_equal(batch[name], same[name])
    batch = next(array_batches(split, seed=0, **options)(0))
    assert {shard.data.shape[0] for shard in batch["image"].addressable_shards} == {2}
    assert len(batch["label"].addressable_shards) == 8


def offset_of(crop, image, pad):
    """Return the only place of `crop` in the zero-padded image."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    matches = [
        (row, column)
        for row in range(2 * pad + 1)
        for column in range(2 * pad + 1)
        if (padded[row : row + height, column : column + width] == crop).all()
    ]
    assert len(matches) == 1
    return matches[0]


def test_each_crop_is_a_window_of_the_padded_image_and_every_offset_occurs_evenly():
    pad, split = 2, numbered(512)
    batches = drawn(split, 4, batch_size=512, pad=pad)
    counts = np.zeros((5, 5), int)
    for batch in batches:
        for crop, label in zip(batch["image"], batch["label"]):
            counts[offset_of(crop, split.images[label], pad)] += 1
    assert counts.sum() == 2048
    # The expected count at each of the 25 offsets is 82, with deviation 8.9.
    assert counts.min() > 45
    assert counts.max() < 115


def test_half_of_the_images_are_mirrored_left_to_right():
    split = numbered(512)
    flips = []
    for batch in drawn(split, 4, batch_size=512, flip=True):
        originals = split.images[batch["label"]]
        mirrored = (batch["image"] == originals[:, :, ::-1]).all((1, 2, 3))
        kept = (batch["image"] == originals).all((1, 2, 3))
        assert (mirrored ^ kept).all()
        flips.append(mirrored)
    assert 0.45 < np.mean(flips) < 0.55
    assert (flips[0] != flips[1]).any()


def test_nothing_is_compiled_after_the_first_batch():
    durations = []

    def listener(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            durations.append(duration)

    iterator = array_batches(numbered(32), batch_size=8, seed=0, pad=1, flip=True)(0)
    next(iterator)
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        jax.block_until_ready(list(islice(iterator, 11)))  # Three passes.
        assert durations == []
        jax.block_until_ready(jax.jit(lambda x: x * 3 + 1)(np.float32(2)))
        assert len(durations) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_a_batch_larger_than_the_set_is_refused_naming_both():
    assert steps_per_pass(50_000, 128) == 390
    message = "^batch size is 1,348 for 1,347 training images: must be 1 to 1,347$"
    with pytest.raises(InputError, match=message):
        steps_per_pass(1347, 1348)
    with pytest.raises(InputError, match="^batch size is 0 for 10 training"):
        steps_per_pass(10, 0)
    with pytest.raises(InputError, match="^batch size is 9 for 8 training"):
        drawn(numbered(8), 1, batch_size=9)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_beyond_32_bits_is_refused(seed):
    with pytest.raises(InputError, match=f"^seed is {seed}: must be 0 to 4294967295$"):
        drawn(numbered(8), 1, seed=seed)


@pytest.mark.parametrize(
    ("fraction", "batch_size", "rows"),
    [(0.5, 8, 4), (0.7, 128, 90), (0.07, 8, 1), (0.99, 8, 7)],
)
def test_extra_images_take_their_share_of_a_batch(fraction, batch_size, rows):
    assert Extra(numbered(4), fraction).rows(batch_size) == rows


@pytest.mark.parametrize(("fraction", "batch_size"), [(0.01, 8), (0.7, 1)])
def test_a_batch_too_small_for_extra_images_is_refused(fraction, batch_size):
    extra = Extra(numbered(4), fraction)
    message = (
        f"^a batch of {batch_size} images has no place for extra ones: .*{fraction}"
    )
    with pytest.raises(InputError, match=message):
        drawn(numbered(32), 1, batch_size=batch_size, extra=extra)


def joined(number, *, first=0, fraction=0.75, **options):
    """Return batches of 32 images labelled 0 to 31 and 60 extra ones, from 100 on."""
    extra = Split(numbered(60).images // 2, np.arange(100, 160, dtype=np.int32))
    return drawn(
        numbered(32), number, first=first, extra=Extra(extra, fraction), **options
    )


def test_extra_images_have_passes_of_their_own():
    batches = joined(20)
    labels = np.stack([batch["label"] for batch in batches])
    own, extra = labels[labels < 100], labels[labels >= 100]
    # 2 of 8 images are from the training set: 16 steps a pass, against 10 of the others.
    assert (own.size, extra.size) == (40, 120)
    np.testing.assert_array_equal(np.sort(own[:32]), np.arange(32))
    for one_pass in extra.reshape(2, 60):
        np.testing.assert_array_equal(np.sort(one_pass), np.arange(100, 160))
    assert (extra[:60] != extra[60:]).any()
    images = np.concatenate([numbered(32).images, numbered(60).images // 2])
    for batch in batches:
        numbers = np.where(batch["label"] < 100, batch["label"], batch["label"] - 68)
        np.testing.assert_array_equal(batch["image"], images[numbers])


def test_extra_images_are_spread_evenly_over_the_batch():
    (batch,) = joined(1, batch_size=32, fraction=0.25)
    is_extra = batch["label"].reshape(8, 4) >= 100
    np.testing.assert_array_equal(is_extra.sum(axis=1), 1)


def test_a_batch_with_extra_images_is_a_function_of_seed_and_step():
    options = {"pad": 2, "flip": True}
    whole = joined(22, **options)
    for one, other in zip(whole[17:], joined(5, first=17, **options), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_too_few_extra_images_for_a_batch_are_refused():
    few = Extra(numbered(3), 0.5)
    with pytest.raises(InputError, match="batch size is 4 for 3 training images"):
        drawn(numbered(32), 1, extra=few)
