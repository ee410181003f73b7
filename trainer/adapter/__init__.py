"""Adapters: LoRA (Hu et al. 2021) and related networks beside frozen layers of UNet and text encoders."""
