"""The random numbers of TensorFlow's `stateless_uniform`, without TensorFlow."""

import numpy as np
from jaxtyping import Float32, UInt32

# Philox4x32 (Salmon et al., SC 2011): the multipliers, what is added to the key in each
# round, and the rounds.
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
# TensorFlow scrambles a seed with this key.
_SCRAMBLING = np.array([0x3EC8F720, 0x02461E29], np.uint64)


def stateless_uniform(seed: tuple[int, int], count: int) -> Float32[np.ndarray, " n"]:
    """Return the `count` numbers in [0, 1) of `tf.random.stateless_uniform`.

    They are those of its algorithm 'philox' for a seed of two int64.
    """
    words = np.array([part >> shift & 0xFFFFFFFF for part in seed for shift in (0, 32)])
    mixed = _philox(words.astype(np.uint64)[:, None], _SCRAMBLING)[:, 0]
    blocks = -(-count // 4)
    counters = np.zeros((4, blocks), np.uint64)
    counters[0] = np.arange(blocks)
    counters[2:] = mixed[2:, None]
    bits = _philox(counters, mixed[:2].astype(np.uint64)).T.reshape(-1)[:count]
    # The 23 lower bits are the fraction of a number from 1 to 2.
    return (bits & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)).view(np.float32) - 1


def _philox(counters, key) -> UInt32[np.ndarray, "4 blocks"]:
    """Return four random words for each of the counters [4, blocks]."""
    words, key = counters.copy(), key.copy()
    for _ in range(_ROUNDS):
        products = _MULTIPLIERS[:, None] * words[::2]
        high, low = products >> np.uint64(32), products & _LOW
        words = np.stack(
            [
                high[1] ^ words[1] ^ key[0],
                low[1],
                high[0] ^ words[3] ^ key[1],
                low[0],
            ]
        )
        key = key + _WEYL & _LOW
    return words.astype(np.uint32)
