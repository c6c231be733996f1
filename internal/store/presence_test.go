package store_test

import (
	"context"
	"database/sql"
	"errors"
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
	attach := func(set *store.Store, id protocol.WorkerID, number int32) store.Attachment {
		t.Helper()
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		s, err := set.Attach(t.Context(), conn, protocol.Attach{Number: number, Worker: id})
		if err != nil || s.Published.Row != (id != "nobody" && id != "") {
			t.Fatalf("attach %s: published %+v, %v", id, s.Published, err)
		}
		if same, err := s.Prove(t.Context()); !same || err != nil {
			t.Fatalf("prove %s: %t, %v", id, same, err)
		}
		return s
	}
	a := protocol.Presence{Key: attach(one, "a'", 1<<31-1).Key, Number: 1<<31 - 1}
	b := attach(one, "b", 2)
	d := attach(two, "d", 1)
	attach(one, "nobody", 1)
	attach(one, "", 1)
	look := func() []protocol.Absence {
		t.Helper()
		same, group, err := b.Glimpse(t.Context(), "b")
		if err != nil || !same || group.Alone {
			t.Fatalf("look: %t, %+v, %v", same, group, err)
		}
		return group.Absent
	}
	heartbeat := func() protocol.View {
		t.Helper()
		result, err := one.Sync(t.Context(), protocol.Request{Worker: "b", Lease: lease, Heartbeat: true, Others: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return result.View
	}
	if absent := look(); len(absent) > 0 {
		t.Errorf("all are there, and absent are %v", absent)
	}
	if _, err := db.ExecContext(t.Context(), `
SELECT pg_terminate_backend(pid) FROM unnest(ARRAY[$1::int, $2::int]) AS pid`, -a.Key, -d.Key); err != nil {
		t.Fatal(err)
	}
	want := []protocol.Absence{{Worker: "a'", Presence: a}}
	pgtest.Eventually(t, "the session has ended", func() bool { return slices.Equal(look(), want) })
	if others := heartbeat().Others; !slices.Equal(others.Absent, want) || others.Alone {
		t.Errorf("a heartbeat shows %+v, want %v absent", others, want)
	}

	// A lock of the same numbers in another database is another.
	other, _ := pgtest.Database(t)
	conn, err := other.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(t.Context(), `SELECT pg_advisory_lock_shared($1, $2)`, a.Key, a.Number); err != nil {
		t.Fatal(err)
	}
	if absent := look(); !slices.Equal(absent, want) {
		t.Errorf("absent are %v, want %v", absent, want)
	}
	// The least integers, which no worker writes, fail no query of the other workers.
	for _, least := range []string{"presence_key = -2147483648, presence_number = 5", "presence_key = 77, presence_number = 5"} {
		if _, err := db.ExecContext(t.Context(), `UPDATE orchestrator_workers SET `+least+` WHERE id = 'c'`); err != nil {
			t.Fatal(err)
		}
		if absent := look(); len(absent) != 2 {
			t.Errorf("with %s, absent are %v, want a' and c", least, absent)
		}
	}
	// Earlier programs took locks under other keys. A worker whose lock somebody has is
	// taken to be there.
	stranger, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	for n, p := range []protocol.Presence{{Key: 77, Number: 5}, a} {
		if _, err := stranger.ExecContext(t.Context(), `SELECT pg_advisory_lock_shared($1, $2)`, p.Key, p.Number); err != nil {
			t.Fatal(err)
		}
		if absent := look(); len(absent) != 1-n || slices.ContainsFunc(absent, func(o protocol.Absence) bool { return o.Presence == p }) {
			t.Errorf("somebody has the lock of %v, and absent are %v", p, absent)
		}
	}
	// Its own session is not there: only a heartbeat, by another connection, can see that.
	own := protocol.Absence{Worker: "b", Presence: protocol.Presence{Key: b.Key, Number: 2}}
	if _, err := db.ExecContext(t.Context(), `SELECT pg_terminate_backend($1)`, -b.Key); err != nil {
		t.Fatal(err)
	}
	pgtest.Eventually(t, "a heartbeat shows that its own session has ended", func() bool {
		return slices.Equal(heartbeat().Others.Absent, []protocol.Absence{own})
	})
	for _, id := range []protocol.WorkerID{"a'", "c"} {
		if _, err := one.Sync(t.Context(), protocol.Request{Worker: id, Leave: true}, nil); err != nil {
			t.Fatal(err)
		}
	}
	if others := heartbeat().Others; !others.Alone {
		t.Errorf("all others have left, and a heartbeat shows %+v", others)
	}
}

// attached is a session that holds a lock, and its connection.
func attached(t *testing.T) (*sql.Conn, store.Session) {
	t.Helper()
	db := migrated(t)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s, err := store.New(db, "set", store.Options{}).Attach(t.Context(), conn, protocol.Attach{Number: 1, Worker: "w"})
	if err != nil {
		t.Fatal(err)
	}
	return conn, s.Session
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
	if same, _, err := s.Glimpse(t.Context(), "w"); same || err != nil {
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

// A pooler may let go of the locks of a session and nothing else.
func TestPresenceOfASessionWhoseLocksWereLetGo(t *testing.T) {
	conn, s := attached(t)
	for range 3 { // a proof changes nothing
		if same, err := s.Prove(t.Context()); !same || err != nil {
			t.Fatalf("before: %t, %v", same, err)
		}
	}
	if _, err := conn.ExecContext(t.Context(), `SELECT pg_advisory_unlock_all()`); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if same, err := s.Prove(t.Context()); same || err != nil {
			t.Errorf("proven: %t, %v", same, err)
		}
	}
}

// While a session proves that it is there, nobody sees it without its lock.
func TestAProofKeepsTheLock(t *testing.T) {
	db := migrated(t)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s, err := store.New(db, "set", store.Options{}).Attach(t.Context(), conn, protocol.Attach{Number: 1})
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if same, err := s.Prove(context.Background()); err != nil || !same {
				done <- errors.Join(errors.New("not proven"), err)
				return
			}
		}
	}()
	for range 500 {
		var held bool
		if err := db.QueryRowContext(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 1)`).Scan(&held); err != nil || !held {
			t.Fatalf("held: %t, %v", held, err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Nobody can keep a worker waiting for its lock.
func TestPresenceIsNotBlocked(t *testing.T) {
	db := migrated(t)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var pid int
	if err := conn.QueryRowContext(t.Context(), `SELECT pg_backend_pid()`).Scan(&pid); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `SELECT pg_advisory_lock($1, 7)`, -pid); err != nil {
		t.Fatal(err)
	}
	if _, err := store.New(db, "set", store.Options{}).Attach(t.Context(), conn, protocol.Attach{Number: 7}); err == nil {
		t.Error("attached under a lock that somebody else has")
	}
	if _, err := store.New(db, "set", store.Options{}).Attach(t.Context(), conn, protocol.Attach{Number: 8}); err != nil {
		t.Error(err)
	}
}

// Behind a pooler, workers may share a session at the server, which has the locks of both
// and conflicts with none of them. Neither is absent.
func TestPresencesOfOneSession(t *testing.T) {
	db := migrated(t)
	s := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var own []store.Attachment
	for i, id := range []protocol.WorkerID{"a", "b"} {
		if _, err := join(s, t, id, "p"); err != nil {
			t.Fatal(err)
		}
		at, err := s.Attach(t.Context(), conn, protocol.Attach{Number: int32(i + 1), Worker: id})
		if err != nil || !at.Published.Row {
			t.Fatalf("attach %s: %+v, %v", id, at, err)
		}
		own = append(own, at)
	}
	if same, group, err := own[0].Glimpse(t.Context(), "a"); !same || err != nil || len(group.Absent) > 0 {
		t.Errorf("a looks, and finds %+v, %t, %v", group, same, err)
	}
}

// A session that is published late does not show its number in the row of a worker that
// has left its place vacant, or others would miss it; and who is given a vacant place sees
// that by its own look.
func TestPresenceAndAVacancy(t *testing.T) {
	db := migrated(t)
	set := store.New(db, "set", store.Options{Bounds: store.BoundsOf(lease)})
	for _, id := range []protocol.WorkerID{"a", "b"} {
		r := protocol.Request{Worker: id, Lease: lease, Join: true, MaxPartitions: 1}
		if _, err := set.Sync(t.Context(), r, []string{"p"}); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	b, err := set.Attach(t.Context(), conn, protocol.Attach{Number: 1, Worker: "b"})
	if err != nil {
		t.Fatal(err)
	}
	holds := func() int64 {
		t.Helper()
		_, group, err := b.Glimpse(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		return group.Holds
	}
	if h := holds(); h != 0 {
		t.Errorf("a standby sees that it holds generation %d", h)
	}
	if _, err := set.Sync(t.Context(), protocol.Request{Worker: "a", Leave: true, Vacate: lease}, nil); err != nil {
		t.Fatal(err)
	}
	if h := holds(); h != 1 {
		t.Errorf("who was given a place sees that it holds generation %d", h)
	}
	if _, err := set.Sync(t.Context(), protocol.Request{Worker: "b", Leave: true, Vacate: lease}, nil); err != nil {
		t.Fatal(err)
	}
	other, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	late, err := set.Attach(t.Context(), other, protocol.Attach{Number: 2, Worker: "b"})
	if err != nil || late.Published.Row || late.Published.Runs != 0 {
		t.Errorf("published %+v, %v", late.Published, err)
	}
	var number int32
	if err := db.QueryRowContext(t.Context(), `SELECT presence_number FROM orchestrator_workers WHERE id = 'b' AND vacant`).Scan(&number); err != nil || number != 0 {
		t.Errorf("the vacant row shows session %d, %v", number, err)
	}
}
