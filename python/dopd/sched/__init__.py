"""Who has which pages, and who takes part in the next step: pure, no threads, no sockets."""
