package orchestrator

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

var (
	// ErrInvalidConfig is returned for a configuration or a list of
	// projections that can't work, and by Run for a DB whose connection string
	// can't be parsed. The message names the field. The database was not touched.
	ErrInvalidConfig = errors.New("orchestrator: invalid configuration")

	// ErrSchema is returned by Run and importer.Import when the library's
	// tables are missing or older than this version needs. Call RunMigrations,
	// or apply schema.sql.
	ErrSchema = store.ErrSchema

	// ErrProjectionTaken is returned by Run and importer.Import when a
	// projection is run by a living worker of another replica set. Give one of
	// the two another name, or stop it there: when the last worker that runs it
	// has left, the projection moves over with its progress.
	ErrProjectionTaken = errors.New("orchestrator: projection is taken")

	// ErrCoordinationTimeout is returned by Run when a handler did not return
	// within CoordinationTimeout after it was asked to; the message names the
	// projection and the position. The handler may still be running, so end
	// the process: the worker's lease is left to end by itself, and the other
	// workers wait for that.
	ErrCoordinationTimeout = errors.New("orchestrator: coordination timeout")

	// ErrGenerationSuperseded is the cause (see context.Cause) with which a
	// handler's context is cancelled when it has taken too long to stop, and a
	// newer generation waits for it or Run is to end. Return; what was not
	// committed is handled again by the partition's next owner. Run never
	// returns it.
	ErrGenerationSuperseded = errors.New("orchestrator: generation superseded")

	// ErrLeaseLost is the cause with which a handler's context is cancelled
	// when the worker could not reach the database for too long to be sure
	// that the partition is still its own. Run never returns it: the worker
	// joins again as soon as it can.
	ErrLeaseLost = errors.New("orchestrator: lease lost")

	// ErrSuspended is the cause with which a handler's context is cancelled when
	// the worker could not reach the database for a moment, so that others may
	// take it for dead. Return; the event is handled again as soon as the worker
	// has made sure of its partitions, here or elsewhere. Run never returns it.
	// See Config.LeaseOnly.
	ErrSuspended = errors.New("orchestrator: handler suspended: database unreachable")

	// ErrEventStore is returned by Run when the event store breaks its
	// contract, or reads something that does not exist or may not be read.
	// Nothing moves past the event at fault.
	ErrEventStore = errors.New("orchestrator: event store")
)

// Permanent returns err as an error that trying again can't mend: an event of a version
// that the handler does not know, say. A handler that returns it, or an error that wraps
// it, is not called again for the event: its failure rule applies at once, whatever
// FailureRule.Attempts says. RetryForever has nothing else to do than to call it again,
// in case an operator mends what it depends on; it does so after Retry.Max each time.
//
// A batch that fails for it is still halved until the event at fault stands alone, and a
// transactional handler is called once more after what precedes the event has been
// committed. If the library has interrupted the handler (see FailureRule), what it
// returns counts for nothing.
//
// The result has the text of err, which errors.Is and errors.As find in it. Permanent(nil)
// is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &store.PermanentError{Err: err}
}

// A HandlerError is returned by Run, under the policy StopOnFailure, for a
// handler that failed.
type HandlerError struct {
	Projection string
	// Position of the event at fault. For a BatchProjection or a PlainBatchProjection, of
	// the first event of the batch.
	Position  int64
	Partition int
	Attempts  int
	// Err stands for what the handler has returned: it has its text (of very long
	// ones, the beginning; without connection strings), and errors.Is and errors.As
	// find what that wraps.
	Err error
}

func (e *HandlerError) Error() string {
	return fmt.Sprintf("projection %q failed at position %d (partition %d, attempt %d): %v", e.Projection, e.Position, e.Partition, e.Attempts, redact.Error(e.Err))
}

func (e *HandlerError) Unwrap() error { return e.Err }

// A PanicError is a panic of the program's code, a handler's for example, turned into
// an error. Its text names the place; the format %+v has the stack as well.
type PanicError struct {
	Value any
	Stack []byte

	text string // of Value
}

func (e *PanicError) Error() string {
	text := e.text
	if text == "" {
		text = textOf(e.Value)
	}
	text = "panic: " + text
	if place := e.place(); place != "" {
		text += " (" + place + ")"
	}
	return text
}

// Format is fmt.Formatter's.
func (e *PanicError) Format(s fmt.State, verb rune) {
	text := e.Error()
	switch {
	case verb == 'q':
		text = fmt.Sprintf("%q", text)
	case verb == 'v' && s.Flag('+'):
		text += "\n" + string(e.Stack)
	}
	fmt.Fprint(s, text)
}

// place returns the function that panicked, and its line: what is below the calls of
// the runtime in the stack. It is "" where that is not found.
func (e *PanicError) place() string {
	_, stack, found := strings.Cut(string(e.Stack), "\npanic(")
	lines := strings.Split(stack, "\n")
	for i := 2; found && i+1 < len(lines); i += 2 { // lines[0:2] are panic itself
		function, file := lines[i], strings.TrimSpace(lines[i+1])
		if strings.HasPrefix(function, "runtime.") {
			continue
		}
		if end := strings.LastIndex(function, "("); end >= 0 {
			function = function[:end]
		}
		file, _, _ = strings.Cut(file, " ")
		return path.Base(function) + " " + path.Base(file)
	}
	return ""
}

// Unwrap returns the value if it was an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	if err == nil || !sane(err) {
		return nil
	}
	return err
}
