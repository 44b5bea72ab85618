"""The defences of the gallery by name, in the order of its page."""

from freeadv_jax.gallery.defences import (
    adversarial,
    bit_depth,
    cascade,
    certified,
    distillation,
    fgsm,
    generator,
    input_gradients,
    jpeg,
    lid,
    pruning,
    purifier,
    random_crops,
    resize_and_pad,
    stability,
    thermometer,
    total_variation,
)

DEFENCES = {
    defence.name: defence
    for defence in (
        thermometer.DEFENCE,
        bit_depth.DEFENCE,
        jpeg.DEFENCE,
        total_variation.DEFENCE,
        random_crops.DEFENCE,
        pruning.DEFENCE,
        resize_and_pad.DEFENCE,
        purifier.DEFENCE,
        generator.DEFENCE,
        distillation.DEFENCE,
        lid.DEFENCE,
        cascade.DEFENCE,
        stability.DEFENCE,
        input_gradients.DEFENCE,
        fgsm.DEFENCE,
        adversarial.PGD,
        adversarial.FREE,
        adversarial.TRADES,
        certified.DEFENCE,
    )
}
