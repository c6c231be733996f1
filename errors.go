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
	// ErrInvalidConfig is returned for a configuration, an argument or a list of
	// projections that can't work, and by Run for a DB whose connection string can't be
	// parsed. The message names the field. Nothing was changed in the database.
	ErrInvalidConfig = errors.New("orchestrator: invalid configuration")

	// ErrSchema is returned when the library's tables are missing, or older than this
	// version needs. Call RunMigrations, or apply schema.sql.
	ErrSchema = store.ErrSchema

	// ErrProjectionTaken is returned by Run and importer.Import when a living worker of
	// another replica set runs a projection of that name. Rename one of the two, or stop the
	// other: when the last worker that runs it has left, this replica set can run the
	// projection from where it stopped.
	ErrProjectionTaken = errors.New("orchestrator: projection is taken")

	// ErrCoordinationTimeout is returned by Run when a handler has not returned
	// CoordinationTimeout after it was asked to stop. The message names the projection, the
	// partition and the position. The handler may still run, so end the process; the other
	// workers wait until the worker's lease ends.
	ErrCoordinationTimeout = errors.New("orchestrator: coordination timeout")

	// ErrGenerationSuperseded is the cause (context.Cause) of a handler's cancelled context
	// when the handler took too long to stop for a newer generation, or for the end of Run.
	// Return: the next owner of the partition handles again what was not committed. Run never
	// returns it.
	ErrGenerationSuperseded = errors.New("orchestrator: generation superseded")

	// ErrLeaseLost is the cause of a handler's cancelled context when the worker has
	// lost its lease: it could not reach the database for too long, or other workers
	// have removed it. Return. Run never returns it: the worker joins again as soon as
	// it can.
	ErrLeaseLost = errors.New("orchestrator: lease lost")

	// ErrSuspended is the cause of a handler's cancelled context when the worker could not
	// reach the database for a moment, so that other workers may remove it. Return: the event
	// is handled again, by this worker or another, when the database answers. Run never
	// returns it. See Config.LeaseOnly.
	ErrSuspended = errors.New("orchestrator: handler suspended: database unreachable")

	// ErrEventStore is returned by Run when the event store breaks its contract, or
	// reads something that does not exist or may not be read. No projection moves past
	// the event at fault.
	ErrEventStore = errors.New("orchestrator: event store")
)

// Permanent marks err as an error that no retry can fix, such as an event of a version that
// the handler does not know. When a handler returns it, or an error that wraps it, its failure
// policy applies at once, whatever FailureRule.Attempts is. Under RetryForever the handler is
// still called again, each time after Retry.Max, in case an operator fixes what it depends on.
//
// In two cases the handler is still called again: a failed batch is halved until the event at
// fault is alone, and a transactional handler gets the event once more after the events before
// it were committed. If the library has interrupted the handler (see FailureRule), Permanent
// has no effect.
//
// The result has the text of err and wraps it. Permanent(nil) is nil.
func Permanent(err error) error {
	if err == nil {
		return nil
	}
	return &store.PermanentError{Err: err}
}

// HandlerError is returned by Run, under the policy StopOnFailure, when a handler has
// failed.
type HandlerError struct {
	// Projection is the name of the projection.
	Projection string
	// Position is the position of the event at fault. A batch has been halved until that event
	// is alone.
	Position int64
	// Partition is the number of the partition.
	Partition int
	// Attempts is how often the handler has failed at the event.
	Attempts int
	// Err is the handler's error: its text, shortened if it is very long and without
	// connection strings; errors.Is and errors.As find what it wraps.
	Err error
}

// Error names the projection, the position, the partition and the attempts.
func (e *HandlerError) Error() string {
	return fmt.Sprintf("projection %q failed at position %d (partition %d, attempt %d): %v", e.Projection, e.Position, e.Partition, e.Attempts, redact.Error(e.Err))
}

// Unwrap returns Err.
func (e *HandlerError) Unwrap() error { return e.Err }

// PanicError is a panic of the program's code, such as a handler, as an error. Its text
// names the place of the panic; the format %+v also has the stack.
type PanicError struct {
	// Value is what panic was called with.
	Value any
	// Stack is the stack of the goroutine, as debug.Stack returns it.
	Stack []byte

	text string // of Value
}

// Error returns the value and the place of the panic.
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

// Format implements fmt.Formatter.
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

// place returns the function that panicked, and its line: the first entry of the stack below
// the runtime's. It is "" if there is none.
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

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	if err == nil || !sane(err) {
		return nil
	}
	return err
}
