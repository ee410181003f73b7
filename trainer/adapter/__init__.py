"""LoRA (Hu et al. 2021): W' = W + (alpha / rank) B A, in the attention layers of UNet and text encoders."""
