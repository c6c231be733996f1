package ops

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/calls"
	"github.com/getpup/pupsourcing-orchestrator/internal/dbconn"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/sqltext"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// ErrRejected is returned for an order that can't be carried out: the replica set or the
// worker that it names is not there, the projection is another set's, a name can't be one or
// a position is negative, or nobody would be left to run the partitions. Nothing was changed.
var ErrRejected = store.ErrRejected

// Pause stops a projection on all workers until Resume is called, through restarts and
// re-partitions. It opens a generation, whose number it returns, in which the others go
// on: when that is active (AwaitGeneration), no handler of the projection runs anywhere.
// To pause what is paused changes nothing, and returns the current generation.
//
// Like the other orders, it may be given from any program that reaches the
// database, while workers run, and it is idempotent. It is an order to the replica
// set: a projection that another set takes over leaves its orders behind.
//
// A projection that has not run yet may be paused: the set will not run it when a worker
// comes with it, until Resume. So a name that is mistyped is no error: ask HasRun before, as
// the command and the status page do. Status shows it among those that are paused.
//
// It returns ErrRejected where it can't be carried out, ErrSchema where the tables are missing or too
// old, and else the database's error, as when ctx ends before it.
func Pause(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return orderOf(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderPause, Projection: projection})
}

// PauseAll is Pause of everything that the replica set runs, until ResumeAll is called:
// also of projections that come later.
func PauseAll(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderPause, Projection: protocol.All})
}

// Resume runs a projection that was paused again, from where it is. See Pause.
func Resume(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return orderOf(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderResume, Projection: projection})
}

// ResumeAll resumes everything of the replica set, projections that were paused by
// themselves as well. See Pause.
func ResumeAll(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderResume, Projection: protocol.All})
}

// Rewind sets a projection to a position, back or forward: the next events that it
// handles are those above it; 0 is all. It opens a generation, whose activation
// sets the checkpoints, so nothing that is in flight can move them afterwards. When
// no worker is there, that is when the next one comes. Events above the position
// that are parked are forgotten, since they come again. Beyond the end of the stream,
// what is still to come is skipped, up to the position.
//
// A projection that has not run yet may be set to a position: there it starts when a worker
// comes with it, whatever its own Start says. So a name that is mistyped is no error: ask
// HasRun before, as the command and the status page do.
//
// What the projection has written is its own: to build a read model anew, Pause,
// wait until that is active, empty the read model, Rewind to 0, and Resume.
func Rewind(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, projection string, position int64, options ...orchestrator.TablesOption) (generation int64, err error) {
	if position < 0 {
		return 0, fmt.Errorf("%w: rewind of %s to %d: a position can't be negative", ErrRejected, projection, position)
	}
	return orderOf(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderRewind, Projection: projection, Position: position})
}

// HasRun reports whether a projection has ever run: whether a generation with it was ever
// active. Ask before Pause and Rewind, to notice a name that is mistyped: a rewind makes
// it one of the set's. It returns ErrRejected for what can't be a name, and the
// database's error.
func HasRun(ctx context.Context, db *sql.DB, projection string, options ...orchestrator.TablesOption) (bool, error) {
	if problem := store.NameProblem(projection); problem != "" {
		return false, fmt.Errorf("%w: the name of the projection %s", ErrRejected, problem)
	}
	has, err := store.HasRun(ctx, store.TablesOf(db, options), projection)
	return has, redact.Error(err)
}

// DrainWorker takes a worker's partitions away from it, for maintenance. It stays a
// member, as a standby, until UndrainWorker, or until its program ends. One that is
// removed, as its lease is over, and comes back, is not drained any more. The last
// worker that can have partitions can't be drained.
func DrainWorker(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, worker string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderDrain, Worker: protocol.WorkerID(worker)})
}

// UndrainWorker lets a worker that was drained have partitions again.
func UndrainWorker(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, worker string, options ...orchestrator.TablesOption) (generation int64, err error) {
	return order(ctx, store.TablesOf(db, options), set, protocol.Order{Kind: protocol.OrderUndrain, Worker: protocol.WorkerID(worker)})
}

// orderLease is by which the transaction of an order is bounded: a set's own leases
// may be shorter than the default, and none is to be lost for a program that hangs
// with the set locked.
const orderLease = 4 * time.Second

