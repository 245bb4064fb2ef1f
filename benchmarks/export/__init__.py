"""Export and import: other loaders beside the checkpoint, memory and bandwidth."""
