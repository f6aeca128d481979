"""From arrays to batches: the LightningDataModule, augmentation, and its random numbers."""
