"""What many processes need: one end, one preemption, W&B closed in time."""
