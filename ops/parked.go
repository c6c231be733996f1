package ops

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

var (
	// ErrNoProjection is returned where a projection is named that no replica
	// set has run yet.
	ErrNoProjection = errors.New("orchestrator: no such projection")

	// ErrNotParked is returned where the projection has no parked event at the position,
	// or of the aggregate, that is named.
	ErrNotParked = errors.New("orchestrator: not parked")
)

// A ParkedEvent is one that a projection has gone past without handling it, under
// ParkEvents or by order (see Park).
type ParkedEvent struct {
	Position    int64  `json:"position"`
	AggregateID string `json:"aggregate_id"`
	// Error and Attempts are of the handler's failures at it. Without an error, it
	// waits behind an earlier event of its aggregate.
	Error    string    `json:"error"`
	Attempts int       `json:"attempts"`
	ParkedAt time.Time `json:"parked_at"`
	// Request is what was asked for and is not done yet.
	Request ParkedRequest `json:"request"`
}

// A ParkedRequest is what somebody has asked to be done with a parked event.
type ParkedRequest string

const (
	NoRequest      ParkedRequest = ""        // nothing, or it is done
	RetryRequest   ParkedRequest = "retry"   // see RetryParked
	DiscardRequest ParkedRequest = "discard" // see DiscardParked
)

// Parked returns what a projection has parked, at most limit events in the order
// of their positions, for people to look at. The limit is at least 1. It returns
// ErrNoProjection for one that no replica set has run yet.
func Parked(ctx context.Context, db *sql.DB, projection string, limit int, options ...orchestrator.TablesOption) ([]ParkedEvent, error) {
	if problem := store.NameProblem(projection); problem != "" {
		return nil, fmt.Errorf("%w: its name %s", ErrNoProjection, problem)
	}
	if limit < 1 {
		return nil, fmt.Errorf("%w: Parked: the limit is %d, and must be at least 1", orchestrator.ErrInvalidConfig, limit)
	}
	t := store.TablesOf(db, options)
	rows, err := store.ListParked(ctx, t, projection, limit)
	if err == nil && len(rows) == 0 || store.Unstorable(err) {
		err = cmp.Or(known(ctx, t, projection), err)
	}
	if err != nil {
		return nil, redact.Error(fmt.Errorf("list what projection %q has parked: %w", projection, err))
	}
	events := make([]ParkedEvent, len(rows))
	for i, r := range rows {
		events[i] = ParkedEvent{r.Position, r.AggregateID, r.Error, r.Attempts, r.ParkedAt, ParkedRequest(r.Request)}
	}
	return events, nil
}

// A ParkedSelector says which parked events are meant: those at Positions, those
// of an aggregate, or all. Exactly one of the fields must be set.
type ParkedSelector struct {
	Positions   []int64
	AggregateID string
	All         bool
}

func (s ParkedSelector) selection() (which store.ParkedSelection, err error) {
	set := 0
	if len(s.Positions) > 0 {
		which.Positions = s.Positions
		set++
	}
	if s.AggregateID != "" {
		which.Aggregate = &s.AggregateID
		set++
	}
	if s.All {
		set++
	}
	if set != 1 {
		return which, fmt.Errorf("%w: a ParkedSelector must have one of Positions, AggregateID and All", orchestrator.ErrInvalidConfig)
	}
	return which, nil
}

func (s ParkedSelector) String() string {
	switch {
	case s.All:
		return "all events"
	case s.AggregateID != "":
		return fmt.Sprintf("aggregate %q", s.AggregateID)
	}
	return fmt.Sprintf("positions %v", s.Positions)
}

// RetryParked asks for parked events to be handled now, and returns how many that
// are. The worker that has their partition does it, within about a second after
// each batch, in order: an event waits until the earlier ones of its aggregate are
// no longer parked, so ask for those as well. What a transactional projection
// writes commits with the event's removal from the table.
//
// If the handler fails again, the event stays, with the error, and the request is
// gone. The request is also dropped, with an error in the row, if the event no longer
// exists.
// While an aggregate has parked events, its new ones are parked behind them.
//
// With All, nothing parked is no error: 0 is returned. The errors are ErrNoProjection,
// ErrNotParked and ErrInvalidConfig for a selector that selects nothing or twice; and the
// database's.
func RetryParked(ctx context.Context, db *sql.DB, projection string, which ParkedSelector, options ...orchestrator.TablesOption) (int, error) {
	return askParked(ctx, store.TablesOf(db, options), projection, which, protocol.Retry)
}

// DiscardParked asks for parked events to be forgotten: the projection never
// handles them. As with RetryParked, the worker that has the partition does it, and the
// errors are the same; but no event waits for another. The later events of an aggregate stay parked until they are
// retried or discarded themselves.
func DiscardParked(ctx context.Context, db *sql.DB, projection string, which ParkedSelector, options ...orchestrator.TablesOption) (int, error) {
	return askParked(ctx, store.TablesOf(db, options), projection, which, protocol.Discard)
}

func askParked(ctx context.Context, t store.Tables, projection string, which ParkedSelector, request protocol.ParkRequest) (n int, err error) {
	if problem := store.NameProblem(projection); problem != "" {
		return 0, fmt.Errorf("%w: its name %s", ErrNoProjection, problem)
	}
	selection, err := which.selection()
	if err == nil {
		n, err = store.AskParked(ctx, t, projection, selection, request)
	}
	if err == nil && n == 0 || store.Unstorable(err) {
		err = cmp.Or(known(ctx, t, projection), err)
	}
	if err == nil && n == 0 && !which.All {
		err = ErrNotParked
	}
	if err != nil {
		return 0, redact.Error(fmt.Errorf("%s parked events of projection %q, %s: %w", request, projection, which, err))
	}
	return n, nil
}

// known returns ErrNoProjection for a name that has never been run.
func known(ctx context.Context, t store.Tables, projection string) error {
	exists, err := store.ProjectionExists(ctx, t, projection)
	if err == nil && !exists || store.Unstorable(err) {
		err = ErrNoProjection
	}
	return err
}
