"""Run folders: what is in them, and the training and evaluation that fill them."""
