"""AscendCL's C ABI as data, and one checker."""
