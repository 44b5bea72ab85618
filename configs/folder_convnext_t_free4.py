"""Free-4 on a folder of one's own images with ConvNeXt-T from clean weights, at 4/255.

The last layer is made new for the classes of the folder. FILE holds PyTorch weights of a
ConvNeXt-T that was trained naturally, such as timm's convnext_tiny. Nothing here was tuned.

Command: python -m freeadv_jax.main --config=configs/folder_convnext_t_free4.py --config.data.name=folder:PATH --config.init=FILE
Published: no figures; the images are one's own.
Ours: not yet run.
"""

from freeadv_jax.recipes import folder_from_clean_weights


def get_config():
    return folder_from_clean_weights("convnext-t")
