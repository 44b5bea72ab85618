"""The defences that hold: adversarial training.

K-PGD (Madry et al., ICLR 2018), Free-m (Shafahi et al., NeurIPS 2019) and TRADES (Zhang et
al., ICML 2019). No attack is known that goes far below plain PGD. The published figures are
those of wide networks; the small ones here are trained for minutes.
"""

from freeadv_jax.gallery.defence import Defence, Defended, by_pgd


def honest(network, **options) -> Defended:
    """Return a network whose gradients are what they are, with the attacks on it.

    PGD on both losses is what is left to do where nothing is masked. `options` are further
    fields of `Defended`.
    """
    logits_fn = network.logits_fn
    return Defended(
        logits_fn,
        {
            "PGD-40": by_pgd(logits_fn),
            "PGD-40 on the margin": by_pgd(logits_fn, loss="margin"),
        },
        **options,
    )


def _method(name, *, from_natural=False, **options):
    def build(task):
        size = task.recipe.epsilon
        settings = {
            # Free-m makes as many updates of the weights as it replays a minibatch.
            "updates": task.recipe.robust_minibatches * options.get("replays", 1),
            "step_size": size if name == "free" else size / 4,
        }
        if from_natural:
            settings["init"] = task.natural.variables
        return honest(task.fit(name, method=name, **(settings | options)))

    return build


PGD = Defence(
    name="pgd-7",
    title="7-PGD",
    paper="Madry et al., ICLR 2018",
    kind="none",
    parameters="7 steps of epsilon / 4",
    broken_by="not broken",
    masks=False,
    published=0.47,
    build=_method("pgd", steps=7),
)
FREE = Defence(
    name="free-8",
    title="Free-8",
    paper="Shafahi et al., NeurIPS 2019",
    kind="none",
    parameters="8 replays, from the natural network",
    broken_by="not broken",
    masks=False,
    published=0.4682,
    # From random weights so few minibatches can end in a constant.
    build=_method("free", replays=8, from_natural=True),
)
TRADES = Defence(
    name="trades",
    title="TRADES",
    paper="Zhang et al., ICML 2019",
    kind="none",
    parameters="beta 6, 7 steps of epsilon / 4",
    broken_by="not broken",
    masks=False,
    published=0.47,
    build=_method("trades", steps=7),
)
