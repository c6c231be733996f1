package layouttest

import (
	"context"
	"database/sql"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
)

const (
	streams = 20
	openMax = 4 // open transactions
	longest = 4 // events of a transaction
)

// writers are the programs that append. One goroutine plays all of them. So a seed, and not the
// clock, decides what overlaps: each step appends an event in an open transaction, or opens or
// ends one.
type writers struct {
	t        *testing.T
	ctx      context.Context // ends a test in which a writer waits for another one
	db       *sql.DB
	layout   layout
	rand     *rand.Rand
	versions [streams]int
	owner    [streams]*transaction // who has appended to a stream; the version would refuse another transaction
	open     []*transaction
	held     *transaction // stays open until release
	events   int
	rollback int
	head     int64 // everything up to it was handled
	waits    int   // how often readers waited at a gap
}

// A transaction of a writer.
type transaction struct {
	w        *writers
	conn     *sql.Conn
	backend  int
	appended [streams]int
	events   int
	pending  []string // inserts whose positions are taken
}

func newWriters(t *testing.T, db *sql.DB, l layout) *writers {
	seed := fnv.New64()
	_, _ = seed.Write([]byte(l.name))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return &writers{t: t, ctx: ctx, db: db, layout: l, rand: rand.New(rand.NewPCG(seed.Sum64(), 1))}
}

func (w *writers) steps(n int) {
	w.t.Helper()
	for range n {
		w.step()
	}
}

// step does one step. It appends at least one event or ends one transaction.
func (w *writers) step() {
	w.t.Helper()
	most := openMax
	if w.layout.serial {
		most = 1
		if w.held != nil { // no other transaction can append
			return
		}
	}
	if len(w.open) < most && (len(w.open) == 0 || w.rand.IntN(2) == 0) {
		w.open = append(w.open, w.newTransaction())
	}
	i := w.rand.IntN(len(w.open))
	if tx := w.open[i]; tx.events == longest || tx.events > 0 && w.rand.IntN(2) == 0 {
		w.open = slices.Delete(w.open, i, i+1)
		tx.end(w.rand.IntN(8) > 0)
	} else {
		tx.append()
	}
}

// endOthers ends all transactions except the held one.
func (w *writers) endOthers() {
	w.t.Helper()
	for _, tx := range w.open {
		tx.end(true)
	}
	w.open = nil
}

// end ends all transactions.
func (w *writers) end() {
	w.t.Helper()
	w.endOthers()
	if w.held != nil {
		w.held.end(true)
		w.held = nil
	}
}

// hold calls while during a transaction that has appended an event, or has taken its position.
func (w *writers) hold(while func(held *transaction)) {
	w.t.Helper()
	w.held = w.newTransaction()
	w.held.append()
	while(w.held)
	w.held.end(true)
	w.held = nil
}

