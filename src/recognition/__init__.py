"""What `voices.py` is made of: recordings, enrolled people, verdicts, files of vectors.
Calls runs and all below them."""
