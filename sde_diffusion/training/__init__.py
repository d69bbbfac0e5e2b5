"""How is the denoiser learnt? Objectives, the LightningModule, weight averaging and callbacks."""
