"""What only the notebook and the studies use: the model taken apart, figures that
teach, trainings that run once. Calls train and all below."""
