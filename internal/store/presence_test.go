package store_test

import (
	"context"
	"database/sql"
	"slices"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A session holds a lock that others can see, and its number stands in the
// worker's row; when it ends, others see that. Other sets, and workers without a
// presence, are not missed.
func TestPresence(t *testing.T) {
	db := migrated(t)
	one, two := store.New(db, "one", store.Options{Bounds: store.BoundsOf(lease)}), store.New(db, "two", store.Options{Bounds: store.BoundsOf(lease)})
	for _, s := range []struct {
		set *store.Store
		id  protocol.WorkerID
	}{{one, "a'"}, {one, "b"}, {one, "c"}, {two, "d"}} {
		if _, err := join(s.set, t, s.id, string(s.id)); err != nil {
			t.Fatal(err)
		}
	}
	attach := func(set string, id protocol.WorkerID, p protocol.Presence) store.Session {
		t.Helper()
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		s, published, err := store.Attach(t.Context(), conn, set, protocol.Attach{Presence: p, Worker: id})
		if err != nil || published.Row != (id != "nobody") {
			t.Fatalf("attach %s: published %+v, %v", id, published, err)
		}
		if same, err := s.Prove(t.Context()); !same || err != nil {
			t.Fatalf("prove %s: %t, %v", id, same, err)
		}
		return s
	}
	a := protocol.Presence{Key: 1<<31 - 1, Number: 1}
	attach("one", "a'", a)
	b := attach("one", "b", protocol.Presence{Key: 6, Number: 2})
	attach("two", "d", protocol.Presence{Key: 7, Number: 1})
	attach("one", "nobody", protocol.Presence{Key: 8, Number: 1})
	look := func() []protocol.Absence {
		t.Helper()
		same, absent, err := b.Look(t.Context(), "one", "b")
		if err != nil || !same {
			t.Fatalf("look: %t, %v", same, err)
		}
		return absent
	}
	if absent := look(); len(absent) > 0 {
		t.Errorf("all are there, and absent are %v", absent)
	}
	if _, err := db.ExecContext(t.Context(), `
SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND classid IN (2147483647, 7)`); err != nil {
		t.Fatal(err)
	}
	want := []protocol.Absence{{Worker: "a'", Presence: a}}
	pgtest.Eventually(t, "the session has ended", func() bool { return slices.Equal(look(), want) })

	// A lock of the same numbers in another database is another.
	other, _ := pgtest.Database(t)
	conn, err := other.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `SELECT pg_advisory_lock_shared(2147483647, 1)`); err != nil {
		t.Fatal(err)
	}
	if absent := look(); !slices.Equal(absent, want) {
		t.Errorf("absent are %v, want %v", absent, want)
	}
}

// attached is a session that holds a lock, and its connection.
func attached(t *testing.T) (*sql.Conn, store.Session) {
	t.Helper()
	conn, err := migrated(t).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s, _, err := store.Attach(t.Context(), conn, "set", protocol.Attach{Presence: protocol.Presence{Key: 1, Number: 1}, Worker: "w"})
	if err != nil {
		t.Fatal(err)
	}
	return conn, s
}

// A pooler that resets a session between two of its clients lets go of the lock,
// which others see; so the session, though it is the same, must prove nothing.
func TestPresenceOfASessionThatWasReset(t *testing.T) {
	conn, s := attached(t)
	if same, err := s.Prove(t.Context()); !same || err != nil {
		t.Fatalf("before: %t, %v", same, err)
	}
	if _, err := conn.ExecContext(t.Context(), `DISCARD ALL`); err != nil {
		t.Fatal(err)
	}
	if same, err := s.Prove(t.Context()); same || err != nil {
		t.Errorf("proven: %t, %v", same, err)
	}
	if same, _, err := s.Look(t.Context(), "set", "w"); same || err != nil {
		t.Errorf("proven by a look: %t, %v", same, err)
	}
	if err := s.Release(t.Context()); err == nil {
		t.Error("it let go of a lock that it does not have")
	}
}

// A session that has let its lock go proves nothing, and is anybody's.
func TestPresenceThatIsLetGo(t *testing.T) {
	_, s := attached(t)
	if err := s.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if same, err := s.Prove(t.Context()); same || err != nil {
		t.Errorf("proven: %t, %v", same, err)
	}
}
