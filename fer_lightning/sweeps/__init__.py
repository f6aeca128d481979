"""The jobs of a sweep: their processes, devices and folders, here and on a cluster."""
