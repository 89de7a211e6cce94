-- Deliveries that were handled, where the queues do not drop repeats themselves. A key is a hash over namespace and key.
CREATE TABLE ledger_handled (
    key        BLOB    NOT NULL PRIMARY KEY CHECK (length(key) = 16),
    handled_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX ledger_handled_age ON ledger_handled (handled_at);
