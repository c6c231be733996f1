-- What a program of version 1 sends, as a server logged it: the statements that
-- write, and those that name columns. A worker joins alone, beats, commits, and
-- leaves. (The sections' names are TestUpgradeFromVersion1's.)

-- # join
BEGIN;
SELECT generation, phase, total, reason, max_partitions, join_window_us
  FROM orchestrator_replica_sets
 WHERE name = 'set'
   AND (SELECT set_config('idle_in_transaction_session_timeout', '5000ms', true) || set_config('lock_timeout', '1000ms', true)) <> ''
   FOR UPDATE;
INSERT INTO orchestrator_replica_sets (name) VALUES ('set') ON CONFLICT DO NOTHING;
SELECT id, joined_at, lease_us, lease_until, wants, partitions, holds, presence_key, presence_number
  FROM orchestrator_workers WHERE replica_set = 'set' ORDER BY seq FOR UPDATE;
SELECT clock_timestamp(), coalesce(max(abs(generation)), 0) FROM orchestrator_checkpoints WHERE replica_set = 'set';
INSERT INTO orchestrator_projections (name, replica_set)
SELECT name, 'set' FROM jsonb_array_elements_text('["transactional"]'::jsonb) WITH ORDINALITY AS x (name, i) ORDER BY i
    ON CONFLICT DO NOTHING;
SELECT name, replica_set FROM orchestrator_projections
 WHERE name IN (SELECT jsonb_array_elements_text('["transactional"]'::jsonb)) ORDER BY name FOR UPDATE;
WITH set AS (
    UPDATE orchestrator_replica_sets
       SET generation = 1, phase = 'active', total = 1, reason = 'first worker', max_partitions = 0,
           join_window_us = 500000, step_at = NULL::timestamptz,
           opened_at = CASE WHEN true THEN '2026-11-25T04:23:07.901917Z'::timestamptz ELSE opened_at END,
           activated_at = CASE WHEN true THEN '2026-11-25T04:23:07.901917Z'::timestamptz WHEN true THEN NULL ELSE activated_at END
     WHERE name = 'set'
       AND (generation, phase, total, reason, max_partitions, join_window_us, step_at)
           IS DISTINCT FROM (1, 'active', 1, 'first worker', 0, 500000, NULL::timestamptz)),
removed AS (
    DELETE FROM orchestrator_workers
     WHERE replica_set = 'set' AND id IN (SELECT jsonb_array_elements_text('[]'::jsonb))),
updated AS (
    UPDATE orchestrator_workers w
       SET lease_us = x.lease_us, lease_until = x.lease_until, partitions = x.partitions, holds = x.holds,
           presence_key = x.presence_key, presence_number = x.presence_number,
           generation = 1, total = 1
      FROM jsonb_to_recordset('[]'::jsonb) AS x (id text, lease_us bigint, lease_until timestamptz, partitions jsonb, holds bigint,
                                                 presence_key integer, presence_number integer)
     WHERE w.replica_set = 'set' AND w.id = x.id
       AND (w.lease_us, w.lease_until, w.partitions, w.holds, w.presence_key, w.presence_number, w.generation, w.total)
           IS DISTINCT FROM (x.lease_us, x.lease_until, x.partitions, x.holds, x.presence_key, x.presence_number, 1, 1)),
added AS (
    INSERT INTO orchestrator_workers
           (replica_set, id, joined_at, lease_us, lease_until, wants, partitions, holds, presence_key, presence_number,
            generation, total, projections)
    SELECT 'set', x.id, x.joined_at, x.lease_us, x.lease_until, x.wants, x.partitions, x.holds, x.presence_key, x.presence_number,
           1, 1, '["transactional"]'::jsonb
      FROM jsonb_to_recordset('[{"id":"old","joined_at":"2026-11-25T04:23:07.901917Z","lease_us":30000000,"lease_until":"2026-11-25T04:23:37.901917Z","wants":1,"partitions":[0],"holds":1,"presence_key":0,"presence_number":0}]'::jsonb)
           AS x (id text, joined_at timestamptz, lease_us bigint, lease_until timestamptz, wants integer, partitions jsonb, holds bigint,
                 presence_key integer, presence_number integer))
