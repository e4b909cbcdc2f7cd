"""What only the notebook shows: the model taken apart, and figures that teach. Calls
reports and all below."""
