"""What happens around training: recording, stopping, checkpoints, and telling people. One idea per file.

All of them read device values only at log points (every ``trainer.log_every_n_steps`` steps and at each validation),
never in a step. Under DDP every rank runs them, so that all stop together; rank 0 alone writes.
"""
