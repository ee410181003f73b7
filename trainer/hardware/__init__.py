"""Device, precision, compilation and memory of the machine that trains."""
