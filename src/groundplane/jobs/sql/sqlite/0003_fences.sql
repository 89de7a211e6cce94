-- The highest term that was shown for each leadership: a job that is made under an older one is refused.
-- Replicas of the release before go on with these tables; they show no terms.

CREATE TABLE job_fences (
  namespace INTEGER NOT NULL,
  name      TEXT NOT NULL,
  term      INTEGER NOT NULL CHECK (term > 0),
  PRIMARY KEY (namespace, name)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER job_fences_only_rise BEFORE UPDATE ON job_fences
WHEN NEW.term < OLD.term
BEGIN SELECT RAISE(ABORT, 'the term of a fence never falls'); END;
