"""The LightningModule: network, optimizer, training metrics, checkpoint."""
