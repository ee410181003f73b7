"""Makes the bundled base and the sample set from public packages, reproducibly."""