func (w *writers) newTransaction() *transaction {
	w.t.Helper()
	conn, err := w.db.Conn(w.ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	tx := &transaction{w: w, conn: conn}
	if err := conn.QueryRowContext(w.ctx, `SELECT pg_backend_pid()`).Scan(&tx.backend); err != nil {
		w.t.Fatal(err)
	}
	begin := w.layout.begin
	if begin == "" {
		begin = `BEGIN`
	}
	tx.exec(begin)
	return tx
}

func (tx *transaction) exec(statement string) {
	tx.w.t.Helper()
	if _, err := tx.conn.ExecContext(tx.w.ctx, statement); err != nil {
		tx.w.t.Fatalf("%v\n%s", err, statement)
	}
}

// append appends an event to a stream that no other transaction appends to.
func (tx *transaction) append() {
	tx.w.t.Helper()
	tx.exec(tx.next())
}

// next returns the statement that appends the next event. If a position is taken first, it takes
// the position and postpones the insert.
func (tx *transaction) next() string {
	w := tx.w
	w.t.Helper()
	i := w.rand.IntN(streams)
	for w.owner[i] != nil && w.owner[i] != tx {
		i = (i + 1) % streams
	}
	w.owner[i] = tx
	tx.appended[i]++
	tx.events++
	version := w.versions[i] + tx.appended[i]
	fill := strings.NewReplacer("{i}", fmt.Sprint(i), "{stream}", fmt.Sprintf("%08x-0000-4000-8000-000000000000", i),
		"{version}", fmt.Sprint(version), "{id}", fmt.Sprintf("%08x-0000-4000-8000-%012x", i, w.rand.Uint64()>>16),
		"{data}", fmt.Sprintf(`{"stream": "%08x-0000-4000-8000-000000000000", "n": %d}`, i, version))
	insert := fill.Replace(w.layout.insert)
	if w.layout.take == "" {
		return insert
	}
	var position string
	if err := tx.conn.QueryRowContext(w.ctx, fill.Replace(w.layout.take)).Scan(&position); err != nil {
		w.t.Fatalf("%v\n%s", err, w.layout.take)
	}
	tx.pending = append(tx.pending, strings.ReplaceAll(insert, "{position}", position))
	return ""
}

// end commits or rolls back.
func (tx *transaction) end(commit bool) {
	w := tx.w
	w.t.Helper()
	if commit {
		for _, insert := range tx.pending {
			tx.exec(insert)
		}
		tx.exec(`COMMIT`)
		w.events += tx.events
	} else {
		tx.exec(`ROLLBACK`)
		w.rollback++
	}
	for i := range streams {
		if w.owner[i] == tx {
			w.owner[i] = nil
			if commit {
				w.versions[i] += tx.appended[i]
			}
		}
	}
	_ = tx.conn.Close()
}

func (w *writers) exec(statement string) {
	w.t.Helper()
	if _, err := w.db.ExecContext(w.ctx, statement); err != nil {
		w.t.Fatalf("%v\n%s", err, statement)
	}
}

func (w *writers) number(query string, args ...any) (n int64) {
	w.t.Helper()
	if err := w.db.QueryRowContext(w.ctx, query, args...).Scan(&n); err != nil {
		w.t.Fatalf("%v\n%s", err, query)
	}
	return n
}

// looked waits until workers have seen what is committed after the positions that a transaction
// may still insert. Then a worker waits for that transaction, as it must, or everything was
// handled, which loses an event if the transaction commits.
func (w *writers) looked(workers []*worker, tx *transaction) {
	w.t.Helper()
	pgtest.Eventually(w.t, "the workers have handled everything, or wait at a gap", func() bool {
		for _, worker := range workers {
			if gap, waiting := worker.waiting(); waiting && gap.Position > w.head && slices.Contains(gap.Backends, tx.backend) {
				w.waits++
				return true
			}
		}
		return w.unhandled() == 0
	})
}

// lockQueue makes a writer wait for the lock on the table, possibly with its position taken. It
// waits behind a session that creates an index, which waits for a writer that still appends and
// then commits.
func (w *writers) lockQueue(workers []*worker) {
	w.t.Helper()
	if w.layout.table == "" || w.layout.take != "" { // if positions are taken first, hold does the same
		return
	}
	w.endOthers()
	w.caughtUp()
	early := w.newTransaction()
	early.append()
	index := w.newTransaction()
	locked := index.background(`LOCK TABLE ` + w.layout.table + ` IN SHARE MODE`)
	late := w.newTransaction()
	appended := late.background(late.next())
	early.append()
	early.end(true)
	locked()
	w.looked(workers, late)
	index.end(true)
	appended()
	late.end(true)
	w.caughtUp()
}

// background runs a statement that must wait for a lock. It returns when the statement waits.
// The result waits for its end.
func (tx *transaction) background(statement string) (wait func()) {
	w := tx.w
	w.t.Helper()
	failed := make(chan error, 1)
	go func() {
		_, err := tx.conn.ExecContext(w.ctx, statement)
		failed <- err
	}()
	pgtest.Eventually(w.t, "it waits for a lock: "+statement, func() bool {
		return w.number(`SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted`, tx.backend) > 0
	})
	return func() {
		w.t.Helper()
		if err := <-failed; err != nil {
			w.t.Fatalf("%v\n%s", err, statement)
		}
	}
}

// workers waits until n workers share the events.
func (w *writers) workers(n int64) {
	w.t.Helper()
	pgtest.Eventually(w.t, fmt.Sprintf("%d workers have partitions", n), func() bool {
		return w.number(`SELECT count(DISTINCT worker) FROM orchestrator_status_partitions WHERE replica_set = 'set' AND worker IS NOT NULL`) == n
	})
}

// caughtUp waits until every event was handled. If events are lost, it waits until every
// checkpoint is past the last event.
func (w *writers) caughtUp() {
	w.t.Helper()
	w.head = w.number(`SELECT coalesce(max(position), 0) FROM (` + w.layout.events + `) e`)
	pgtest.Eventually(w.t, "everything is handled", func() bool {
		return w.unhandled() == 0 ||
			w.number(`SELECT coalesce(min(position), 0) FROM orchestrator_checkpoints WHERE projection = 'handled'`) >= w.head
	})
}

// unhandled returns how many committed events were not handled.
func (w *writers) unhandled() int64 {
	w.t.Helper()
	return w.number(`SELECT count(*) FROM (` + w.layout.events + `) e WHERE NOT EXISTS (SELECT FROM handled WHERE handled.position = e.position)`)
}

// compare compares the handled events with the table.
func (w *writers) compare() {
	w.t.Helper()
	events := w.layout.events
	total := w.number(`SELECT count(*) FROM (` + events + `) e`)
	if n := w.unhandled(); n != 0 {
		w.t.Errorf("%d of %d events were lost", n, total)
	}
	for what, query := range map[string]string{
		"duplicated":   `SELECT count(*) - count(DISTINCT position) FROM handled`,
		"made up":      `SELECT count(*) FROM handled WHERE NOT EXISTS (SELECT FROM (` + events + `) e WHERE handled.position = e.position)`,
		"out of order": `SELECT count(*) FROM (SELECT position, lag(position) OVER (PARTITION BY aggregate ORDER BY id) AS before FROM handled JOIN (` + events + `) e USING (position)) o WHERE before > position`,
	} {
		if n := w.number(query); n != 0 {
			w.t.Errorf("%d of %d events were %s", n, total, what)
		}
	}
	generation := w.number(`SELECT max(generation) FROM orchestrator_history`)
	w.t.Logf("%d events, %d transactions rolled back, %d waits at a gap, %d generations", total, w.rollback, w.waits, generation)
	if int(total) < w.events || w.events < 100 || w.rollback == 0 || generation < 4 {
		w.t.Errorf("%d events (%d appended), %d transactions rolled back, %d generations: not what this test is about", total, w.events, w.rollback, generation)
	}
}
