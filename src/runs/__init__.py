"""The model and what a training run leaves: checkpoints, the run directory, the page on
W&B. May call reports and the rooms below."""
