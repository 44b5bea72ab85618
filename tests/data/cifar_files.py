"""Write synthetic CIFAR files in every published form."""

import struct
import tarfile

import numpy as np

BATCHES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
FILES = {  # name of the file in binary form and in pickled form, number of images
    "cifar10": [(f"{name}.bin", name, 10_000) for name in BATCHES],
    "cifar100": [("train.bin", "train", 50_000), ("test.bin", "test", 10_000)],
}
FORMS = {  # folder and archive of the binary form, then of the pickled one
    "cifar10": [
        ("cifar-10-batches-bin", "cifar-10-binary.tar.gz"),
        ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    ],
    "cifar100": [
        ("cifar-100-binary", "cifar-100-binary.tar.gz"),
        ("cifar-100-python", "cifar-100-python.tar.gz"),
    ],
}
ROW = np.random.default_rng(2).integers(0, 256, 3072, np.uint8)


def python2_pickle(rows, **labels):
    """Return a pickle as Python 2 wrote it: strings are bytes, NumPy has its old names."""
    number, width = rows.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R("
        + b"K\x01"
        + struct.pack("<BiBi", ord("J"), number, ord("J"), width)
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
        + b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", rows.size)
        + rows.tobytes()
        + b"tb"
    )
    pairs = b"U\x04data" + array
    for key, values in labels.items():
        pairs += b"U" + bytes([len(key)]) + key.encode() + b"]("
        pairs += b"".join(b"K" + bytes([value]) for value in values) + b"e"
    return b"\x80\x02}(" + pairs + b"u."


def write_all(root, name):
    """Write each folder and each archive into a directory; return the paths to read."""
    places = []
    for form, (folder, archive) in enumerate(FORMS[name]):
        unpacked, packed = root / f"unpacked {form}", root / f"packed {form}"
        (unpacked / folder).mkdir(parents=True)
        packed.mkdir()
        places += [unpacked, unpacked / folder, packed]
        for number, (*names, records) in enumerate(FILES[name]):
            rows = np.tile(ROW, (records, 1))
            rows[:, 0] = np.arange(records) % 251
            rows[:, 1] = number
            labels = (np.arange(records) + number) % (10 if name == "cifar10" else 100)
            lists = {"coarse_labels": labels % 20, "fine_labels": labels}
            lists = {"labels": labels} if name == "cifar10" else lists
            content = python2_pickle(rows, **lists)
            if form == 0:
                columns = np.stack(list(lists.values()), axis=1).astype(np.uint8)
                content = np.concatenate([columns, rows], axis=1).tobytes()
            (unpacked / folder / names[form]).write_bytes(content)
        with tarfile.open(packed / archive, "w:gz", compresslevel=1) as members:
            members.add(unpacked / folder, arcname=folder)
    return places
