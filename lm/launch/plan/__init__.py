"""What a training step would cost on a TPU, before there is one."""
