package ops

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

const (
	statusOrderMax      = 16 << 10 // bytes
	statusOrderPatience = 15 * time.Second
)

// A statusOrder is the body of a POST. Missing fields are nil, so that a forgotten name is an
// error and does not mean "all".
type statusOrder struct {
	Action     string                      `json:"action"`
	ReplicaSet orchestrator.ReplicaSetName `json:"replica_set"`
	Projection *string                     `json:"projection"`
	// All selects all projections of the replica set, in pause and resume, and all parked
	// events of the projection, in retry and discard.
	All    bool    `json:"all"`
	Worker *string `json:"worker"`
	// AggregateID selects the parked events of an aggregate, in retry and discard.
	AggregateID *string `json:"aggregate_id"`
	// Position is a number or a string of digits: JavaScript numbers are not exact above
	// 2^53.
	Position *json.Number `json:"position"`
	// By names who gives an order to park an event.
	By string `json:"by"`
}

// errStatusOrder is returned for a body that is not a valid order.
var errStatusOrder = errors.New("invalid order")

// order carries out an order. A page of another site can't give one. Browsers name the site
// that a request comes from. Browsers that are too old for that don't send a body of this
// type to another site before an OPTIONS request, which is refused.
func (h *statusHandler) order(w http.ResponseWriter, r *http.Request) {
	if err := h.protection.Check(r); err != nil {
		answerError(w, http.StatusForbidden, err.Error())
		return
	}
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		answerError(w, http.StatusUnsupportedMediaType, "the Content-Type must be application/json")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), statusOrderPatience)
	defer cancel()
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(statusOrderPatience)) // where that is supported
	var o statusOrder
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, statusOrderMax))
	body.DisallowUnknownFields()
	if err := body.Decode(&o); err != nil {
		answerError(w, http.StatusBadRequest, fmt.Sprintf("%v: %v", errStatusOrder, err))
		return
	}
	notRun := h.notRun(ctx, o) // before the order: a rewind adds the projection to the set
	done, err := h.carryOut(ctx, o)
	switch {
	case errors.Is(err, errStatusOrder):
		answerError(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, ErrRejected), errors.Is(err, ErrNotParked), errors.Is(err, ErrNoProjection):
		answerError(w, http.StatusConflict, err.Error()) // and nothing has changed
	case err != nil:
		h.known.invalidate() // it may have happened
		answerError(w, codeOf(err), redact.Connection(err).Error())
	default:
		h.known.invalidate()
		done.NotRun = notRun
		answer(w, http.StatusOK, done)
	}
}

// A carriedOut is the answer to an order. Generation is the one that the order has opened or
// found in place, or 0 if it needs none. NotRun: the projection has never run, so its name may
// be mistyped. Order is the number of an order to park an event; a worker carries it out. Events
// is for how many parked events a retry or a discard was requested.
type carriedOut struct {
	Generation int64 `json:"generation"`
	NotRun     bool  `json:"not_run,omitempty"`
	Order      int64 `json:"order,omitempty"`
	Events     int   `json:"events,omitempty"`
}

// notRun reports whether an order is about a projection that has never run.
func (h *statusHandler) notRun(ctx context.Context, o statusOrder) bool {
	if o.Projection == nil || o.Action != "pause" && o.Action != "rewind" {
		return false
	}
	has, err := HasRun(ctx, h.tables.DB, *o.Projection, orchestrator.InSchema(h.tables.Schema))
	return err == nil && !has
}

// carryOut carries out an order.
func (h *statusHandler) carryOut(ctx context.Context, o statusOrder) (done carriedOut, err error) {
	position, err := o.check()
	if err != nil {
		return done, err
	}
	db, in := h.tables.DB, orchestrator.InSchema(h.tables.Schema)
	switch o.Action {
	case "park":
		done.Order, err = Park(ctx, db, o.ReplicaSet, *o.Projection, position, o.By, in)
	case "retry":
		done.Events, err = RetryParked(ctx, db, *o.Projection, o.selector(position), in)
	case "discard":
		done.Events, err = DiscardParked(ctx, db, *o.Projection, o.selector(position), in)
	default:
		done.Generation, err = h.change(ctx, o, position)
	}
	return done, err
}

