package orchestrator_test

import (
	"database/sql"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/testworld"
)

// A countingDialer counts the bytes that its connections receive.
type countingDialer struct{ received atomic.Int64 }

func (d *countingDialer) Dial(network, address string) (net.Conn, error) {
	return d.DialTimeout(network, address, 0)
}

func (d *countingDialer) DialTimeout(network, address string, timeout time.Duration) (net.Conn, error) {
	conn, err := net.DialTimeout(network, address, timeout)
	return countedConn{conn, d}, err
}

type countedConn struct {
	net.Conn
	dialer *countingDialer
}

func (c countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.dialer.received.Add(int64(n))
	return n, err
}

func counted(t testing.TB, url string) (*sql.DB, *countingDialer) {
	t.Helper()
	connector, err := pq.NewConnector(url)
	if err != nil {
		t.Fatal(err)
	}
	d := &countingDialer{}
	connector.Dialer(d)
	db := sql.OpenDB(connector)
	t.Cleanup(func() { db.Close() })
	return db, d
}

// large appends n events of a size.
func (w *world) large(n, size int) {
	w.T.Helper()
	w.Exec(`
INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
SELECT 'test', 'large', 'l' || i % 50, i, gen_random_uuid(), 'happened', decode(repeat('ab', $2), 'hex') FROM generate_series(1, $1) i`, n, size)
}

const mega = 1 << 20

// A page that is cut, for its events are large, is not read to its end.
func TestCutPageEndsItsStatement(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.large(2000, 100_000) // 200 MB
	db, d := counted(t, w.URL)
	table, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	for after := int64(0); after < 40; {
		before := d.received.Load()
		page, passed, more, err := table.ReadOwn(t.Context(), 0, 1, after, 2000, mega)
		if err != nil || !more || len(page) < 10 || len(page) > 12 || passed != page[len(page)-1].Position {
			t.Fatalf("%d events, passed %d, more %t, %v", len(page), passed, more, err)
		}
		t.Logf("%d kB were received for a page of %d events", (d.received.Load()-before)/1000, len(page))
		if got := d.received.Load() - before; got > 30*mega { // what sockets hold, and not 200 MB
			t.Errorf("%d bytes were received for a page of %d events of 100 kB", got, len(page))
		}
		after = passed
	}
	if n := db.Stats().InUse; n != 0 {
		t.Errorf("%d connections are in use", n)
	}
}

// What a worker receives is about what it handles, also where small events are followed by
// large ones and these by small ones.
func TestPagesCostWhatTheyBring(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Append(5000)
	w.large(400, 200_000) // 80 MB
	w.Append(5000)
	db, d := counted(t, w.URL)
	cfg := w.Config(db, "set")
	cfg.ReadAheadBytes = 6 * mega
	testworld.Run(t, cfg, testworld.Effects{Projection: "p"}.Batched())
	w.CaughtUp("p")
	payload := w.Number(`SELECT sum(length(payload)) FROM events`)
	if got := d.received.Load(); got > payload*3/2+30*mega {
		t.Errorf("%d MB were received for %d MB", got/mega, payload/mega)
	} else {
		t.Logf("%d MB were received for %d MB", got/mega, payload/mega)
	}
}

// What is out of scope does not come over the wire, by whatever the scope is about.
func TestOutOfScopeCostsNoRows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const events, size = 5000, 10_000 // 50 MB
	w.large(events, size)
	w.Exec(`UPDATE events SET event_type = 'rare', aggregate_type = 'rare' WHERE global_position % 1000 = 0`)
	for why, s := range map[string]orchestrator.Scope{
		"by aggregate type": {AggregateTypes: []string{"rare"}},
		"by event type":     {EventTypes: []string{"rare"}},
		"by both":           {AggregateTypes: []string{"rare"}, EventTypes: []string{"rare", "happened"}},
		"by neither":        {BoundedContexts: []string{"test"}, EventTypes: []string{"of none"}},
	} {
		db, d := counted(t, w.URL)
		table, err := orchestrator.NewEventTable(db, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		before, rows, reads := d.received.Load(), 0, 0
		for after, more := int64(0), true; more; reads++ {
			page, err := table.Read(t.Context(), orchestrator.ReadRequest{After: after, Limit: 2, Scope: s})
			if err != nil {
				t.Fatal(err)
			}
			rows, after, more = rows+len(page.Records), page.Through, page.More || len(page.Records) == 2
			if !more && after != events {
				t.Errorf("%s: it has passed %d", why, after)
			}
		}
		want := 5
		if why == "by neither" {
			want = 0
		}
		received := d.received.Load() - before
		if rows != want || received > int64(want)*size*3+50_000 { // a byte is two or three digits of text
			t.Errorf("%s: %d events of %d kB, with %d kB received", why, rows, size/1000, received/1000)
		}
		t.Logf("%s: %d of %d events, in %d reads, with %d kB received", why, rows, events, reads, received/1000)
	}
}

// Events that share a position are in one page, wherever that is cut.
func TestPagesCutNoPositionInTwo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.Exec(`ALTER TABLE events DROP CONSTRAINT events_pkey CASCADE`)
	w.large(40, 1000)
	w.Exec(`UPDATE events SET global_position = (global_position + 1) / 2 * 2`)
	table, err := orchestrator.NewEventTable(w.DB, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{1, 3, 100} {
		seen, after := 0, int64(0)
		for range 50 {
			var page []orchestrator.Record[orchestrator.Event]
			if page, after, _, err = table.ReadOwn(t.Context(), 0, 1, after, limit, 500); err != nil {
				t.Fatal(err)
			}
			seen += len(page)
			if len(page)%2 != 0 || len(page) > 6 {
				t.Errorf("%d events in a page of %d", len(page), limit)
			}
		}
		if seen != 40 {
			t.Errorf("by pages of %d, %d of 40 events were read", limit, seen)
		}
	}
}
