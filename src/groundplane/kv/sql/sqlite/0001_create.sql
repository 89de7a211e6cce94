CREATE TABLE kv_buckets (
    bucket_id INTEGER PRIMARY KEY,
    namespace TEXT    NOT NULL,
    name      TEXT    NOT NULL,
    history   INTEGER NOT NULL CHECK (history BETWEEN 1 AND 64),
    ttl       INTEGER NOT NULL CHECK (ttl IN (0, 1)),
    revision  INTEGER NOT NULL DEFAULT 0,
    UNIQUE (namespace, name)
) STRICT;

-- The last change of each key. kind: 0 put, 1 deleted, 2 expired.
CREATE TABLE kv_entries (
    bucket_id  INTEGER NOT NULL REFERENCES kv_buckets,
    key        TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    kind       INTEGER NOT NULL CHECK (kind IN (0, 1, 2)),
    value      BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    UNIQUE (bucket_id, key)
) STRICT;

CREATE UNIQUE INDEX kv_entries_revision ON kv_entries (bucket_id, revision);
CREATE INDEX kv_entries_expiry ON kv_entries (bucket_id, expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX kv_entries_removed ON kv_entries (bucket_id, created_at) WHERE kind <> 0;

-- Changes before the last one, for buckets with a history.
CREATE TABLE kv_older (
    bucket_id  INTEGER NOT NULL REFERENCES kv_buckets,
    key        TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    kind       INTEGER NOT NULL CHECK (kind IN (0, 1, 2)),
    value      BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    UNIQUE (bucket_id, key, revision)
) STRICT;

CREATE TABLE kv_fences (
    bucket_id INTEGER NOT NULL REFERENCES kv_buckets,
    name      TEXT    NOT NULL,
    term      INTEGER NOT NULL,
    PRIMARY KEY (bucket_id, name)
) STRICT, WITHOUT ROWID;
