"""Jobs: the durable record of work, its state machine, event log and outbox."""
