"""Owning objects over the C ABI: runtime, device, streams, buffers, datasets, models."""
