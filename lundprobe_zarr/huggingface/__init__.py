"""LUND-PROBE through Hugging Face `datasets`: tables, lazy volumes, slices and patches.

Nothing is imported here: the package's own import puts `private.register_with_datasets` in place,
which must cost nothing where `datasets` is not used.
"""
