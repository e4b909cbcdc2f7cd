"""Trials, scores and metrics of speaker verification. Calls engine and errors."""
