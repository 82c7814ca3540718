"""What families of models share: attention kernels, masks, rotary positions, experts."""
