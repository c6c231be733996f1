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
	// All selects all projections of the replica set, in pause and resume.
	All    bool    `json:"all"`
	Worker *string `json:"worker"`
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
	generation, number, err := h.carryOut(ctx, o)
	switch {
	case errors.Is(err, errStatusOrder):
		answerError(w, http.StatusBadRequest, err.Error())
	case errors.Is(err, ErrRejected), errors.Is(err, ErrNotParked), errors.Is(err, ErrNoProjection):
		answerError(w, http.StatusConflict, err.Error()) // and nothing has changed
	case err != nil:
		h.known.invalidate() // it may have happened
		answerError(w, codeOf(err), redact.Error(err).Error())
	default:
		h.known.invalidate()
		answer(w, http.StatusOK, carriedOut{generation, notRun, number})
	}
}

// A carriedOut is the answer to an order. NotRun: the projection has never run, so its name
// may be mistyped. Order is the number of an order to park an event; a worker carries it out.
type carriedOut struct {
	Generation int64 `json:"generation"`
	NotRun     bool  `json:"not_run,omitempty"`
	Order      int64 `json:"order,omitempty"`
}

// notRun reports whether an order is about a projection that has never run.
func (h *statusHandler) notRun(ctx context.Context, o statusOrder) bool {
	if o.Projection == nil || o.Action != "pause" && o.Action != "rewind" {
		return false
	}
	has, err := HasRun(ctx, h.tables.DB, *o.Projection, orchestrator.InSchema(h.tables.Schema))
	return err == nil && !has
}

// carryOut carries out an order. It returns the generation that the order has opened or found
// in place, or 0 if it needs none. number is that of an order to park an event.
func (h *statusHandler) carryOut(ctx context.Context, o statusOrder) (generation, number int64, err error) {
	position, err := o.check()
	switch {
	case err != nil:
		return 0, 0, err
	case o.Action == "park":
		number, err = Park(ctx, h.tables.DB, o.ReplicaSet, *o.Projection, position, o.By, orchestrator.InSchema(h.tables.Schema))
	default:
		generation, err = h.change(ctx, o, position)
	}
	return generation, number, err
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
	case o.All && (o.Projection != nil || o.Action != "pause" && o.Action != "resume"):
		return 0, fmt.Errorf("%w: \"all\": true is only for pause and resume, and without a projection", errStatusOrder)
	case o.Projection == nil && !worker && !o.All:
		return 0, fmt.Errorf("%w: %s needs a projection", errStatusOrder, o.Action)
	case o.Projection != nil && *o.Projection == "" && !worker:
		return 0, fmt.Errorf("%w: the projection is empty; for all projections of a replica set, send \"all\": true", errStatusOrder)
	case o.Position == nil && (parked || o.Action == "rewind" || o.Action == "park"):
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

// change carries out an order, other than one to park an event.
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
	case "undrain":
		return UndrainWorker(ctx, db, o.ReplicaSet, *o.Worker, in)
	case "retry":
		_, err = RetryParked(ctx, db, *o.Projection, ParkedSelector{Positions: []int64{position}}, in)
		return 0, err
	default: // discard
		_, err = DiscardParked(ctx, db, *o.Projection, ParkedSelector{Positions: []int64{position}}, in)
		return 0, err
	}
}

var statusActions = []string{"pause", "resume", "rewind", "drain", "undrain", "retry", "discard", "park"}
