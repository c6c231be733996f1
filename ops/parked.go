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
	// ErrNoProjection is returned if no replica set has ever run the named projection.
	ErrNoProjection = errors.New("orchestrator: no such projection")

	// ErrNotParked is returned if the projection has no parked event at the given
	// positions or of the given aggregate.
	ErrNotParked = errors.New("orchestrator: not parked")
)

// ParkedEvent is an event in the dead-letter queue of a projection. It got there under
// ParkEvents or by Park.
type ParkedEvent struct {
	Position    int64  `json:"position"`
	AggregateID string `json:"aggregate_id"`
	// Error is the handler's latest error for the event, and Attempts how often it
	// failed. Without an error, the event waits behind an earlier one of its aggregate.
	Error    string    `json:"error"`
	Attempts int       `json:"attempts"`
	ParkedAt time.Time `json:"parked_at"`
	// Request is what was requested for the event and is not done yet.
	Request ParkedRequest `json:"request"`
}

// ParkedRequest is a pending request for a parked event.
type ParkedRequest string

const (
	NoRequest      ParkedRequest = ""        // none
	RetryRequest   ParkedRequest = "retry"   // see RetryParked
	DiscardRequest ParkedRequest = "discard" // see DiscardParked
)

// Parked returns the parked events of a projection, at most limit, in order of position.
// limit must be at least 1, else ErrInvalidConfig is returned. It returns ErrNoProjection if
// no replica set has ever run the projection.
func Parked(ctx context.Context, db *sql.DB, projection string, limit int, options ...orchestrator.TablesOption) ([]ParkedEvent, error) {
	if problem := store.NameProblem(projection); problem != "" {
		return nil, fmt.Errorf("%w: its name %s", ErrNoProjection, problem)
	}
	if limit < 1 {
		return nil, fmt.Errorf("%w: Parked: the limit is %d; it must be at least 1", orchestrator.ErrInvalidConfig, limit)
	}
	t := store.TablesOf(db, options)
	rows, err := store.ListParked(ctx, t, projection, limit)
	if err == nil && len(rows) == 0 || store.Unstorable(err) {
		err = cmp.Or(known(ctx, t, projection), err)
	}
	if err != nil {
		return nil, redact.Error(fmt.Errorf("list parked events of projection %q: %w", projection, err))
	}
	events := make([]ParkedEvent, len(rows))
	for i, r := range rows {
		events[i] = ParkedEvent{r.Position, r.AggregateID, r.Error, r.Attempts, r.ParkedAt, ParkedRequest(r.Request)}
	}
	return events, nil
}

// ParkedSelector selects parked events: those at Positions, those of an aggregate, or all.
// Exactly one field must be set.
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
		return which, fmt.Errorf("%w: exactly one of Positions, AggregateID and All must be set in a ParkedSelector", orchestrator.ErrInvalidConfig)
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

// RetryParked requests that parked events be handled again, and returns the number of
// events. It does not wait. The worker that has the partition handles them, within about a second
// after each batch, in order. An event waits until the earlier ones of its aggregate are
// no longer parked, so request those as well. A transactional projection commits its writes
// together with the removal of the event from the queue.
//
// If the handler fails again, the event stays parked with the new error, and the request is
// cleared. If the event no longer exists, the request is cleared and the row says so.
// While an aggregate has parked events, its new events are parked behind them.
//
// It returns ErrNoProjection, ErrNotParked, ErrInvalidConfig for a selector with no field or
// several set, and otherwise the database's error. With All, an empty queue is not an error: 0
// is returned.
func RetryParked(ctx context.Context, db *sql.DB, projection string, which ParkedSelector, options ...orchestrator.TablesOption) (int, error) {
	return askParked(ctx, store.TablesOf(db, options), projection, which, protocol.Retry)
}

// DiscardParked requests that parked events be removed from the queue: the projection never
// handles them. The worker that has the partition removes them; no event waits for
// another. The later events of an aggregate stay parked until they are retried or
// discarded themselves. The errors are those of RetryParked.
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

// known returns ErrNoProjection if no replica set has ever run the projection.
func known(ctx context.Context, t store.Tables, projection string) error {
	exists, err := store.ProjectionExists(ctx, t, projection)
	if err == nil && !exists || store.Unstorable(err) {
		err = ErrNoProjection
	}
	return err
}
