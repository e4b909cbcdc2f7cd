"""What a training leaves behind: checkpoints, the run directory, the page on W&B. Calls
reports and all below them."""
