"""Other people's implementations, brought to the same weights, images and judge."""
