"""Results as tables, figures and interactive maps. Calls verification, dataset and all
below."""
