-- Jobs, their event log, their outbox, and the branches of their fan-outs. Times are Unix milliseconds.
-- Values of users are MessagePack (arguments, route, result, error, headers); the data of events is JSON.

CREATE TABLE job_namespaces (
  id         INTEGER PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,
  trimmed_to INTEGER NOT NULL DEFAULT 0   -- no event up to this id is left but final ones
) STRICT;

CREATE TABLE jobs (
  seq             INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace       INTEGER NOT NULL,
  job_id          TEXT NOT NULL CHECK (job_id <> ''),
  tool            TEXT NOT NULL,
  owner           TEXT NOT NULL,
  idempotency_key TEXT,
  arguments_hash  TEXT NOT NULL,
  state           TEXT NOT NULL DEFAULT 'pending' CHECK (state IN
    ('pending', 'running', 'paused', 'succeeded', 'failed', 'cancelled', 'timed_out')),
  progress        REAL NOT NULL DEFAULT 0 CHECK (progress BETWEEN 0 AND 100),
  message         TEXT NOT NULL DEFAULT '',
  actor           TEXT NOT NULL DEFAULT '',
  steps_completed INTEGER NOT NULL DEFAULT 0 CHECK (steps_completed BETWEEN 0 AND total_steps),
  total_steps     INTEGER NOT NULL CHECK (total_steps > 0),
  route           BLOB NOT NULL,
  arguments       BLOB NOT NULL,
  result          BLOB,
  error           BLOB,
  result_key      TEXT,
  aborted         INTEGER NOT NULL DEFAULT 0 CHECK (aborted IN (0, 1)),
  fan_out         INTEGER NOT NULL DEFAULT 0 CHECK (fan_out IN (0, 1)),   -- whether job_branches has rows
  finished_by     TEXT,                                                   -- the envelope whose end ended the job
  pauses          INTEGER NOT NULL DEFAULT 0,
  created_at      INTEGER NOT NULL,
  updated_at      INTEGER NOT NULL,
  finished_at     INTEGER,
  deadline_at     INTEGER,
  paused_at       INTEGER,
  token_hash      TEXT NOT NULL DEFAULT '',
  trace           TEXT NOT NULL DEFAULT '',
  trimmed_to      INTEGER NOT NULL DEFAULT 0,                             -- events up to this id were deleted
  CHECK ((progress = 100) = (state = 'succeeded')),
  CHECK ((paused_at IS NOT NULL) = (state = 'paused')),
  CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'timed_out'))),
  CHECK ((result IS NOT NULL) = (state = 'succeeded')),
  CHECK ((error IS NOT NULL) = (state IN ('failed', 'timed_out'))),
  UNIQUE (namespace, job_id)
) STRICT;

