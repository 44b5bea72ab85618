"""Trained models looked into: what a table of accuracies does not show."""
