package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"net"
	"reflect"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// The facts of errors. What they mean, protocol decides.

// FactsOf returns what is known of an error. Nothing here depends on a driver: both
// lib/pq and pgx give their errors a method that returns the SQLSTATE.
//
// An error may be user code's: its methods may panic, its type may not be comparable, and
// it may unwrap to itself. So the chain is walked here, for walkMax errors at
// most, and each is asked on its own. If an error in the chain already has facts,
// they are taken over, and what it wraps is not asked any more.
func FactsOf(err error) protocol.Facts {
	var w walk
	w.visit(err)
	w.facts.Malformed = w.facts.Malformed || redact.Unusable(err)
	return w.facts
}

// walkMax is how many errors of a chain, or tree, are asked.
const walkMax = 100

// A walk goes over an error and all that it wraps.
type walk struct {
	facts protocol.Facts
	seen  int
}

func (w *walk) visit(err error) {
	if err == nil || w.seen >= walkMax {
		return
	}
	w.seen++
	w.facts.Failed = true
	if k := reflect.ValueOf(err); k.Kind() == reflect.Pointer && k.IsNil() {
		return // its methods would find nothing
	}
	if known, ok := err.(interface{ Facts() protocol.Facts }); ok {
		w.merge(known.Facts())
		return
	}
	if _, ok := err.(*PermanentError); ok {
		w.facts.Final = true // whatever the methods of what it wraps do
	}
	quietly(func() { w.ask(err) })
	var wrapped []error
	quietly(func() {
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			wrapped = []error{u.Unwrap()}
		case interface{ Unwrap() []error }:
			wrapped = u.Unwrap()
		}
	})
	for _, e := range wrapped {
		w.visit(e)
	}
}

// merge takes over facts. Where two errors of a chain have a SQLSTATE, the outer one
// counts.
func (w *walk) merge(f protocol.Facts) {
	if w.facts.State != "" {
		f.State = w.facts.State
	}
	w.facts.State = f.State
	w.facts.Lost = w.facts.Lost || f.Lost
	w.facts.Network = w.facts.Network || f.Network
	w.facts.Deadline = w.facts.Deadline || f.Deadline
	w.facts.Canceled = w.facts.Canceled || f.Canceled
	w.facts.Closed = w.facts.Closed || f.Closed
	w.facts.Malformed = w.facts.Malformed || f.Malformed
	w.facts.Done = w.facts.Done || f.Done
	w.facts.Final = w.facts.Final || f.Final
	w.facts.Refused = w.facts.Refused || f.Refused
	w.facts.Ended = w.facts.Ended || f.Ended
	w.facts.Idled = w.facts.Idled || f.Idled
	w.facts.Taken = w.facts.Taken || f.Taken
	w.facts.Over = w.facts.Over || f.Over
	w.facts.Stranger = w.facts.Stranger || f.Stranger
}

// ask asks one error.
func (w *walk) ask(err error) {
	f := protocol.Facts{
		Lost:     isOne(err, driver.ErrBadConn, sql.ErrConnDone),
		Network:  isOne(err, io.EOF, io.ErrUnexpectedEOF),
		Deadline: isOne(err, context.DeadlineExceeded),
		Canceled: isOne(err, context.Canceled),
		Done:     isOne(err, sql.ErrTxDone),
		Refused:  isOne(err, ErrSuperseded, ErrNotParked),
		Ended:    isOne(err, ErrTransactionEnded),
	}
	if s, ok := err.(interface{ SQLState() string }); ok {
		f.State = s.SQLState()
	}
	if len(f.State) != 5 {
		f.State = ""
	}
	if _, ok := err.(net.Error); ok && !f.Deadline && !f.Canceled { // contexts' deadlines have the methods, too
		f.Network = true
	}
	f.Closed = !f.Network && f.State == "" && err.Error() == errClosed
	w.merge(f)
}

// A PermanentError is the error of a handler for which trying again can't help. It
// is recognised by its type, which no other package can make.
type PermanentError struct{ Err error }

func (e *PermanentError) Error() string { return e.Err.Error() }
func (e *PermanentError) Unwrap() error { return e.Err }

// errClosed is what database/sql says of a pool that the program has closed. It
// exports no value for it.
const errClosed = "sql: database is closed"

// isOne reports whether err is one of the errors, without a look at what it wraps.
func isOne(err error, targets ...error) bool {
	is, _ := err.(interface{ Is(error) bool })
	for _, t := range targets {
		if err == t || is != nil && is.Is(t) {
			return true
		}
	}
	return false
}

// quietly calls f, which may panic.
func quietly(f func()) {
	defer func() { _ = recover() }()
	f()
}

// State returns the SQLSTATE of an error from the server, or "".
func State(err error) string { return FactsOf(err).State }

// Permanent reports whether trying again can't help: see protocol.Facts.Permanent.
func Permanent(err error) bool { return FactsOf(err).Permanent() }

// Passing reports whether an error is known to be of the kind that passes by
// itself: the connection was lost or could not be made, the server is
// starting, stopping or full, or it chose this transaction to break a tie.
func Passing(err error) bool {
	f := FactsOf(err)
	// What net/url could not parse, a connection string, is an error of the network, too.
	return f.Passing() || f.Network && !f.Deadline && !f.Malformed
}

// PassingState is Passing for errors that certainly come from a database: one
// of the network may be about anything.
func PassingState(err error) bool { return FactsOf(err).Passing() }

// Deadlock reports whether the server has ended a transaction because of a deadlock: the next
// try may succeed.
func Deadlock(err error) bool { return State(err) == "40P01" }

// Unserializable reports whether a statement was refused because of a serialization failure.
func Unserializable(err error) bool { return State(err) == "40001" }

// Denied reports whether a privilege is missing.
func Denied(err error) bool { return State(err) == "42501" }

// FailedTransaction reports whether a statement was refused because an earlier
// one of its transaction had failed.
func FailedTransaction(err error) bool { return State(err) == "25P02" }

// LockTimeout reports whether a lock could not be had in time.
func LockTimeout(err error) bool { return State(err) == "55P03" }
