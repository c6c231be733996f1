package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// State returns the SQLSTATE of an error from the server, or "". Both lib/pq
// and pgx give their errors this method; nothing here depends on a driver.
func State(err error) string {
	var e interface{ SQLState() string }
	if errors.As(err, &e) {
		return e.SQLState()
	}
	return ""
}

// SQLSTATEs that are told apart.
const (
	stateLockNotAvailable  = "55P03"
	stateIdleInTransaction = "25P03"
	stateFailedTransaction = "25P02"
	stateDeadlock          = "40P01"
	stateDenied            = "42501"
)

// Permanent reports whether trying again can't help: what a statement names
// does not exist or may not be used (class 42), the schema or the database is
// not there (3F, 3D), or the value can't be stored (22). Everything else, lost
// connections, deadlocks, serialization failures, a server that starts up or
// is full, passes.
func Permanent(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if s := State(err); len(s) == 5 {
		switch s[:2] {
		case "42", "3F", "3D", "22":
			return true
		}
	}
	return false
}

// Passing reports whether an error is known to be of the kind that passes by
// itself: the connection was lost or could not be made, the server is
// starting, stopping or full, or it chose this transaction to break a tie.
func Passing(err error) bool {
	var network net.Error // matches deadlines of contexts as well, which are somebody's decision
	return PassingState(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.As(err, &network) && !errors.Is(err, context.DeadlineExceeded)
}

// PassingState is Passing for errors that certainly come from a database: one
// of the network may be about anything.
func PassingState(err error) bool {
	if s := State(err); len(s) == 5 {
		switch s[:2] {
		case "08", "40", "53", "57", "58":
			return true
		}
		return s == stateLockNotAvailable || s == stateIdleInTransaction
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone)
}

// Deadlock reports whether the server has ended a transaction that waited in a ring
// of others: the next try may succeed.
func Deadlock(err error) bool { return State(err) == stateDeadlock }

// Denied reports whether a privilege is missing.
func Denied(err error) bool { return State(err) == stateDenied }

// FailedTransaction reports whether a statement was refused because an earlier
// one of its transaction had failed.
func FailedTransaction(err error) bool { return State(err) == stateFailedTransaction }

// FailureOf says what an error means for a lane that was doing something.
func FailureOf(err error, kind protocol.LaneKind, doing protocol.LaneDo) protocol.Failure {
	inTransaction := kind != protocol.Plain
	switch {
	case err == nil:
		return protocol.NoFailure
	case errors.Is(err, ErrSuperseded), errors.Is(err, ErrNotParked):
		return protocol.Fenced
	case doing == protocol.LaneHandle:
		// A plain handler's network is its own affair.
		if PassingState(err) || inTransaction && Passing(err) {
			return protocol.Passing
		}
		return protocol.Fault
	case inTransaction && doing == protocol.LaneCommit && State(err) != "" && !PassingState(err),
		inTransaction && FailedTransaction(err):
		// Constraints and triggers may be deferred to COMMIT; or the handler
		// has swallowed a statement's error.
		return protocol.Fault
	case Permanent(err):
		return protocol.Permanent
	}
	return protocol.Passing
}
