CREATE TABLE ledger_effects (
    namespace  TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    done       INTEGER NOT NULL DEFAULT 0 CHECK (done IN (0, 1)),
    value      BLOB,
    written_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, key)
) STRICT, WITHOUT ROWID;

CREATE TABLE ledger_joins (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace  TEXT    NOT NULL,
    parent_id  TEXT    NOT NULL,
    hop        INTEGER NOT NULL,
    actor      TEXT    NOT NULL,
    total      INTEGER NOT NULL,
    arrived    INTEGER NOT NULL DEFAULT 0,
    released   INTEGER NOT NULL DEFAULT 0 CHECK (released IN (0, 1)),
    written_at INTEGER NOT NULL,
    UNIQUE (namespace, parent_id, hop, actor)
) STRICT;

CREATE TABLE ledger_children (
    join_id INTEGER NOT NULL REFERENCES ledger_joins (id) ON DELETE CASCADE,
    child   INTEGER NOT NULL,
    payload BLOB    NOT NULL,
    PRIMARY KEY (join_id, child)
) STRICT;
