package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"strings"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// Handlers checks with a driver what happens to a handler's transaction when the handler misuses
// it.
func Handlers(t *testing.T, open Open) {
	_, base := pgtest.Database(t)
	db, err := open(base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	for _, q := range []string{
		orchestrator.SchemaSQL(),
		`CREATE TABLE written (n int)`, `CREATE SCHEMA tenant`,
		`CREATE ROLE ` + tenantOf(base) + ``, `GRANT ALL ON written TO ` + tenantOf(base),
	} {
		exec(t, db, q)
	}
	t.Cleanup(func() {
		_, err := db.ExecContext(context.Background(), `DROP OWNED BY `+tenantOf(base)+`; DROP ROLE `+tenantOf(base))
		if err != nil {
			t.Error(err)
		}
	})
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	if _, err := s.Sync(t.Context(), protocol.Request{Worker: "a", Lease: lease, Join: true}, []string{"p"}); err != nil {
		t.Fatal(err)
	}
	l := lane("p", 1, 0, 1)
	stands := func() protocol.Checkpoint {
		t.Helper()
		found, err := s.Find(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		return found.Checkpoint
	}

	insert := `INSERT INTO written VALUES (1)`
	moves := []struct {
		name string
		move func(tx *sql.Tx, from, to protocol.Checkpoint) error
	}{
		{"commit", func(tx *sql.Tx, from, to protocol.Checkpoint) error { return s.Commit(t.Context(), tx, l, from, to) }},
		{"unpark", func(tx *sql.Tx, from, _ protocol.Checkpoint) error {
			exec(t, db, `INSERT INTO orchestrator_parked (projection, position, slot, aggregate_id, error, attempts, parked_at)
                         VALUES ('p', 7, 0, 'a', '', 1, now()) ON CONFLICT DO NOTHING`)
			return s.Unpark(t.Context(), tx, l, 7)
		}},
	}
	for _, m := range moves {
		for _, statements := range []string{
			"ROLLBACK", "COMMIT", "COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "COMMIT|BEGIN", "ROLLBACK|BEGIN", "COMMIT|" + insert,
			"ROLLBACK|BEGIN|" + insert, "END", "ABORT", "RESET ALL", "SAVEPOINT s|ROLLBACK",
		} {
			t.Run(m.name+" after "+statements, func(t *testing.T) {
				before := stands()
				tx := handlerTx(t, s)
				for _, q := range strings.Split(insert+"|"+statements, "|") {
					execTx(t, tx.Tx, q)
				}
				err := m.move(tx.Tx, before, before.Advance(before.Position+1))
				if !errors.Is(err, store.ErrTransactionEnded) || !store.FactsOf(err).Ended {
					t.Errorf("%s: %v, want ErrTransactionEnded", m.name, err)
				}
				tx.Rollback()
				if after := stands(); after.Position != before.Position {
					t.Errorf("the checkpoint has moved from %s to %s", before, after)
				}
			})
		}

		// What it may do if necessary.
		session := ""
		for _, statements := range []string{
			"SAVEPOINT s|" + insert + "|ROLLBACK TO s", "SAVEPOINT s|SAVEPOINT u|ROLLBACK TO SAVEPOINT s|RELEASE s",
			"SET LOCAL ROLE {tenant}", "SET ROLE {tenant}", "SET LOCAL ROLE {tenant}|" + insert, "SET ROLE NONE",
			"SET LOCAL search_path = tenant", "SET search_path = tenant", "SET LOCAL search_path = ''", "SET search_path = DEFAULT",
			"SET LOCAL ROLE {tenant}|SET LOCAL search_path = tenant", "SAVEPOINT s|SET ROLE {tenant}|RELEASE s",
			"SET LOCAL ROLE {tenant}|SAVEPOINT s|RESET ROLE|ROLLBACK TO s",
		} {
			t.Run(m.name+" after "+statements, func(t *testing.T) {
				db.SetMaxOpenConns(1)
				state := func() (s string) {
					t.Helper()
					if err := db.QueryRowContext(t.Context(), `SELECT current_user || ' ' || current_setting('role') || ' ' || current_setting('search_path')`).Scan(&s); err != nil {
						t.Fatal(err)
					}
					return s
				}
				if session == "" {
					session = state()
				}
				db.SetMaxOpenConns(0)
				before := stands()
				tx := handlerTx(t, s)
				for _, q := range strings.Split(strings.ReplaceAll(statements, "{tenant}", tenantOf(base)), "|") {
					execTx(t, tx.Tx, q)
				}
				to := before.Advance(before.Position + 1)
				if err := m.move(tx.Tx, before, to); err != nil {
					t.Fatalf("%s: %v", m.name, err)
				}
				if err := tx.Commit(); err != nil {
					t.Fatal(err)
				}
				if after := stands(); m.name == "commit" && after.Position != to.Position {
					t.Errorf("the checkpoint is at %s, want %s", after, to)
				}
				db.SetMaxOpenConns(1) // the same connection, for the next user
				if got := state(); got != session {
					t.Errorf("the next user of the connection has %q, want %q", got, session)
				}
				db.SetMaxOpenConns(0)
			})
		}
	}

	// An error that the library gets then is the handler's failure.
	for _, c := range []struct {
		name string
		do   func(t *testing.T, tx *sql.Tx)
	}{
		{"failed transaction", func(t *testing.T, tx *sql.Tx) { _, _ = tx.ExecContext(t.Context(), `SELECT 1 / 0`) }},
		{"read-only", func(t *testing.T, tx *sql.Tx) { execTx(t, tx, `SET TRANSACTION READ ONLY`) }},
		{"committed by the driver", func(t *testing.T, tx *sql.Tx) { _ = tx.Commit() }},
		{"another session user", func(t *testing.T, tx *sql.Tx) {
			execTx(t, tx, `SET LOCAL SESSION AUTHORIZATION `+tenantOf(base))
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := stands()
			tx := handlerTx(t, s)
			c.do(t, tx.Tx)
			err := s.Commit(t.Context(), tx.Tx, l, before, before.Advance(before.Position+1))
			if f := protocol.Classify(store.FactsOf(err), protocol.Transactional, protocol.LaneWrite, false); f != protocol.Fault {
				t.Errorf("%v is %d, want the handler's failure", err, f)
			}
			tx.Rollback()
			if after := stands(); after.Position != before.Position {
				t.Errorf("the checkpoint has moved from %s to %s", before, after)
			}
		})
	}
}

// tenantOf returns the name of a role that no other test uses: roles are shared by all databases
// of a server.
func tenantOf(base string) string {
	h := fnv.New64a()
	h.Write([]byte(base))
	return fmt.Sprintf("tenant_%x", h.Sum64())
}

func handlerTx(t *testing.T, s *store.Store) *dbconn.Tx {
	t.Helper()
	tx, err := s.BeginHandler(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tx.Rollback() })
	return tx
}
