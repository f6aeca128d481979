"""FER-2013 as arrays: sources, cache, splits, drawn faces, augmentation, and the LightningDataModule."""
