PRAGMA application_id = 1196444750;
BEGIN TRANSACTION;
CREATE TABLE groundplane_schema (
    component  TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    name       TEXT    NOT NULL,
    checksum   TEXT    NOT NULL,
    applied_at INTEGER NOT NULL,
    PRIMARY KEY (component, version)
) STRICT, WITHOUT ROWID
;
INSERT INTO "groundplane_schema" VALUES('jobs',1,'jobs','dc66a2533d74a0754512c4d364ac403c6be562a17d49275cfe82f368732d16cd',1795361789736);
INSERT INTO "groundplane_schema" VALUES('jobs',2,'questions','9676c751b1ad283ed921bb5541ff3def7dab939784b5d408f5a4369742e86597',1795361789737);
INSERT INTO "groundplane_schema" VALUES('jobs',3,'fences','037ac7e5e6ded1f381a3c5265372a15fed5326a753bdd284f97ba408c1ce46b5',1795361789737);
CREATE TABLE job_boot (id TEXT NOT NULL) STRICT;
INSERT INTO "job_boot" VALUES('6f9c4969-d941-4422-8f2b-5303d958d25a');
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
INSERT INTO "job_branches" VALUES(7,'c0','e',0,2,'live',0.0,0,0,NULL,NULL);
INSERT INTO "job_branches" VALUES(7,'c1','e',1,2,'done',100.0,1,0,X'A36F6E65',NULL);
INSERT INTO "job_branches" VALUES(7,'e',NULL,0,1,'split',50.0,0,0,NULL,NULL);
CREATE TABLE job_events (
  id         INTEGER PRIMARY KEY AUTOINCREMENT,   -- rises in the order of commit: SQLite has one writer at a time
  job        INTEGER NOT NULL,
  kind       TEXT NOT NULL,
  final      INTEGER NOT NULL DEFAULT 0 CHECK (final IN (0, 1)),
  data       TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;
INSERT INTO "job_events" VALUES(1,1,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789755);
INSERT INTO "job_events" VALUES(2,2,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789759);
INSERT INTO "job_events" VALUES(3,3,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789763);
INSERT INTO "job_events" VALUES(4,4,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789767);
INSERT INTO "job_events" VALUES(5,5,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789771);
INSERT INTO "job_events" VALUES(6,6,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789775);
INSERT INTO "job_events" VALUES(7,7,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789779);
INSERT INTO "job_events" VALUES(8,8,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789783);
INSERT INTO "job_events" VALUES(9,9,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789787);
INSERT INTO "job_events" VALUES(10,2,'progress',0,'{"state":"running","progress":25.0,"message":"half","actor":"a","steps_completed":0,"total_steps":2,"envelope_id":"e","hop":0,"attempt":1}',1795361789791);
INSERT INTO "job_events" VALUES(11,4,'succeeded',1,'{"state":"succeeded","progress":100.0,"message":"","actor":"","steps_completed":2,"total_steps":2}',1795361789791);
INSERT INTO "job_events" VALUES(12,5,'failed',1,'{"state":"failed","progress":0.0,"message":"it broke","actor":"","steps_completed":0,"total_steps":2,"error":{"code":"internal","reason":"processing_error","message":"it broke","type":""}}',1795361789791);
INSERT INTO "job_events" VALUES(13,7,'split',0,'{"state":"running","progress":0.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"envelope_id":"e","total":2,"children":["c0","c1"]}',1795361789791);
INSERT INTO "job_events" VALUES(14,7,'branch',0,'{"state":"running","progress":50.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"envelope_id":"c1","parent_id":"e","index":1,"total":2,"outcome":"done","aborted":false}',1795361789791);
INSERT INTO "job_events" VALUES(15,6,'cancelled',1,'{"state":"cancelled","progress":0.0,"message":"enough","actor":"","steps_completed":0,"total_steps":2}',1795361789795);
INSERT INTO "job_events" VALUES(16,3,'paused',0,'{"state":"paused","progress":0.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"deadline_at":4102444800000}',1795361789799);
INSERT INTO "job_events" VALUES(17,3,'parked',0,'{"state":"paused","envelope_id":"e-paused","actor":"a"}',1795361789803);
INSERT INTO "job_events" VALUES(18,10,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789803);
INSERT INTO "job_events" VALUES(19,10,'paused',0,'{"state":"paused","progress":0.0,"message":"","actor":"","steps_completed":0,"total_steps":2,"deadline_at":4102444800000,"reason":"question"}',1795361789811);
INSERT INTO "job_events" VALUES(20,10,'asked',0,'{"state":"paused","question_id":"answered","kind":"elicit","message":"Sure?","schema":null,"params":{},"actor":"","envelope_id":"e-asking"}',1795361789811);
INSERT INTO "job_events" VALUES(21,10,'asked',0,'{"state":"paused","question_id":"open","kind":"elicit","message":"Sure?","schema":null,"params":{},"actor":"","envelope_id":"e-asking"}',1795361789811);
INSERT INTO "job_events" VALUES(22,10,'parked',0,'{"state":"paused","envelope_id":"e-asking","actor":"a"}',1795361789811);
INSERT INTO "job_events" VALUES(23,10,'answered',0,'{"state":"paused","question_id":"answered","action":"accept","by":"me"}',1795361789815);
INSERT INTO "job_events" VALUES(24,11,'created',0,'{"state":"pending","progress":0.0,"steps_completed":0,"total_steps":2,"tool":"t"}',1795361789819);
INSERT INTO "job_events" VALUES(25,8,'timed_out',1,'{"state":"timed_out","progress":0.0,"message":"The job did not end by its deadline, 1970-01-01T00:00:00.001Z.","actor":"","steps_completed":0,"total_steps":2,"error":{"code":"deadline_exceeded","reason":"deadline_exceeded","message":"The job did not end by its deadline, 1970-01-01T00:00:00.001Z.","type":""}}',1795361789823);
CREATE TABLE job_fences (
  namespace INTEGER NOT NULL,
  name      TEXT NOT NULL,
  term      INTEGER NOT NULL CHECK (term > 0),
  PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;
INSERT INTO "job_fences" VALUES(1,'planner',41);
CREATE TABLE job_namespaces (
  id         INTEGER PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,
  trimmed_to INTEGER NOT NULL DEFAULT 0   -- no event up to this id is left but final ones
) STRICT;
INSERT INTO "job_namespaces" VALUES(1,'released',0);
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
INSERT INTO "job_outbox" VALUES(1,1,NULL,0,0,'a','e-waiting',X'80',X'81A16BA176','e-waiting:0');
INSERT INTO "job_outbox" VALUES(2,1,3,1,0,'a','e-paused',X'80',X'81A16BA176','e-paused:0:resume-1');
INSERT INTO "job_outbox" VALUES(3,1,10,1,0,'a','e-asking',X'80',X'81A16BA176','e-asking:0:resume-1');
CREATE TABLE job_questions (
  job         INTEGER NOT NULL,
  question_id TEXT NOT NULL CHECK (question_id <> ''),
  number      INTEGER NOT NULL,                    -- the order in which the job's questions were asked
  kind        TEXT NOT NULL CHECK (kind IN ('elicit', 'sample', 'roots')),
  state       TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'answered', 'closed')),
  message     TEXT NOT NULL,
  schema      BLOB,
  params      BLOB NOT NULL,
  actor       TEXT NOT NULL,
  envelope_id TEXT NOT NULL,
  asked_at    INTEGER NOT NULL,
  answered_at INTEGER,
  action      TEXT CHECK (action IN ('accept', 'decline', 'cancel')),
  content     BLOB,
  answered_by TEXT,
  PRIMARY KEY (job, question_id),
  UNIQUE (job, number),
  CHECK ((answered_at IS NOT NULL) = (state = 'answered')),
  CHECK ((action IS NOT NULL) = (state = 'answered')),
  CHECK ((answered_by IS NOT NULL) = (state = 'answered')),
  CHECK (content IS NULL OR (state = 'answered' AND action = 'accept'))
) STRICT, WITHOUT ROWID;
INSERT INTO "job_questions" VALUES(10,'answered',0,'elicit','answered','Sure?',NULL,X'80','','e-asking',1795361789811,1795361789815,'accept',X'81A473757265C3','me');
INSERT INTO "job_questions" VALUES(10,'open',1,'elicit','open','Sure?',NULL,X'80','','e-asking',1795361789811,NULL,NULL,NULL,NULL);
CREATE TABLE job_transitions (
  before TEXT NOT NULL,
  after  TEXT NOT NULL,
  PRIMARY KEY (before, after)
) STRICT, WITHOUT ROWID;
INSERT INTO "job_transitions" VALUES('paused','cancelled');
INSERT INTO "job_transitions" VALUES('paused','failed');
INSERT INTO "job_transitions" VALUES('paused','pending');
INSERT INTO "job_transitions" VALUES('paused','running');
INSERT INTO "job_transitions" VALUES('paused','succeeded');
INSERT INTO "job_transitions" VALUES('pending','cancelled');
INSERT INTO "job_transitions" VALUES('pending','failed');
INSERT INTO "job_transitions" VALUES('pending','paused');
INSERT INTO "job_transitions" VALUES('pending','running');
INSERT INTO "job_transitions" VALUES('pending','succeeded');
INSERT INTO "job_transitions" VALUES('pending','timed_out');
INSERT INTO "job_transitions" VALUES('running','cancelled');
INSERT INTO "job_transitions" VALUES('running','failed');
INSERT INTO "job_transitions" VALUES('running','paused');
INSERT INTO "job_transitions" VALUES('running','succeeded');
INSERT INTO "job_transitions" VALUES('running','timed_out');
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
  trimmed_to      INTEGER NOT NULL DEFAULT 0, open_questions INTEGER NOT NULL DEFAULT 0
  CHECK (open_questions >= 0) CHECK (open_questions = 0 OR state = 'paused'), stays_paused INTEGER NOT NULL DEFAULT 0
  CHECK (stays_paused IN (0, 1)) CHECK (stays_paused = 0 OR open_questions > 0),                             -- events up to this id were deleted
  CHECK ((progress = 100) = (state = 'succeeded')),
  CHECK ((paused_at IS NOT NULL) = (state = 'paused')),
  CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'timed_out'))),
  CHECK ((result IS NOT NULL) = (state = 'succeeded')),
  CHECK ((error IS NOT NULL) = (state IN ('failed', 'timed_out'))),
  UNIQUE (namespace, job_id)
) STRICT;
INSERT INTO "jobs" VALUES(1,1,'pending','t','me','key pending','h','pending',0.0,'','',0,2,X'92A161A162',X'82A46E616D65A770656E64696E67A2C3A4C0',NULL,NULL,NULL,0,0,NULL,0,1795361789755,1795361789755,NULL,4102444800000,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(2,1,'running','t','me','key running','h','running',25.0,'half','a',0,2,X'92A161A162',X'82A46E616D65A772756E6E696E67A2C3A4C0',NULL,NULL,NULL,0,0,NULL,0,1795361789759,1795361789791,NULL,4102444800000,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(3,1,'paused','t','me','key paused','h','paused',0.0,'','',0,2,X'92A161A162',X'82A46E616D65A6706175736564A2C3A4C0',NULL,NULL,NULL,0,0,NULL,1,1795361789763,1795361789799,NULL,4102444800000,1795361789799,'','',0,0,0);
INSERT INTO "jobs" VALUES(4,1,'succeeded','t','me','key succeeded','h','succeeded',100.0,'','',2,2,X'92A161A162',X'82A46E616D65A9737563636565646564A2C3A4C0',X'81A6616E737765729319C0C40100',NULL,'r',0,0,'e',0,1795361789767,1795361789791,1795361789791,4102444800000,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(5,1,'failed','t','me','key failed','h','failed',0.0,'it broke','',0,2,X'92A161A162',X'82A46E616D65A66661696C6564A2C3A4C0',NULL,X'83A4636F6465A8696E7465726E616CA76D657373616765A869742062726F6B65A6726561736F6EB070726F63657373696E675F6572726F72',NULL,0,0,'e',0,1795361789771,1795361789791,1795361789791,4102444800000,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(6,1,'cancelled','t','me','key cancelled','h','cancelled',0.0,'enough','',0,2,X'92A161A162',X'82A46E616D65A963616E63656C6C6564A2C3A4C0',NULL,NULL,NULL,0,0,NULL,0,1795361789775,1795361789795,1795361789795,4102444800000,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(7,1,'fan-out','t','me','key fan-out','h','running',50.0,'','',0,2,X'92A161A162',X'82A46E616D65A766616E2D6F7574A2C3A4C0',NULL,NULL,NULL,0,1,NULL,0,1795361789779,1795361789791,NULL,4102444800000,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(8,1,'timed_out','t','',NULL,'h','timed_out',0.0,'The job did not end by its deadline, 1970-01-01T00:00:00.001Z.','',0,2,X'92A161A162',X'82A46E616D65A974696D65645F6F7574A2C3A4C0',NULL,X'83A4636F6465B1646561646C696E655F6578636565646564A76D657373616765D93E546865206A6F6220646964206E6F7420656E642062792069747320646561646C696E652C20313937302D30312D30315430303A30303A30302E3030315A2EA6726561736F6EB1646561646C696E655F6578636565646564',NULL,0,0,NULL,0,1795361789783,1795361789823,1795361789823,1,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(9,1,'waiting','t','',NULL,'h','pending',0.0,'','',0,2,X'92A161A162',X'82A46E616D65A777616974696E67A2C3A4C0',NULL,NULL,NULL,0,0,NULL,0,1795361789787,1795361789787,NULL,NULL,NULL,'','',0,0,0);
INSERT INTO "jobs" VALUES(10,1,'asking','t','',NULL,'h','paused',0.0,'','',0,2,X'92A161A162',X'82A46E616D65A661736B696E67A2C3A4C0',NULL,NULL,NULL,0,0,NULL,1,1795361789803,1795361789815,NULL,4102444800000,1795361789811,'','',0,1,0);
INSERT INTO "jobs" VALUES(11,1,'fenced','t','',NULL,'h','pending',0.0,'','',0,2,X'92A161A162',X'82A46E616D65A666656E636564A2C3A4C0',NULL,NULL,NULL,0,0,NULL,0,1795361789819,1795361789819,NULL,NULL,NULL,'','',0,0,0);
CREATE UNIQUE INDEX jobs_idempotency ON jobs (namespace, owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_deadline ON jobs (namespace, deadline_at)
  WHERE deadline_at IS NOT NULL AND state IN ('pending', 'running');
CREATE INDEX jobs_finished ON jobs (namespace, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX jobs_of_owner ON jobs (namespace, owner, seq);
CREATE INDEX jobs_live ON jobs (namespace, owner, seq) WHERE finished_at IS NULL;
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
CREATE INDEX job_events_of_job ON job_events (job, id);
CREATE UNIQUE INDEX job_events_final ON job_events (job) WHERE final = 1;
CREATE TRIGGER job_events_are_append_only BEFORE UPDATE ON job_events
BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END;
CREATE INDEX job_outbox_due ON job_outbox (namespace, id) WHERE held = 0;
CREATE UNIQUE INDEX job_outbox_parked ON job_outbox (parked_for, dedup_key) WHERE parked_for IS NOT NULL;
CREATE INDEX job_branches_children ON job_branches (job, parent, position);
CREATE INDEX job_branches_live ON job_branches (job) WHERE state = 'live';
CREATE TRIGGER job_questions_begin_open BEFORE INSERT ON job_questions
WHEN NEW.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a question begins as open'); END;
CREATE TRIGGER job_questions_end_once BEFORE UPDATE ON job_questions
WHEN OLD.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a question that was answered or closed does not change'); END;
CREATE TRIGGER job_questions_keep_their_words BEFORE UPDATE OF
  job, question_id, number, kind, message, schema, params, actor, envelope_id, asked_at ON job_questions
BEGIN SELECT RAISE(ABORT, 'the words of a question do not change'); END;
CREATE TRIGGER job_fences_only_rise BEFORE UPDATE ON job_fences
WHEN NEW.term < OLD.term
BEGIN SELECT RAISE(ABORT, 'the term of a fence never falls'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('jobs',11);
INSERT INTO "sqlite_sequence" VALUES('job_events',25);
INSERT INTO "sqlite_sequence" VALUES('job_outbox',3);
COMMIT;
