"""Machinery: planning what lanes do, and running the denoiser over them."""
