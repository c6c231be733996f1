package main

import (
	"context"
	"database/sql"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// A state is the replica set as the library's tables show it.
type state struct {
	generation int64
	phase      string
	total      int
	reason     string
	opened     time.Time // by the database's clock, as is activated
	activated  time.Time
	members    []member // in the order in which they joined
	lanes      []lane
	head       int64 // the highest position of an event
}

// A member is a row of orchestrator_workers.
type member struct {
	pid         string
	incarnation string // "" for the first, then ~2, …
	name        string // of the process: w1, w2, …
	partition   int    // -1: none
	total       int
	generation  int64
	holds       int64 // the generation that it may be running; 0: none
}

func (m member) String() string {
	if m.partition < 0 {
		return m.name + " -"
	}
	return fmt.Sprintf("%s %d/%d", m.name, m.partition, m.total)
}

// A lane is a row of orchestrator_checkpoints.
type lane struct {
	projection string
	partition  int
	position   int64
}

// String shows the state in one line: generation 3 active, w1 0/2, w2 1/2.
func (s state) String() string {
	return fmt.Sprintf("generation %d %s, %s", s.generation, s.phase, s.layout())
}

// layout shows which worker has which partition.
func (s state) layout() string {
	var ms []string
	for _, m := range s.members {
		ms = append(ms, m.String())
	}
	return strings.Join(ms, ", ")
}

// member returns the newest member of the process.
func (s state) member(name string) (m member, found bool) {
	for _, candidate := range s.members {
		if candidate.name == name {
			m, found = candidate, true
		}
	}
	return m, found
}

// runs reports whether the newest generation runs on exactly these workers.
func (s state) runs(names []string) bool {
	if s.phase != "active" || s.total != len(names) || len(s.members) != len(names) {
		return false
	}
	for _, m := range s.members {
		if !slices.Contains(names, m.name) || m.holds != s.generation {
			return false
		}
	}
	return true
}

// position returns how far the projection is on all partitions. It never goes back,
// whatever rebalances there are.
func (s state) position(projection string) int64 {
	position := int64(-1)
	for _, l := range s.lanes {
		if l.projection == projection && (position < 0 || l.position < position) {
			position = l.position
		}
	}
	return max(position, 0)
}

// lag returns how far the slowest projection is behind.
func (s state) lag() int64 {
	var lag int64
	for _, p := range projectionNames {
		lag = max(lag, s.head-s.position(p))
	}
	return lag
}

// moved reports whether every projection has moved since before, unless it had
// nothing left to do then.
func (s state) moved(before state) bool {
	for _, p := range projectionNames {
		if now := s.position(p); now <= before.position(p) && now < before.head {
			return false
		}
	}
	return true
}

// A watch reads the state, again and again.
type watch struct {
	db   *sql.DB
	name func(pid string) string // of a worker process

	mu   sync.Mutex
	last state
	news chan struct{} // closed when there is a newer state than last
}

const watchInterval = 50 * time.Millisecond

func newWatch(db *sql.DB, name func(pid string) string) *watch {
	return &watch{db: db, name: name, news: make(chan struct{})}
}

// run reads until ctx ends, and shows each state to see.
func (w *watch) run(ctx context.Context, see func(state)) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		s, err := w.read(ctx)
		if err != nil {
			return fmt.Errorf("read the replica set: %w", err)
		}
		see(s)
		w.mu.Lock()
		w.last = s
		close(w.news)
		w.news = make(chan struct{})
		w.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// now returns the last state, and a channel that the next one closes.
func (w *watch) now() (state, <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last, w.news
}

// await waits for a state for which ok returns true, and returns it. States that may
// have been read before the call don't count.
func (w *watch) await(ctx context.Context, what string, longest time.Duration, ok func(state) bool) (state, error) {
	deadline := time.NewTimer(longest)
	defer deadline.Stop()
	s, news := w.now()
	for reads := 0; ; reads++ {
		if reads > 1 && ok(s) { // the one before was perhaps being read
			return s, nil
		}
		select {
		case <-news:
			s, news = w.now()
		case <-deadline.C:
			return s, fmt.Errorf("waited %s in vain for %s; the last state: %s", longest.Round(time.Second), what, s)
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
}

// read reads the state as of one moment.
func (w *watch) read(ctx context.Context) (s state, err error) {
	tx, err := w.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return s, err
	}
	defer tx.Rollback()
	var opened, activated sql.NullTime
	err = tx.QueryRowContext(ctx, `
SELECT coalesce(max(generation), 0), coalesce(max(phase), ''), coalesce(max(total), 0), coalesce(max(reason), ''),
       max(opened_at), max(activated_at), (SELECT coalesce(max(global_position), 0) FROM events)
  FROM orchestrator_replica_sets`).Scan(&s.generation, &s.phase, &s.total, &s.reason, &opened, &activated, &s.head)
	if err != nil {
		return s, err
	}
	s.opened, s.activated = opened.Time, activated.Time
	err = each(ctx, tx, `SELECT id, coalesce((partitions->>0)::int, -1), total, generation, holds FROM orchestrator_workers ORDER BY seq`,
		func(scan func(...any) error) error {
			var m member
			var id string
			err := scan(&id, &m.partition, &m.total, &m.generation, &m.holds)
			m.pid, m.incarnation = parseID(id)
			m.name = w.name(m.pid)
			s.members = append(s.members, m)
			return err
		})
	if err != nil {
		return s, err
	}
	err = each(ctx, tx, `SELECT projection, partition, position FROM orchestrator_checkpoints ORDER BY projection, partition`,
		func(scan func(...any) error) error {
			var l lane
			err := scan(&l.projection, &l.partition, &l.position)
			s.lanes = append(s.lanes, l)
			return err
		})
	return s, err
}

// each calls row for each row of the query.
func each(ctx context.Context, tx *sql.Tx, query string, row func(scan func(...any) error) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// A worker's id is host-pid-random, and from its second incarnation on
// host-pid-random~2 and so on.
var workerID = regexp.MustCompile(`[!-~]*-(\d+)-[0-9a-z]+(~\d+)?`)

func parseID(id string) (pid, incarnation string) {
	if m := workerID.FindStringSubmatch(id); m != nil {
		return m[1], m[2]
	}
	return "", ""
}
