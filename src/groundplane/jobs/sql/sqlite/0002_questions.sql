-- Questions that a job waits for. A job with open questions is paused; the last answer lets it go on.
-- Schema, parameters and content are MessagePack. Replicas of the release before go on with these tables.

ALTER TABLE jobs ADD COLUMN open_questions INTEGER NOT NULL DEFAULT 0
  CHECK (open_questions >= 0) CHECK (open_questions = 0 OR state = 'paused');

-- Whether the job is paused by a person as well, so that it does not go on with the last answer.
ALTER TABLE jobs ADD COLUMN stays_paused INTEGER NOT NULL DEFAULT 0
  CHECK (stays_paused IN (0, 1)) CHECK (stays_paused = 0 OR open_questions > 0);

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

CREATE TRIGGER job_questions_begin_open BEFORE INSERT ON job_questions
WHEN NEW.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a question begins as open'); END;

CREATE TRIGGER job_questions_end_once BEFORE UPDATE ON job_questions
WHEN OLD.state <> 'open'
BEGIN SELECT RAISE(ABORT, 'a question that was answered or closed does not change'); END;

CREATE TRIGGER job_questions_keep_their_words BEFORE UPDATE OF
  job, question_id, number, kind, message, schema, params, actor, envelope_id, asked_at ON job_questions
BEGIN SELECT RAISE(ABORT, 'the words of a question do not change'); END;
