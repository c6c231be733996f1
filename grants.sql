-- Least privileges for pupsourcing-orchestrator: three roles without a login.
-- Copy it, or run it with psql as the role that owns the tables, after schema.sql
-- and again after each new version of it; it is idempotent. Then hand a role to
-- those who log in:
--
--     GRANT orchestrator_worker TO my_workers;
--
-- Who may CREATE ROLE has to run the next statement; if that is somebody else, let
-- him run it first. Only the owner, who can be a login of your migrations alone,
-- may create, alter and drop anything.

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['orchestrator_worker', 'orchestrator_operator', 'orchestrator_monitor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', name);
        END IF;
    END LOOP;
END $$;

-- Where the tables are in a schema of their own:
--     GRANT USAGE ON SCHEMA … TO orchestrator_worker, orchestrator_operator, orchestrator_monitor;

-- A worker reads events, and changes rows of the library's tables. What its
-- projections write into is not the library's: grant it beside this.
GRANT SELECT ON events TO orchestrator_worker; -- your events table
GRANT SELECT ON orchestrator_schema TO orchestrator_worker;
GRANT SELECT, INSERT, UPDATE ON orchestrator_replica_sets, orchestrator_projections TO orchestrator_worker;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON orchestrator_workers, orchestrator_checkpoints, orchestrator_reports, orchestrator_history, orchestrator_parked
    TO orchestrator_worker;

-- An operator pauses, resumes, rewinds, drains, and says what becomes of parked
-- events. Each order opens a generation, and may activate it, as a worker would;
-- so he needs what a worker needs, but for the events. He sees what a monitor sees.
GRANT SELECT, UPDATE ON orchestrator_replica_sets, orchestrator_projections TO orchestrator_operator;
GRANT SELECT, INSERT, UPDATE, DELETE
    ON orchestrator_workers, orchestrator_checkpoints, orchestrator_reports, orchestrator_history
    TO orchestrator_operator;
GRANT SELECT, UPDATE, DELETE ON orchestrator_parked TO orchestrator_operator;

-- A monitor reads. The parked events' errors, and those in the reports, may quote
-- what your handlers put into them; the events themselves it can't see.
GRANT SELECT
    ON orchestrator_schema, orchestrator_replica_sets, orchestrator_workers, orchestrator_reports, orchestrator_projections,
       orchestrator_checkpoints, orchestrator_history, orchestrator_parked,
       orchestrator_status, orchestrator_status_workers, orchestrator_status_partitions
    TO orchestrator_monitor, orchestrator_operator;
