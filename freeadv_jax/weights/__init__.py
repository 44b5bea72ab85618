"""Trained models as functions and as files."""
