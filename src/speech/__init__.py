"""Where sound comes from: corpora, downloads, decoding, rooms and noise, synthetic
voices. Calls engine, parameters and errors."""
