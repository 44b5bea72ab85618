"""Analyses of trained models beyond a table of accuracies."""
