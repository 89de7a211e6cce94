-- A message that was handed out is where it was: the cursor has passed it and a claim covers its id. A message that
-- comes back moves to another row, so that an id names one handing-over, and a late settlement finds nothing.

CREATE TABLE queues (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace    TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    attempts_max INTEGER NOT NULL,
    depth_max    INTEGER NOT NULL,
    last         INTEGER NOT NULL DEFAULT 0, -- number of the last message that was appended
    cursor       INTEGER NOT NULL DEFAULT 0, -- number of the last one that was handed out: last - cursor are ready
    retaken      INTEGER NOT NULL DEFAULT 0, -- how many were taken out of queue_waiting
    waiting      INTEGER NOT NULL DEFAULT 0, -- rows of this queue in queue_waiting
    UNIQUE (namespace, name)
) STRICT;

-- id = queue << 41 | 1 << 40 | number for a message in its turn, queue << 41 | n for the n-th that was retaken.
CREATE TABLE queue_messages (
    id          INTEGER PRIMARY KEY,
    message_id  TEXT    NOT NULL,
    headers     BLOB,
    attempt     INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    redrives    INTEGER NOT NULL,
    position    INTEGER,
    error       BLOB,
    payload     BLOB    NOT NULL
) STRICT;

-- Delayed, or handed back (due at 0, in their old order). Whoever claims takes what is due from here first.
CREATE TABLE queue_waiting (
    id          INTEGER PRIMARY KEY,
    queue       INTEGER NOT NULL,
    due_at      INTEGER NOT NULL,
    position    INTEGER NOT NULL,
    message_id  TEXT    NOT NULL,
    headers     BLOB,
    attempt     INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    redrives    INTEGER NOT NULL,
    error       BLOB,
    payload     BLOB    NOT NULL
) STRICT;
CREATE INDEX queue_waiting_due ON queue_waiting (queue, due_at, position);

CREATE TABLE queue_dead (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    queue       INTEGER NOT NULL,
    message_id  TEXT    NOT NULL,
    headers     BLOB,
    reason      TEXT    NOT NULL,
    error       BLOB,
    attempts    INTEGER NOT NULL,
    redrives    INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    died_at     INTEGER NOT NULL,
    payload     BLOB    NOT NULL
) STRICT;
CREATE INDEX queue_dead_queue ON queue_dead (queue, id);

-- One row for each process that consumes. The file is locked as long as it lives; beat grows as long as it runs.
CREATE TABLE queue_sessions (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,
    file TEXT    NOT NULL,
    pid  INTEGER NOT NULL,
    beat INTEGER NOT NULL DEFAULT 0
) STRICT;

-- What a session holds: the messages of these ids that still exist. A slot is written over once they are all gone.
CREATE TABLE queue_claims (
    session INTEGER NOT NULL,
    slot    INTEGER NOT NULL,
    first   INTEGER NOT NULL,
    last    INTEGER NOT NULL,
    PRIMARY KEY (session, slot)
) STRICT, WITHOUT ROWID;

-- Only for consumers that hold by leases. due is in milliseconds of the machine's monotonic clock.
CREATE TABLE queue_leases (
    id  INTEGER PRIMARY KEY,
    due INTEGER NOT NULL
) STRICT;
CREATE INDEX queue_leases_due ON queue_leases (due);

-- Time first, so that old keys lie together and new ones beside each other when they begin with a UUIDv7.
CREATE TABLE queue_dedup (
    bucket  INTEGER NOT NULL,
    queue   INTEGER NOT NULL,
    key     TEXT    NOT NULL,
    sent_at INTEGER NOT NULL,
    PRIMARY KEY (bucket, queue, key)
) STRICT, WITHOUT ROWID;