SELECT pg_notify('pupsourcing_orchestrator', 'set') WHERE (true OR true) AND pg_notification_queue_usage() < 0.5;
SELECT name FROM orchestrator_projections WHERE replica_set = 'set' ORDER BY name FOR SHARE;
SELECT projection, partition, total, position, ahead
  FROM orchestrator_checkpoints WHERE replica_set = 'set' ORDER BY projection, partition FOR UPDATE;
WITH dropped AS (DELETE FROM orchestrator_checkpoints WHERE replica_set = 'set' AND partition >= 1)
INSERT INTO orchestrator_checkpoints
       (replica_set, generation, total, projection, partition, position, ahead, updated_at)
SELECT 'set', 1, 1, x.projection, x.partition, x.position, x.ahead, clock_timestamp()
  FROM jsonb_to_recordset('[{"projection":"transactional","partition":0,"position":0,"ahead":null}]'::jsonb) AS x (projection text, partition integer, position bigint, ahead jsonb)
    ON CONFLICT (projection, partition) DO UPDATE
   SET generation = excluded.generation, total = excluded.total, position = excluded.position, ahead = excluded.ahead;
COMMIT;

-- # beat
WITH beat AS (
    UPDATE orchestrator_workers
       SET lease_us = 30000000, lease_until = clock_timestamp() + 30000000 * interval '1 microsecond',
           presence_key = CASE WHEN presence_number < 1 THEN 7 ELSE presence_key END,
           presence_number = greatest(presence_number, 1), -- as in protocol.Apply
           holds = CASE WHEN holds <= 0 THEN 0 ELSE holds END
     WHERE replica_set = 'set' AND id = 'old'
 RETURNING generation, total, partitions, holds)
SELECT clock_timestamp(),
       coalesce(s.phase = 'draining' AND coalesce(b.holds, 0) = 0 AND NOT coalesce(o.held, false), false),
       s.step_at, o.lease_until, b.generation, b.total, b.partitions, b.holds
  FROM (SELECT min(CASE WHEN lease_until > clock_timestamp() + lease_us * interval '1 microsecond'
                        THEN clock_timestamp() ELSE lease_until END) AS lease_until, -- as in protocol.Group.View
               bool_or(holds <> 0) AS held
          FROM orchestrator_workers WHERE replica_set = 'set' AND id <> 'old') o
  LEFT JOIN orchestrator_replica_sets s ON s.name = 'set'
  LEFT JOIN beat b ON true;

-- # commit the first 40
BEGIN;
INSERT INTO effects (projection, position, aggregate, generation, partition, total)
SELECT 'transactional', global_position, aggregate_id, 1, 0, 1 FROM events WHERE global_position BETWEEN 1 AND 40 ORDER BY global_position;
UPDATE orchestrator_checkpoints SET position = 40, ahead = NULL, updated_at = clock_timestamp()
 WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 AND position = 0;
COMMIT;

-- # commit 20 more
BEGIN;
INSERT INTO effects (projection, position, aggregate, generation, partition, total)
SELECT 'transactional', global_position, aggregate_id, 1, 0, 1 FROM events WHERE global_position BETWEEN 41 AND 60 ORDER BY global_position;
UPDATE orchestrator_checkpoints SET position = 60, ahead = NULL, updated_at = clock_timestamp()
 WHERE replica_set = 'set' AND projection = 'transactional' AND partition = 0 AND generation = 1 AND position = 40;
COMMIT;

-- # leave
WITH set AS (
    UPDATE orchestrator_replica_sets
       SET generation = 2, phase = 'active', total = 0, reason = 'left: old', max_partitions = 0,
           join_window_us = 500000, step_at = NULL::timestamptz,
           opened_at = '2026-11-25T04:23:08Z'::timestamptz, activated_at = '2026-11-25T04:23:08Z'::timestamptz
     WHERE name = 'set'
       AND (generation, phase, total, reason, max_partitions, join_window_us, step_at)
           IS DISTINCT FROM (2, 'active', 0, 'left: old', 0, 500000, NULL::timestamptz)),
removed AS (
    DELETE FROM orchestrator_workers
     WHERE replica_set = 'set' AND id IN (SELECT jsonb_array_elements_text('["old"]'::jsonb)))
SELECT pg_notify('pupsourcing_orchestrator', 'set') WHERE pg_notification_queue_usage() < 0.5;