CREATE UNIQUE INDEX jobs_idempotency ON jobs (namespace, owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_deadline ON jobs (namespace, deadline_at)
  WHERE deadline_at IS NOT NULL AND state IN ('pending', 'running');
CREATE INDEX jobs_finished ON jobs (namespace, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_of_owner ON jobs (namespace, owner, seq);
CREATE INDEX jobs_live ON jobs (namespace, owner, seq) WHERE finished_at IS NULL;

CREATE TABLE job_transitions (
  before TEXT NOT NULL,
  after  TEXT NOT NULL,
  PRIMARY KEY (before, after)
) STRICT, WITHOUT ROWID;

INSERT INTO job_transitions VALUES
  ('pending', 'running'), ('pending', 'paused'),
  ('pending', 'succeeded'), ('pending', 'failed'), ('pending', 'cancelled'), ('pending', 'timed_out'),
  ('running', 'paused'),
  ('running', 'succeeded'), ('running', 'failed'), ('running', 'cancelled'), ('running', 'timed_out'),
  ('paused', 'pending'), ('paused', 'running'),
  ('paused', 'succeeded'), ('paused', 'failed'), ('paused', 'cancelled');

CREATE TRIGGER jobs_begin_pending BEFORE INSERT ON jobs
WHEN NEW.state <> 'pending' OR NEW.progress <> 0
BEGIN SELECT RAISE(ABORT, 'a job begins as pending, at 0'); END;

CREATE TRIGGER jobs_move_as_allowed BEFORE UPDATE OF state ON jobs
WHEN NEW.state <> OLD.state
  AND NOT EXISTS (SELECT 1 FROM job_transitions WHERE before = OLD.state AND after = NEW.state)
BEGIN SELECT RAISE(ABORT, 'the state of a job does not change like that'); END;

CREATE TRIGGER jobs_never_go_back BEFORE UPDATE OF progress ON jobs
WHEN NEW.progress < OLD.progress
BEGIN SELECT RAISE(ABORT, 'the progress of a job never decreases'); END;

CREATE TRIGGER jobs_end_once BEFORE UPDATE OF
  state, progress, steps_completed, total_steps, result, error, aborted, finished_at, finished_by ON jobs
WHEN OLD.finished_at IS NOT NULL
BEGIN SELECT RAISE(ABORT, 'a job that has ended does not change'); END;

CREATE TRIGGER jobs_are_filed_once BEFORE UPDATE OF result_key ON jobs
WHEN OLD.finished_at IS NOT NULL AND (OLD.result_key IS NOT NULL OR OLD.finished_by IS NULL)
BEGIN SELECT RAISE(ABORT, 'the outcome of a job is filed once'); END;

CREATE TABLE job_events (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,   -- rises in the order of commit: SQLite has one writer at a time
  job        INTEGER NOT NULL,
  kind       TEXT NOT NULL,
  final      INTEGER NOT NULL DEFAULT 0 CHECK (final IN (0, 1)),
  data       TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

CREATE INDEX job_events_of_job ON job_events (job, id);
CREATE UNIQUE INDEX job_events_final ON job_events (job) WHERE final = 1;

CREATE TRIGGER job_events_are_append_only BEFORE UPDATE ON job_events
BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;

-- Which boot of the machine the last ids of events are from: a loss of power may have taken some that were seen.
CREATE TABLE job_boot (id TEXT NOT NULL) STRICT;

CREATE TABLE job_outbox (
  id           INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace    INTEGER NOT NULL,
  parked_for   INTEGER,                            -- the job (seq) for which an envelope was parked
  held         INTEGER NOT NULL DEFAULT 0 CHECK (held IN (0, 1)),
  leased_until INTEGER NOT NULL DEFAULT 0,
  queue        TEXT NOT NULL,
  message_id   TEXT NOT NULL,
  payload      BLOB NOT NULL,
  headers      BLOB NOT NULL,
  dedup_key    TEXT NOT NULL,
  CHECK (held = 0 OR parked_for IS NOT NULL)
) STRICT;

CREATE INDEX job_outbox_due ON job_outbox (namespace, id) WHERE held = 0;
CREATE UNIQUE INDEX job_outbox_parked ON job_outbox (parked_for, dedup_key) WHERE parked_for IS NOT NULL;

CREATE TABLE job_branches (
  job         INTEGER NOT NULL,
  envelope_id TEXT NOT NULL,
  parent      TEXT,                                -- NULL for the root of the tree
  position    INTEGER NOT NULL,                    -- the index among the children of the parent
  total       INTEGER NOT NULL CHECK (total > 0),  -- how many children the parent has
  state       TEXT NOT NULL CHECK (state IN ('live', 'split', 'done', 'failed', 'held', 'joined')),
  progress    REAL NOT NULL CHECK (progress BETWEEN 0 AND 100.001),
  heard       INTEGER NOT NULL DEFAULT 0 CHECK (heard IN (0, 1)),  -- whether it has reported anything itself
  aborted     INTEGER NOT NULL DEFAULT 0 CHECK (aborted IN (0, 1)),
  result      BLOB,
  error       BLOB,
  PRIMARY KEY (job, envelope_id),
  CHECK (state <> 'done' OR error IS NULL)
) STRICT, WITHOUT ROWID;

CREATE INDEX job_branches_children ON job_branches (job, parent, position);
CREATE INDEX job_branches_live ON job_branches (job) WHERE state = 'live';
