"""Six kinds of data, each from raw files to tokens and back. See `modalities.base` for the protocol."""