// selector returns the parked events that a valid order is about.
func (o statusOrder) selector(position int64) ParkedSelector {
	switch {
	case o.All:
		return ParkedSelector{All: true}
	case o.AggregateID != nil:
		return ParkedSelector{AggregateID: *o.AggregateID}
	}
	return ParkedSelector{Positions: []int64{position}}
}

// check returns the position of an order, and an error if the order is not valid.
func (o statusOrder) check() (position int64, err error) {
	parked := o.Action == "retry" || o.Action == "discard"
	worker := o.Action == "drain" || o.Action == "undrain"
	switch {
	case !slices.Contains(statusActions, o.Action):
		return 0, fmt.Errorf("%w: unknown action %q (there are: %s)", errStatusOrder, o.Action, strings.Join(statusActions, ", "))
	case o.ReplicaSet == "" && !parked:
		return 0, fmt.Errorf("%w: replica_set is missing", errStatusOrder)
	case o.Worker == nil && worker:
		return 0, fmt.Errorf("%w: %s needs a worker", errStatusOrder, o.Action)
	case o.All && !parked && (o.Projection != nil || o.Action != "pause" && o.Action != "resume"):
		return 0, fmt.Errorf("%w: \"all\": true is only for pause and resume, without a projection, and for retry and discard", errStatusOrder)
	case o.Projection == nil && !worker && (!o.All || parked):
		return 0, fmt.Errorf("%w: %s needs a projection", errStatusOrder, o.Action)
	case o.Projection != nil && *o.Projection == "" && !worker:
		return 0, fmt.Errorf("%w: the projection is empty; for all projections of a replica set, send \"all\": true", errStatusOrder)
	case o.AggregateID != nil && !parked:
		return 0, fmt.Errorf("%w: aggregate_id is only for retry and discard", errStatusOrder)
	case parked && !o.selectsOnce():
		return 0, fmt.Errorf("%w: %s needs exactly one of a position, an aggregate_id that is not empty, and \"all\": true", errStatusOrder, o.Action)
	case o.Position == nil && (o.Action == "rewind" || o.Action == "park"):
		return 0, fmt.Errorf("%w: %s needs a position", errStatusOrder, o.Action)
	}
	if o.Action == "park" && o.By == "" {
		return 0, fmt.Errorf("%w: park needs \"by\", the name of the person who gives the order", errStatusOrder)
	}
	if o.Position != nil {
		if position, err = o.Position.Int64(); err != nil {
			return 0, fmt.Errorf("%w: the position %q is not a whole number", errStatusOrder, *o.Position)
		}
	}
	return position, nil
}

// selectsOnce reports whether an order selects parked events in exactly one way.
func (o statusOrder) selectsOnce() bool {
	ways := 0
	for _, way := range []bool{o.Position != nil, o.AggregateID != nil && *o.AggregateID != "", o.All} {
		if way {
			ways++
		}
	}
	return ways == 1
}

// change carries out an order that opens a generation.
func (h *statusHandler) change(ctx context.Context, o statusOrder, position int64) (generation int64, err error) {
	db, in := h.tables.DB, orchestrator.InSchema(h.tables.Schema)
	switch o.Action {
	case "pause":
		if o.All {
			return PauseAll(ctx, db, o.ReplicaSet, in)
		}
		return Pause(ctx, db, o.ReplicaSet, *o.Projection, in)
	case "resume":
		if o.All {
			return ResumeAll(ctx, db, o.ReplicaSet, in)
		}
		return Resume(ctx, db, o.ReplicaSet, *o.Projection, in)
	case "rewind":
		return Rewind(ctx, db, o.ReplicaSet, *o.Projection, position, in)
	case "drain":
		return DrainWorker(ctx, db, o.ReplicaSet, *o.Worker, in)
	default: // undrain
		return UndrainWorker(ctx, db, o.ReplicaSet, *o.Worker, in)
	}
}

var statusActions = []string{"pause", "resume", "rewind", "drain", "undrain", "retry", "discard", "park"}
