"""Several devices: one worker process each, kept running, watched and restarted in turn, and shown as one service."""
