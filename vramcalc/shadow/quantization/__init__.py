"""How base weights are stored and read: bitsandbytes' four bits."""
