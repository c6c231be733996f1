package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

const (
	// statusFresh is for how long one reading serves all who ask, at least: one that
	// takes long serves them for twice as long as it took.
	statusFresh = time.Second
	// statusGap is the least time between the beginnings of two readings, which
	// orders have follow each other.
	statusGap = 200 * time.Millisecond
	// statusPatience is how long the database may take to answer at all, and how long
	// one who asks waits for a reading.
	statusPatience = 5 * time.Second
	// A reading may take four times as long as the last one did, within these
	// bounds, and one that took too long is given twice the time.
	statusReadMin = 10 * time.Second
	statusReadMax = 2 * time.Minute
	// What is shown of each replica set at most.
	statusGenerations = 30
	statusParked      = 100
)

// statusKnown is what is known of all replica sets. It does not change: all who ask
// have the same one.
type statusKnown struct {
	// At is when it was read, by this process's clock. Each replica set has the
	// database's own.
	At time.Time `json:"at,omitzero"`
	// Error is why the database could not be read since AwaySince; what follows
	// was known At. Slow is that it answers, but reading takes too long.
	Error       string     `json:"error,omitempty"`
	AwaySince   *time.Time `json:"away_since,omitempty"`
	Slow        bool       `json:"slow,omitempty"`
	Actions     bool       `json:"actions"` // whether orders may be given
	ReplicaSets []setKnown `json:"replica_sets"`

	code int // of the answer in HTTP

	mu      sync.Mutex
	encoded map[string][]byte // by replica set; "": all
}

