"""Measure training images a second from the host, and the need of each method.

    python -m benchmarks.input_rate --data=DIR [--updates=64] [--rounds=3] [--out=FILE]

DIR holds JPEGs as train/<class>/* and val/<class>/*. They are read, cropped at random,
resized to 224 pixels and placed on the devices as in training, by each `data.reader` in
turns. Free-m replays a batch m times; tf.data's images are counted in the decoder.
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
from freeadv_jax.data.encoded import CODECS, TF_DATA
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


def measured(dataset, images):
    """Return the rate, after the batches made in advance are used up."""
    batches = dataset.batches(BATCH, seed=0)(0)
    for _ in range(8):  # These are made in advance, and during the start.
        next(batches)
    started, worked = time.perf_counter(), time.process_time()
    drawn = -(-images // BATCH) * BATCH
    for _ in range(drawn // BATCH):
        jax.block_until_ready(next(batches))
    return {
        "images_per_second": drawn / (time.perf_counter() - started),
        "processor_seconds_per_image": (time.process_time() - worked) / drawn,
    }


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
    datasets = {
        reader: load_dataset(
            **config.data.to_dict()
            | {"name": f"folder:{options.data}", "reader": reader}
        )
        for reader in CODECS
    }
    dataset = datasets[TF_DATA]
    files = dataset.train.images.items
    shapes = [jpeg_shape(file.read_bytes()) for file in files]
    rounds = [
        {reader: measured(each, 512) for reader, each in datasets.items()}
        for _ in range(options.rounds)
    ]
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
        "readers": {
            reader: {
                name: statistics.median(each[reader][name] for each in rounds)
                for name in rounds[0][reader]
            }
            for reader in datasets
        },
        "rounds": rounds,
        "batch": BATCH,
        "updates": options.updates,
        "methods": {
            name: draw(dataset, options.updates, replays)
            for name, replays in METHODS.items()
        },
    }
    for reader, row in results["readers"].items():
        print(
            f"{reader:8} {row['images_per_second']:.0f} images a second, "
            f"{1000 * row['processor_seconds_per_image']:.1f} ms of processors each"
        )
    for name, row in results["methods"].items():
        print(
            f"{name:8} {row['images_drawn_per_update']:5.1f} images an update, "
            f"{row['images_decoded']} decoded in {options.updates}"
        )
    write_record(options.out, results, packages=("tensorflow-cpu", "grain", "pillow"))


if __name__ == "__main__":
    run_command(main)
