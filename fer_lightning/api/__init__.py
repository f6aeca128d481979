"""The Python API, thin over the packages below; ``import fer_lightning as fl`` has its names."""