// body returns the answer in JSON, of one replica set where one is named, and whether
// there is one. It is encoded once for all who ask, also for those who read slowly.
func (k *statusKnown) body(set orchestrator.ReplicaSetName, one bool) (body []byte, ok bool) {
	sets := k.ReplicaSets
	if one {
		sets = []setKnown{}
		for _, s := range k.ReplicaSets {
			if s.ReplicaSet == set {
				sets = append(sets, s)
			}
		}
		if len(sets) == 0 && k.Error == "" {
			return nil, false
		}
	}
	key := ""
	if one && len(sets) > 0 { // a set has a name
		key = string(set)
	} else if one {
		key = "\x00" // none
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if body, ok = k.encoded[key]; !ok {
		// Its mutex is not copied.
		body, _ = json.Marshal(&statusKnown{ // none of its fields can fail
			At: k.At, Error: k.Error, AwaySince: k.AwaySince, Slow: k.Slow, Actions: k.Actions, ReplicaSets: sets,
		})
		body = append(body, '\n')
		if k.encoded == nil {
			k.encoded = map[string][]byte{}
		}
		k.encoded[key] = body
	}
	return body, true
}

type setKnown struct {
	ReplicaSetStatus
	History []GenerationRecord `json:"history"` // the newest first
	Parked  []parkedKnown      `json:"parked"`  // by projection and position
}

// A parkedKnown is a ParkedEvent, and whose.
type parkedKnown struct {
	Projection  string    `json:"projection"`
	Position    int64     `json:"position"`
	AggregateID string    `json:"aggregate_id"`
	Error       string    `json:"error"`    // "": it waits behind another
	Attempts    int       `json:"attempts"` // 0: likewise
	ParkedAt    time.Time `json:"parked_at"`
	Request     string    `json:"request"` // "retry" or "discard": not yet done
}

// statusCache has one reading at a time serve all who ask.
type statusCache struct {
	check   func(context.Context) error // whether the database answers
	read    func(context.Context) ([]setKnown, error)
	actions bool

	mu      sync.Mutex
	known   *statusKnown
	readAt  time.Time     // when the latest reading ended
	began   time.Time     // and began
	took    time.Duration // the latest that succeeded
	limit   time.Duration // of the next one
	reading chan struct{} // closed when the reading ends; nil: there is none
	slow    *statusKnown  // for who has waited for this one for too long
	// Readings are numbered in the order in which they begin. One below need began
	// before the latest order was carried out.
	begun, ended, need int
}

func newStatusCache(t store.Tables) *statusCache {
	return &statusCache{
		check: store.New(t.DB, "", store.Options{Schema: t.Schema}).Check,
		read:  func(ctx context.Context) ([]setKnown, error) { return readStatus(ctx, t) },
	}
}

// get returns what is known: as of statusFresh ago, and as of after the orders that
// were carried out before the call. Who asks is not held up by those that come
// later. It fails when ctx ends before.
func (c *statusCache) get(ctx context.Context) (*statusKnown, error) {
	patience := time.NewTimer(statusPatience + statusGap)
	defer patience.Stop()
	c.mu.Lock()
	need, waited := c.need, false
	for {
		if c.known != nil && c.ended >= need && (waited || time.Since(c.readAt) < max(statusFresh, 2*c.took)) {
			defer c.mu.Unlock()
			return c.known, nil
		}
		if c.reading == nil {
			c.begun++
			c.reading = make(chan struct{})
			go c.load(c.begun)
		}
		reading := c.reading
		c.mu.Unlock()
		select {
		case <-reading:
		case <-patience.C:
			return c.late(), nil
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		c.mu.Lock()
		waited = true
	}
}

// late returns what is known while a reading takes long. That goes on, for the next
// who asks.
func (c *statusCache) late() *statusKnown {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slow == nil { // one for all who ask
		c.slow = c.failed(errSlow, time.Now())
	}
	return c.slow
}

// errSlow says that the database answers, and reading takes long.
var errSlow = fmt.Errorf("reading takes longer than %s: the database is busy, or there is very much to read; it goes on", statusPatience)

// forget has those who ask from now on see what is so from now on.
func (c *statusCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.need = c.begun + 1
}

// load reads. Its context is nobody's: one who goes away must not take the reading
// from the rest.
func (c *statusCache) load(number int) {
	c.mu.Lock()
	wait, limit := max(0, statusGap-time.Since(c.began)), max(c.limit, statusReadMin)
	c.mu.Unlock()
	if wait > 0 {
		time.Sleep(wait)
	}
	began := time.Now()
	c.mu.Lock()
	c.began = began
	c.mu.Unlock()
	err := calls.Do(context.Background(), statusPatience, c.check)
	var sets []setKnown
	if err == nil {
		sets, err = calls.Within(context.Background(), limit, c.read, nil)
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%w, with more time: %w", errSlow, err)
			limit *= 2
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	c.readAt, c.ended = now, number
	if err == nil {
		c.took = now.Sub(began)
		limit = 4 * c.took
		c.known = &statusKnown{At: now, Actions: c.actions, ReplicaSets: sets, code: http.StatusOK}
	} else {
		c.known = c.failed(err, now)
	}
	c.limit = min(limit, statusReadMax)
	close(c.reading)
	c.reading, c.slow = nil, nil
}

// failed returns what was known, with why it can't be read any more.
func (c *statusCache) failed(err error, now time.Time) *statusKnown {
	k := &statusKnown{
		ReplicaSets: []setKnown{}, AwaySince: &now, Actions: c.actions,
		Error: redact.Error(err).Error(), Slow: errors.Is(err, errSlow), code: codeOf(err),
	}
	if c.known != nil {
		k.At, k.ReplicaSets = c.known.At, c.known.ReplicaSets
		if c.known.AwaySince != nil {
			k.AwaySince = c.known.AwaySince
		}
	}
	return k
}

// codeOf returns the status that goes with an error of the database: whether it
// may pass.
func codeOf(err error) int {
	if store.Permanent(err) || errors.Is(err, orchestrator.ErrSchema) {
		return http.StatusInternalServerError
	}
	return http.StatusServiceUnavailable
}

func readStatus(ctx context.Context, t store.Tables) ([]setKnown, error) {
	db, in := t.DB, orchestrator.InSchema(t.Schema)
	names, err := ReplicaSets(ctx, db, in)
	if err != nil {
		return nil, err
	}
	sets := make([]setKnown, len(names))
	for i, name := range names {
		s := &sets[i]
		if s.ReplicaSetStatus, err = Status(ctx, db, name, in); err != nil {
			return nil, err
		}
		if s.History, err = History(ctx, db, name, statusGenerations, in); err != nil {
			return nil, err
		}
		if s.Parked, err = readParked(ctx, t, name); err != nil {
			return nil, err
		}
	}
	return sets, nil
}

var parkedKnownSQL = sqltext.New(`
SELECT e.projection, e.position, e.aggregate_id, e.error, e.attempts, e.parked_at, coalesce(e.request, '')
  FROM orchestrator_parked e
  JOIN orchestrator_projections p ON p.name = e.projection
 WHERE p.replica_set = {set} ORDER BY e.projection, e.position LIMIT {limit}`)

func readParked(ctx context.Context, t store.Tables, set orchestrator.ReplicaSetName) ([]parkedKnown, error) {
	parked := []parkedKnown{}
	tables, err := t.Locate(ctx)
	if err != nil {
		return nil, fmt.Errorf("parked events of replica set %q: %w", set, err)
	}
	err = query(ctx, t.DB, tables, parkedKnownSQL, sqltext.Values{"set": string(set), "limit": statusParked}, func(scan func(...any) error) error {
		var p parkedKnown
		err := scan(&p.Projection, &p.Position, &p.AggregateID, &p.Error, &p.Attempts, &p.ParkedAt, &p.Request)
		parked = append(parked, p)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("parked events of replica set %q: %w", set, err)
	}
	return parked, nil
}
