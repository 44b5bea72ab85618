"""Free-4 on a folder of one's own images with ViT-S from clean weights, at 4/255.

The last layer is made new for the classes of the folder. FILE holds PyTorch weights of a
ViT-S or DeiT-S that was trained naturally, such as timm's deit_small_patch16_224. Nothing here
was tuned.

Command: python -m freeadv_jax.main --config=configs/folder_vit_s_free4.py --config.data.name=folder:PATH --config.init=FILE
Published: no figures; the images are one's own.
Ours: not yet run.
"""

from freeadv_jax.recipes import folder_from_clean_weights


def get_config():
    return folder_from_clean_weights("vit-s")
