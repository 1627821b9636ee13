"""Scores, held-out evaluation and their detectors."""
