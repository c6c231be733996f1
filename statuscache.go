package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

const (
	// statusFresh is for how long one reading serves all who ask.
	statusFresh = time.Second
	// statusPatience is how long a reading may take.
	statusPatience = 5 * time.Second
	// What is shown of each replica set at most.
	statusGenerations = 30
	statusParked      = 100
)

// statusKnown is what is known of all replica sets.
type statusKnown struct {
	// At is when it was read, by this process's clock. Each replica set has the
	// database's own.
	At time.Time `json:"at,omitzero"`
	// Error is why the database could not be read since AwaySince; what follows
	// was known At.
	Error       string     `json:"error,omitempty"`
	AwaySince   *time.Time `json:"away_since,omitempty"`
	ReplicaSets []setKnown `json:"replica_sets"`

	code int // of the answer in HTTP
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
	read func(context.Context) ([]setKnown, error)

	mu      sync.Mutex
	known   statusKnown
	readAt  time.Time     // zero: known is not to be used
	reading chan struct{} // closed when the reading ends; nil: there is none
	orders  int           // a reading that began before one is not to be used
}

func newStatusCache(db *sql.DB) *statusCache {
	return &statusCache{
		read:  func(ctx context.Context) ([]setKnown, error) { return readStatus(ctx, db) },
		known: statusKnown{ReplicaSets: []setKnown{}},
	}
}

// get returns what is known, not longer ago than statusFresh. It fails when ctx
// ends before.
func (c *statusCache) get(ctx context.Context) (statusKnown, error) {
	for {
		c.mu.Lock()
		if time.Since(c.readAt) < statusFresh {
			defer c.mu.Unlock()
			return c.known, nil
		}
		if c.reading == nil {
			c.reading = make(chan struct{})
			go c.look(c.orders)
		}
		reading := c.reading
		c.mu.Unlock()
		select {
		case <-reading:
		case <-ctx.Done():
			return statusKnown{}, context.Cause(ctx)
		}
	}
}

// forget has the next who asks see what is so from now on.
func (c *statusCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.readAt = time.Time{}
	c.orders++
}

// look reads. Its context is nobody's: one who goes away must not take the
// reading from the rest.
func (c *statusCache) look(orders int) {
	sets, err := bounded(context.Background(), statusPatience, c.read, nil)
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.orders == orders {
		c.readAt = now
	}
	if err == nil {
		c.known = statusKnown{At: now, ReplicaSets: sets, code: http.StatusOK}
	} else {
		c.known.fail(err, now)
	}
	close(c.reading)
	c.reading = nil
}

// fail notes why it can't be read any more, and keeps what was known.
func (k *statusKnown) fail(err error, now time.Time) {
	if k.AwaySince == nil {
		k.AwaySince = &now
	}
	k.Error, k.code = err.Error(), http.StatusServiceUnavailable
	if store.Permanent(err) || errors.Is(err, ErrSchema) {
		k.code = http.StatusInternalServerError
	}
}

func readStatus(ctx context.Context, db *sql.DB) ([]setKnown, error) {
	if err := store.New(db, "", store.Options{}).Check(ctx); err != nil {
		return nil, err
	}
	names, err := ReplicaSets(ctx, db)
	if err != nil {
		return nil, err
	}
	sets := make([]setKnown, len(names))
	for i, name := range names {
		s := &sets[i]
		if s.ReplicaSetStatus, err = Status(ctx, db, name); err != nil {
			return nil, err
		}
		if s.History, err = History(ctx, db, name, statusGenerations); err != nil {
			return nil, err
		}
		if s.Parked, err = readParked(ctx, db, name); err != nil {
			return nil, err
		}
	}
	return sets, nil
}

func readParked(ctx context.Context, db *sql.DB, set ReplicaSetName) ([]parkedKnown, error) {
	var parked []parkedKnown
	err := query(ctx, db, `
SELECT e.projection, e.position, e.aggregate_id, e.error, e.attempts, e.parked_at, coalesce(e.request, '')
  FROM orchestrator_parked e
  JOIN orchestrator_projections p ON p.name = e.projection
 WHERE p.replica_set = $1 ORDER BY e.projection, e.position LIMIT $2`, []any{string(set), statusParked}, func(scan func(...any) error) error {
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
