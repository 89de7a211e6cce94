-- What is appended lies in bus_log once; each durable consumer has a row in bus_ready (or bus_delayed) for what it has
-- not got yet, and one in bus_batches for what one receive handed out.

CREATE TABLE bus_stores (
    id        INTEGER PRIMARY KEY,
    namespace TEXT    NOT NULL,
    name      TEXT    NOT NULL, -- events, commands
    kept      INTEGER NOT NULL DEFAULT 0, -- rows of this store in bus_log
    UNIQUE (namespace, name)
) STRICT;

-- hidden: it came back from the dead for one consumer, and is deleted once that has done it.
CREATE TABLE bus_log (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    store      INTEGER NOT NULL,
    subject    TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    headers    BLOB,
    priority   INTEGER NOT NULL,
    stored_at  INTEGER NOT NULL,
    redrives   INTEGER NOT NULL,
    hidden     INTEGER NOT NULL,
    payload    BLOB    NOT NULL
) STRICT;

-- touched_at, expires_s: deleted after nobody consumed for so long (NULL: never).
CREATE TABLE bus_consumers (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace  TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    store      INTEGER NOT NULL,
    pattern    TEXT    NOT NULL,
    expires_s  REAL,
    touched_at INTEGER NOT NULL,
    UNIQUE (namespace, name)
) STRICT;

-- urgency: 0 is the most urgent. attempt: how often it was handed out before. since: when it became ready.
CREATE TABLE bus_ready (
    consumer INTEGER NOT NULL,
    urgency  INTEGER NOT NULL,
    message  INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    since    INTEGER NOT NULL,
    PRIMARY KEY (consumer, urgency, message)
) STRICT, WITHOUT ROWID;

CREATE TABLE bus_delayed (
    consumer INTEGER NOT NULL,
    due_at   INTEGER NOT NULL,
    message  INTEGER NOT NULL,
    urgency  INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    PRIMARY KEY (consumer, due_at, message)
) STRICT, WITHOUT ROWID;

-- entries: MessagePack of [[message, urgency, attempt], …] that are not settled. due: the machine's monotonic clock, ms.
CREATE TABLE bus_batches (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    consumer INTEGER NOT NULL,
    session  INTEGER NOT NULL,
    due      INTEGER NOT NULL,
    entries  BLOB    NOT NULL
) STRICT;
CREATE INDEX bus_batches_consumer ON bus_batches (consumer);

CREATE TABLE bus_dead (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace  TEXT    NOT NULL,
    queue      TEXT    NOT NULL, -- name of the consumer
    store      INTEGER NOT NULL,
    subject    TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    headers    BLOB,
    priority   INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    error      BLOB,
    attempts   INTEGER NOT NULL,
    redrives   INTEGER NOT NULL,
    stored_at  INTEGER NOT NULL,
    died_at    INTEGER NOT NULL,
    payload    BLOB    NOT NULL
) STRICT;
CREATE INDEX bus_dead_queue ON bus_dead (namespace, queue, id);

CREATE TABLE bus_dedup (
    bucket  INTEGER NOT NULL,
    store   INTEGER NOT NULL,
    key     TEXT    NOT NULL,
    sent_at INTEGER NOT NULL,
    PRIMARY KEY (bucket, store, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE bus_results (
    namespace  TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    headers    BLOB,
    stored_at  INTEGER NOT NULL,
    payload    BLOB    NOT NULL,
    PRIMARY KEY (namespace, subject)
) STRICT, WITHOUT ROWID;
CREATE INDEX bus_results_age ON bus_results (stored_at);

-- One row for each opened bus; its file is locked as long as its process lives, its socket takes transient messages.
CREATE TABLE bus_sessions (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT    NOT NULL,
    file      TEXT    NOT NULL
) STRICT;

-- What a session subscribes to now; members share the work of a group.
CREATE TABLE bus_interest (
    session INTEGER NOT NULL,
    pattern TEXT    NOT NULL,
    team    TEXT    NOT NULL,
    members INTEGER NOT NULL,
    PRIMARY KEY (session, pattern, team)
) STRICT, WITHOUT ROWID;
