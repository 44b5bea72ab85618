"""Independent implementations on the same weights and images, with one judge."""
