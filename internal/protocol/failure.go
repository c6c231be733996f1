package protocol

// What an error means.
//
// The package gets facts of an error and never the error: a driver finds the facts out. This
// file promises that each error has one meaning, for the library and for the simulation alike.
// It must never end a worker, with all of its projections, for what one handler has caused, and
// never let an error pass by itself without end.

// Facts are what is known of an error, whatever its type. The driver finds
// them out (see store.FactsOf); Classify returns what they mean for a lane.
type Facts struct {
	Failed bool   // there is an error
	State  string // SQLSTATE, if the server has sent one

	Lost     bool // the connection to the database is gone, or could not be used
	Network  bool // the error is about a network, perhaps not the database's
	Deadline bool // a deadline has passed
	Canceled bool // a context was cancelled
	Closed   bool // the program has closed the pool of connections
	// Malformed is true if the connection string can't be parsed, or names what its
	// driver can't do.
	Malformed bool
	Done      bool // the transaction is over for its driver

	Final   bool // the handler has returned a permanent error
	Refused bool // the fence matched no row
	Ended   bool // the handler has ended its transaction
	Idled   bool // the handler has left its transaction idle for too long

	Taken    bool // another replica set has one of the worker's projections
	Over     bool // and the lease of its worker there is over
	Stranger bool // the worker's configuration does not fit the replica set: another event stream, a retired projection, a rebuild of what it can't follow
}

// Transient reports whether trying again should help by itself: the server has ended this
// transaction because of a deadlock or conflict, it starts, stops or is full, or the
// connection was lost.
func (f Facts) Transient() bool { return f.tie() || f.cut() }

// tie reports whether the server has ended the transaction because of a conflict with
// another one: a serialization failure or a deadlock.
func (f Facts) tie() bool { return f.State == "40001" || f.State == "40P01" }

// cut reports whether the connection was lost, or can't be had at the time.
func (f Facts) cut() bool {
	switch f.State {
	case "57P01", "57P02", "57P03", "57P04", "57P05", "53300":
		return true
	}
	return f.class() == "08" || f.State == "" && f.Lost
}

// Passing reports whether an error of a statement of the library's own should pass by
// itself. Unlike a handler's, that statement is known to be right and to be quick, so
// other sessions are the cause of any limit that it has met.
func (f Facts) Passing() bool {
	switch f.class() {
	case "08", "40", "53", "57", "58":
		return true
	}
	return f.State == "55P03" || f.State == "25P03" || f.State == "" && f.Lost
}

// Permanent reports whether trying again can't help: what a statement names does not
// exist or may not be used (class 42), the schema or the database is not there (3F,
// 3D), the value can't be stored (22), the connection string can't be used, or the
// program has closed the pool. A refused login (28) is not permanent: passwords are
// changed, and some drivers fetch a new one for each connection.
func (f Facts) Permanent() bool {
	if f.Canceled || f.Deadline {
		return false
	}
	switch f.class() {
	case "42", "3F", "3D", "22":
		return true
	}
	return f.Closed || f.Malformed
}

// ForItsSize reports whether a read may have failed because it was too large: it took
// too long, or too much memory, or it held a value that can't be sent.
func (f Facts) ForItsSize() bool {
	switch f.class() {
	case "22", "53", "54", "XX":
		return true
	}
	return f.Deadline || f.State == "57014" // query_canceled, by statement_timeout
}

// Away reports whether the error only means that the database can't be reached or
// is busy: a worker that starts waits for it. (A connection string that net/url could not
// parse is an error of the network as well, and is excluded.)
func (f Facts) Away() bool {
	return f.Passing() || f.Deadline || f.Network && !f.Malformed
}

// A SyncFailure is why a coordination request ends its worker.
type SyncFailure string

const (
	SyncPasses   SyncFailure = "" // it does not: trying again may help
	SyncTaken    SyncFailure = "another replica set runs one of its projections"
	SyncStranger SyncFailure = "it reads another event stream than its replica set"
	SyncDenied   SyncFailure = "the database refuses coordination"
)

// Coordination returns what an error means for the worker whose request has failed. A
// projection of another replica set whose worker seems dead is waited for: once that worker is
// removed, the projection is free. If that worker is alive, the configuration is wrong,
// as it is with another event stream; trying again would only hide it.
func (f Facts) Coordination() SyncFailure {
	switch {
	case f.Stranger:
		return SyncStranger
	case f.Taken && f.Over:
		return SyncPasses
	case f.Taken:
		return SyncTaken
	case f.Permanent():
		return SyncDenied
	}
	return SyncPasses
}

func (f Facts) class() string {
	if len(f.State) != 5 {
		return ""
	}
	return f.State[:2]
}

// Classify returns what an error means for a lane whose action do has failed. suspended is
// whether the library had cancelled the handler's context by then, or was about to.
//
// An error of a handler counts as the handler's failure, except those few of Transient; and
// these are excepted for a limited time only (see Lane.passes). The
// limits that a handler can run into are not among them: 57014 (statement_timeout),
// 53400, 53200, 55P03, a deadline of its own. A handler that always runs into one
// would be called without end. An error that a handler calls permanent is permanent.
//
// A deadlock or conflict has undone what the handler did, so it is a failure that passes. A
// lost connection tells nothing about the handler (Cut).
//
// What follows a handler in its transaction is the handler's failure as well. The
// statement that moves the checkpoint, and names nothing but what the lane has just
// read, can fail for good only because of what the handler has left: a failed
// transaction, open rows, another role. That must not end the worker, with all of its
// projections.
func Classify(f Facts, kind LaneKind, do LaneDo, suspended bool) Failure {
	inTransaction := kind.InTransaction()
	switch {
	case !f.Failed:
		return NoFailure
	case do == LaneHandle && suspended:
		return Interrupted
	case do == LaneHandle:
		return classifyHandle(f, inTransaction)
	case f.Refused:
		return Fenced
	case inTransaction && (do == LaneWrite || do == LaneUnpark):
		return classifyWrite(f, suspended)
	case inTransaction && do == LaneCommit && f.State != "" && !f.Passing():
		// Constraints and triggers may be deferred to COMMIT. Without an answer of
		// the server it is open whether it has happened.
		return Fault
	case f.Permanent():
		return Permanent
	}
	return Passing
}

// classifyHandle is Classify for what a handler has returned.
func classifyHandle(f Facts, inTransaction bool) Failure {
	switch {
	case f.Final:
		return Permanent
	case f.Idled || f.Deadline || f.Canceled:
		return Fault
	case f.tie():
		return Passing
	case f.cut() || inTransaction && f.Network: // a plain handler may talk to any other network
		return Cut
	}
	return Fault
}

// classifyWrite is Classify for what is written in the handler's transaction.
func classifyWrite(f Facts, suspended bool) Failure {
	unanswered := f.State == "" && (f.Lost || f.Network || f.Deadline || f.Canceled || f.Closed)
	switch {
	case !f.Ended && !f.Idled && f.State != "25P03" && (f.Passing() || unanswered):
		return Passing
	case suspended: // and the handler did not say so
		return Interrupted
	}
	return Fault
}
