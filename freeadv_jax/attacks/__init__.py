"""Attacks on anybody's JAX model, through `logits_fn(images) -> logits`."""
