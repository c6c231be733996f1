package sim

import (
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A database is where the workers meet: a model in memory, or PostgreSQL. The world calls
// it when a request arrives at the server, on one thread. The world models the network.
//
// A call that ends calls done exactly once: before it returns, or later if it has to wait
// for a lock that another transaction holds. A call on a connection that is closed
// meanwhile is never done.
type database interface {
	// connect opens a connection.
	connect() connection
	// as returns the same database for the workers of a replica set, whose store sets these
	// bounds.
	as(set string, bounds store.Bounds) database
	// restart does what a crash of the server does: it closes every connection and rolls
	// back what was not committed. Prepared transactions stay and get other names.
	restart()
	// close drops everything.
	close() error
}

// A connection carries one call at a time, and at most one transaction. The server's bounds
// apply: it ends a transaction that idles for too long, with the connection. From then on
// calls are done with an error at once.
type connection interface {
	// Coordination. starts says where projections start, as store.Starts does; nil: at the
	// beginning. With hold, the call is done before its COMMIT, and keeps its locks until
	// commit, close, or the bound on idling.
	foresee(id protocol.WorkerID, now time.Time, done func(foreseen any, err error))
	sync(r protocol.Request, projections []string, starts starter, foreseen any, hold bool, done func(store.Result, error))

	// Lanes. begin opens a handler's transaction. write opens one unless there is one. save
	// is a transaction of its own.
	load(l store.Lane, done func(protocol.Found, error))
	find(l store.Lane, done func(protocol.Found, error))
	begin(done func(error))
	// effect writes what a transactional projection does with an event.
	effect(projection string, e event) error
	// spoil is a statement in the open transaction that fails. violate breaks a constraint
	// that is checked at COMMIT.
	spoil()
	violate()
	// chain rolls the open transaction back and begins another, with statements of
	// the handler's own.
	chain()
	write(l store.Lane, from, to protocol.Checkpoint, done func(error))
	commit(done func(error))
	save(l store.Lane, from, to protocol.Checkpoint, done func(error))

	// What is parked. parked, park, forget and note are transactions of their own;
	// unpark is like write. request is an operator's.
	parked(l store.Lane, done func([]protocol.Parked, error))
	park(l store.Lane, from, to protocol.Checkpoint, parked []protocol.Parked, done func(error))
	unpark(l store.Lane, position int64, done func(error))
	forget(l store.Lane, position int64, done func(error))
	note(l store.Lane, position int64, attempts int, done func(error))
	request(projection string, position int64, r protocol.ParkRequest, done func(n int, err error))
	// Orders to park an event. Each is a transaction of its own. orderPark and outcome are
	// an operator's.
	orderPark(projection string, position int64, done func(number int64, err error))
	outcome(number int64) (string, error)
	locate(l store.Lane, number int64, slot int, done func(error))
	lapse(l store.Lane, number int64, why string, done func(error))

	// Versions of a projection. followed is Store.Followed; the others are an operator's.
	// With hold, promote leaves its transaction open for commit.
	followed(projection string, done func(protocol.Followed, error))
	versions(names []string, done func(map[string]*store.ProjectionVersion, error))
	promote(projection, live string, hold bool, done func(parked int, err error))
	retire(projection string, done func(error))

	// Reading, as Table does it. None of these waits. Away from at they end with
	// errElsewhere. page and ahead are those of eventtable: the events of a scope above a
	// position, and up to one unless the scope is everything; and the last of the next
	// positions, whatever their scope, with the first one that is missing.
	page(at eventtable.At, s scope, after, through int64, limit int) ([]event, error)
	ahead(at eventtable.At, after int64) (last, missing int64, err error)
	// keys are those of eventtable, rows the events at some positions.
	keys(at eventtable.At, after int64, limit int) ([]protocol.Key, error)
	rows(at eventtable.At, positions []int64) ([]event, error)
	high(at eventtable.At) (int64, error)
	// ask returns the epoch, the writers, and the assumption that does not hold, if any.
	ask() (protocol.ReadAnswer, error)

	// A liveness connection. attach takes its lock and publishes its number in the worker's
	// row, if a worker is named and has one. prove does nothing. glimpse returns which
	// locks of other workers are missing, and the state of the group.
	attach(a protocol.Attach, done func(key int32, p protocol.Published, err error))
	prove() error
	glimpse(worker protocol.WorkerID) (protocol.Glimpse, error)

	// Appending. insert opens a transaction unless there is one, and takes the next
	// position of the sequence.
	insert(aggregate string) (position int64, err error)
	// prepare makes the open transaction survive the connection, which is then free for
	// other work. finish commits it or rolls it back.
	prepare() (finish func(commit bool) error, err error)

	// close ends the connection, as the server sees it: a waiting call is given up, and an
	// open transaction is rolled back. It may be called again.
	close()
}

// A starter finds where projections without a checkpoint start, while the transaction that
// asks is open. It calls then, or never if the process is gone.
type starter func(projections []string, then func(map[string]int64, error))

// An event is a row of the events table.
type event struct {
	position  int64
	aggregate string
	slot      int
	bad       bool // it could not be read
}

// bytes returns the size of an event.
func (e event) bytes() int { return 10 + int(e.position%5)*10 }

// A clock is the time in a world. A database reads it and plans calls by it. Stopping a
// call that has been made does nothing.
type clock interface {
	// now returns the database's time with its steps, to the microsecond.
	now() time.Time
	// after calls f when d of true time has passed.
	after(d time.Duration, f func()) (stop func())
}
