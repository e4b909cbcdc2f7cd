"""What was found, as tables, figures and maps. Calls verification, dataset and all
below them."""
