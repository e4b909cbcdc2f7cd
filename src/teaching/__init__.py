"""What only the notebook shows: lessons and the model taken apart. Calls losses and all
below them."""
