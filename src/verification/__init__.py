"""Trials, metrics and scores of speaker verification. Calls engine, parameters and
errors."""
