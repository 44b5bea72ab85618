"""Training methods, each a function (state, batch, *, ...) -> (state, metrics)."""
