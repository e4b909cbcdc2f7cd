"""The commands of `voices.py` and its page in the browser. Calls voices and all below
it."""
