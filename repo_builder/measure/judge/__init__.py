"""Judging what was measured: accuracy, the ladder, comparisons, explanations, statistics."""
