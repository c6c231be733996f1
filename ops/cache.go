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
	// statusFresh is how long the result of one read is served, at least. The result of a slow
	// read is served for twice as long as the read took.
	statusFresh = time.Second
	// statusGap is the least time between the starts of two reads. An order makes the next
	// request read again at once.
	statusGap = 200 * time.Millisecond
	// statusPatience is the limit for the database's first answer, and how long a request
	// waits for a read.
	statusPatience = 5 * time.Second
	// A read may take four times as long as the last one took, within these bounds. After
	// one that took too long, the limit is doubled.
	statusReadMin = 10 * time.Second
	statusReadMax = 2 * time.Minute
	// The most generations and parked events that are shown of a replica set.
	statusGenerations = 30
	statusParked      = 100
)

// statusKnown is the result of one read of all replica sets. It is immutable and shared by
// all requests.
type statusKnown struct {
	// At is when it was read, by this process's clock. Each replica set has the time of
	// the database's clock.
	At time.Time `json:"at,omitzero"`
	// Error is why the database could not be read since AwaySince; ReplicaSets are then as
	// of At. Slow: the database answers, but the read takes too long.
	Error       string     `json:"error,omitempty"`
	AwaySince   *time.Time `json:"away_since,omitempty"`
	Slow        bool       `json:"slow,omitempty"`
	Actions     bool       `json:"actions"` // whether orders may be given
	Events      bool       `json:"events"`  // whether ?event=POSITION describes parked events
	ReplicaSets []setKnown `json:"replica_sets"`

	code int // HTTP status

	mu      sync.Mutex
	encoded map[string][]byte // by replica set; "": all
}

// body returns the answer in JSON, of all replica sets, or of the named one if one is set. ok
// is false if there is no such set. Each answer is encoded once and shared by all requests.
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
	if one && len(sets) > 0 { // a set's name is not empty
		key = string(set)
	} else if one {
		key = "\x00" // no set has this name
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if body, ok = k.encoded[key]; !ok {
		// A new value, since the mutex must not be copied.
		body, _ = json.Marshal(&statusKnown{ // no field can fail to encode
			At: k.At, Error: k.Error, AwaySince: k.AwaySince, Slow: k.Slow, Actions: k.Actions, Events: k.Events, ReplicaSets: sets,
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

// A parkedKnown is a ParkedEvent with its projection.
type parkedKnown struct {
	Projection  string    `json:"projection"`
	Position    int64     `json:"position"`
	AggregateID string    `json:"aggregate_id"`
	Error       string    `json:"error"`    // "": it waits behind an earlier event
	Attempts    int       `json:"attempts"` // 0: it waits behind an earlier event
	ParkedAt    time.Time `json:"parked_at"`
	Request     string    `json:"request"` // "retry" or "discard": pending
}

// statusCache shares one read at a time between all requests.
type statusCache struct {
	check   func(context.Context) error // whether the database answers
	read    func(context.Context) ([]setKnown, error)
	actions bool
	events  bool

	mu      sync.Mutex
	known   *statusKnown
	readAt  time.Time     // when the latest read ended
	began   time.Time     // when the latest read started
	took    time.Duration // duration of the latest read that succeeded
	limit   time.Duration // of the next read
	reading chan struct{} // closed when the current read ends; nil: no read is under way
	slow    *statusKnown  // answer for requests that waited too long for the current read
	// Reads are numbered in the order in which they start. Reads below need started before
	// the latest order was carried out.
	begun, ended, need int
}

func newStatusCache(t store.Tables) *statusCache {
	return &statusCache{
		check: store.New(t.DB, "", store.Options{Schema: t.Schema}).Check,
		read:  func(ctx context.Context) ([]setKnown, error) { return readStatus(ctx, t) },
	}
}

// get returns a result that is at most statusFresh old and shows all orders that were carried
// out before the call. Later calls do not delay earlier ones. It fails if ctx ends first.
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

// late returns the latest result while a read takes too long. The read goes on, for later
// requests.
func (c *statusCache) late() *statusKnown {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slow == nil { // shared by all requests
		c.slow = c.failed(errSlow, time.Now())
	}
	return c.slow
}

// errSlow is reported if the database answers, but reading takes too long.
var errSlow = fmt.Errorf("reading the status takes longer than %s: the database is busy, or there is a lot to read; the read goes on", statusPatience)

// invalidate makes later requests wait for a read that starts after this call.
func (c *statusCache) invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.need = c.begun + 1
}

// load reads the database. It does not use the context of a request: a client that goes away
// must not end the read for the others.
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
		c.known = &statusKnown{At: now, Actions: c.actions, Events: c.events, ReplicaSets: sets, code: http.StatusOK}
	} else {
		c.known = c.failed(err, now)
	}
	c.limit = min(limit, statusReadMax)
	close(c.reading)
	c.reading, c.slow = nil, nil
}

// failed returns the latest result together with the error of a read.
func (c *statusCache) failed(err error, now time.Time) *statusKnown {
	k := &statusKnown{
		ReplicaSets: []setKnown{}, AwaySince: &now, Actions: c.actions, Events: c.events,
		Error: redact.Connection(err).Error(), Slow: errors.Is(err, errSlow), code: codeOf(err),
	}
	if c.known != nil {
		k.At, k.ReplicaSets = c.known.At, c.known.ReplicaSets
		if c.known.AwaySince != nil {
			k.AwaySince = c.known.AwaySince
		}
	}
	return k
}

// codeOf returns the HTTP status for an error of the database: 503 if it may pass, else 500.
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

// The first events of each projection, so that none hides those of another. Each projection
// costs one search of the primary key.
var parkedKnownSQL = sqltext.New(`
SELECT e.projection, e.position, e.aggregate_id, e.error, e.attempts, e.parked_at, coalesce(e.request, '')
  FROM (SELECT e.*, row_number() OVER (PARTITION BY e.projection ORDER BY e.position) AS turn
          FROM orchestrator_projections p
         CROSS JOIN LATERAL (
               SELECT * FROM orchestrator_parked e WHERE e.projection = p.name ORDER BY e.position LIMIT {limit}) e
         WHERE p.replica_set = {set}
         ORDER BY turn, e.projection LIMIT {limit}) e
 ORDER BY e.projection, e.position`)

var isParkedSQL = sqltext.New(`
SELECT EXISTS (SELECT FROM orchestrator_projections p JOIN orchestrator_parked e ON e.projection = p.name AND e.position = {position})`)

// isParked reports whether an event is parked in any projection.
func isParked(ctx context.Context, t store.Tables, position int64) (parked bool, err error) {
	tables, err := t.Locate(ctx)
	if err == nil {
		err = query(ctx, t.DB, tables, isParkedSQL, sqltext.Values{"position": position}, func(scan func(...any) error) error {
			return scan(&parked)
		})
	}
	if err != nil {
		return false, fmt.Errorf("event %d: %w", position, err)
	}
	return parked, nil
}

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
