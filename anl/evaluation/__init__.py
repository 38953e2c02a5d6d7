"""Evaluation: scores, metrics with intervals, and the comparison table."""
