"""What is learned: LoRA (Hu et al. 2021) and its kin beside the frozen layers of UNet and text encoders."""
