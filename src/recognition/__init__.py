"""What `voices.py` is made of: recordings, enrolled people, turns, verdicts, files of
vectors. Calls runs and all below them."""
