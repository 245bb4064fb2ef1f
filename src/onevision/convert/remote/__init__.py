"""The code beside exported weights, which `trust_remote_code=True` loads.

`onevision.convert.exporting` copies the other files of this folder as they are. They need torch, transformers and
Pillow only, and no other file of this repository.
"""
