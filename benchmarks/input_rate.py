"""Measure training images a second from the host, and the need of each method.

    python -m benchmarks.input_rate --data=DIR [--updates=64] [--rounds=3] [--out=FILE]

DIR holds JPEGs as train/<class>/* and val/<class>/*. They are read, cropped at random,
resized to 224 pixels and placed on the devices as in training, where Free-m replays a
batch m times. Images are counted in the decoder.
"""

import os
import statistics
import threading
import time

import jax

from benchmarks.record import write_record
from freeadv_jax.command import Parser, count, run_command
from freeadv_jax.data import jpeg
from freeadv_jax.data.dataset import load_dataset
from freeadv_jax.recipes import imagenet

BATCH = 32
METHODS = {"natural": 1, "free-2": 2, "free-4": 4, "free-8": 8}


class Counter:
    """Count the images that reach the decoder."""

    def __init__(self):
        self.images = 0
        self._lock = threading.Lock()
        self._crop = jpeg.random_crop

    def random_crop(self, encoded, seed, **options):
        """Count an image, then crop it."""
        import tensorflow as tf

        counted = tf.numpy_function(self._count, [], [])
        with tf.control_dependencies([counted]):
            return self._crop(tf.identity(encoded), seed, **options)

    def _count(self):
        with self._lock:
            self.images += 1


def rate(dataset, images):
    """Return images a second, after the batches made in advance are used up."""
    batches = dataset.batches(BATCH, seed=0)(0)
    for _ in range(8):  # These are made in advance, and during the start.
        next(batches)
    started = time.perf_counter()
    steps = -(-images // BATCH)
    for _ in range(steps):
        jax.block_until_ready(next(batches))
    return steps * BATCH / (time.perf_counter() - started)


def draw(dataset, updates, replays):
    """Return the images drawn and decoded in this many updates."""
    counter = Counter()
    original, jpeg.random_crop = jpeg.random_crop, counter.random_crop
    try:
        batches = dataset.batches(BATCH, seed=0)(0)
        for update in range(updates):
            if update % replays == 0:
                batch = next(batches)
        jax.block_until_ready(batch)
        drawn = -(-updates // replays) * BATCH
        return {
            "images_drawn": drawn,
            "images_drawn_per_update": drawn / updates,
            # Batches made in advance are decoded beyond those drawn.
            "images_decoded": counter.images,
        }
    finally:
        jpeg.random_crop = original


def jpeg_shape(encoded):
    """Return height, width and channels of a JPEG."""
    import tensorflow as tf

    return tf.io.extract_jpeg_shape(encoded).numpy()


def main(argv):
    parser = Parser("benchmarks.input_rate", __doc__)
    parser.add_argument(
        "--data", metavar="DIR", required=True, help="the folder of photographs"
    )
    parser.add_argument("--updates", type=count, default=64, help="updates to count")
    parser.add_argument("--rounds", type=count, default=3, help="repetitions")
    parser.add_argument(
        "--out",
        metavar="FILE",
        default="benchmarks/results/input_rate.json",
        help="the record to write",
    )
    options = parser.parse_args(argv[1:])
    config = imagenet()
    dataset = load_dataset(**config.data.to_dict() | {"name": f"folder:{options.data}"})
    files = dataset.train.images.items
    shapes = [jpeg_shape(file.read_bytes()) for file in files]
    rates = [rate(dataset, 512) for _ in range(options.rounds)]
    results = {
        "jpegs": {
            "number": len(files),
            "mean_bytes": statistics.mean(file.stat().st_size for file in files),
            "mean_height": statistics.mean(int(shape[0]) for shape in shapes),
            "mean_width": statistics.mean(int(shape[1]) for shape in shapes),
        },
        "image_size": config.data.image_size,
        "processors": os.cpu_count(),
        # The other work of the machine meanwhile, in running programs.
        "load_average": os.getloadavg()[0],
        "images_per_second": statistics.median(rates),
        "all_images_per_second": rates,
        "batch": BATCH,
        "updates": options.updates,
        "methods": {
            name: draw(dataset, options.updates, replays)
            for name, replays in METHODS.items()
        },
    }
    print(f"{results['images_per_second']:.0f} images a second")
    for name, row in results["methods"].items():
        print(
            f"{name:8} {row['images_drawn_per_update']:5.1f} images an update, "
            f"{row['images_decoded']} decoded in {options.updates}"
        )
    write_record(options.out, results, packages=("tensorflow-cpu",))


if __name__ == "__main__":
    run_command(main)
