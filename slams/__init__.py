"""SLAMS: score-based latent assimilation in a multimodal setting. The science, and the formats the jobs share."""

__version__ = "0.1.0"
