"""What runs, where, and after what: `python -m jobs NAME …`."""