// orderOf carries out an order about a projection, which has to be named.
func orderOf(ctx context.Context, t store.Tables, set orchestrator.ReplicaSetName, o protocol.Order) (generation int64, err error) {
	if o.Projection == "" {
		return 0, fmt.Errorf("%w: the name of the projection is empty (PauseAll and ResumeAll are for all of a replica set)", ErrRejected)
	}
	return order(ctx, t, set, o)
}

// order carries an order out, and tries again where the set's rows are locked.
func order(ctx context.Context, t store.Tables, set orchestrator.ReplicaSetName, o protocol.Order) (generation int64, err error) {
	if problem := orderProblem(set, o); problem != "" {
		return 0, fmt.Errorf("%w: %s", ErrRejected, problem)
	}
	s := store.New(t.DB, string(set), store.Options{Schema: t.Schema, Bounds: store.BoundsOf(orderLease)})
	if err := s.Check(ctx); err != nil {
		return 0, redact.Error(err)
	}
	backoff := protocol.RetryOrder.Backoff()
	for failures := 1; ; failures++ {
		result, err := s.Sync(ctx, protocol.Request{Order: &o}, nil)
		switch {
		case err == nil:
			return result.Group.Generation, nil
		case store.Unstorable(err) && !storable(ctx, t.DB, string(set), o.Projection, string(o.Worker)):
			return 0, fmt.Errorf("%s in replica set %q: %w: nothing can have such a name in this database: %w", o, set, ErrRejected, err)
		case errors.Is(err, ErrRejected) || !store.LockTimeout(err):
			return 0, redact.Error(fmt.Errorf("%s in replica set %q: %w", o, set, err))
		case !calls.Sleep(ctx, backoff.Delay(failures, 0)):
			return 0, fmt.Errorf("%s in replica set %q: %w", o, set, errors.Join(ctx.Err(), redact.Error(err)))
		}
	}
}

// orderProblem says what is wrong with a name in an order.
func orderProblem(set orchestrator.ReplicaSetName, o protocol.Order) string {
	if problem := store.NameProblem(string(set)); problem != "" {
		return "the name of the replica set " + problem
	}
	if problem := store.NameProblem(o.Projection); problem != "" && o.Projection != protocol.All {
		return "the name of the projection " + problem
	}
	worker := o.Kind == protocol.OrderDrain || o.Kind == protocol.OrderUndrain
	if problem := store.NameProblem(string(o.Worker)); problem != "" && worker {
		return "the name of the worker " + problem
	}
	return ""
}

// storable reports whether the database can hold all of the texts.
func storable(ctx context.Context, db *sql.DB, texts ...string) bool {
	for _, text := range texts {
		if store.Unstorable(store.Holds(ctx, db, text)) {
			return false
		}
	}
	return true
}

var activeSQL = sqltext.New(`SELECT generation >= {generation} AND phase = 'active' FROM orchestrator_replica_sets WHERE name = {set}`)

// AwaitGeneration waits until a generation, or a newer one, is active: nothing
// that an older one ran can have an effect any more. It goes on looking until ctx
// ends, also while there is no worker to activate it. It returns ErrNoReplicaSet where
// there is no such set.
func AwaitGeneration(ctx context.Context, db *sql.DB, set orchestrator.ReplicaSetName, generation int64, options ...orchestrator.TablesOption) error {
	if problem := store.NameProblem(string(set)); problem != "" {
		return fmt.Errorf("wait for generation %d: %w: its name %s", generation, ErrNoReplicaSet, problem)
	}
	t := store.TablesOf(db, options)
	return calls.Await(ctx, func() (active bool, err error) {
		tables, err := t.Locate(ctx)
		if err == nil {
			query, args := tables.Bind(activeSQL, sqltext.Values{"set": string(set), "generation": generation})
			err = dbconn.QueryRow(ctx, t.DB, query, args...).Scan(&active)
		}
		if errors.Is(err, sql.ErrNoRows) || store.Unstorable(err) {
			err = ErrNoReplicaSet
		}
		if err != nil {
			err = fmt.Errorf("wait for generation %d of replica set %q: %w", generation, set, err)
		}
		return active, err
	})
}
