"""What a person calls `Voices` by: the page. Calls voices and all below it."""
