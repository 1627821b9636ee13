"""The embedded demo model: scenes with exact ground truth, the training script and small weights."""
