package orchestrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/getpup/pupsourcing-orchestrator/internal/chunks"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// The border between the program's code and the library. Handlers, event stores, notifiers,
// observers, loggers and the errors that they return are the program's: they may panic, end
// their goroutine, or return an error whose methods do so. Here each becomes an error of the
// library, whose methods are harmless, with all facts that the library needs. Behind this
// border the library never calls a method of the program's errors.
//
// The library can't protect against what Go can't recover from: a stack overflow (in an Error
// method that calls itself, for example), two goroutines that write one map, os.Exit. A
// method that never returns holds up its caller, unless it is a logger's.

// A foreignError stands for an error of the program's code. It has no Unwrap: errors.Is and
// errors.As would call the methods of the program's error, which may work once and panic
// later.
type foreignError struct {
	text  string
	facts protocol.Facts
	err   error // for errors.Is and errors.As of the program; nil: it can't be asked
}

func (e *foreignError) Error() string         { return e.text }
func (e *foreignError) Facts() protocol.Facts { return e.facts }

// ErrorType returns the type of the program's error, below mere wrappers. OpenTelemetry's
// semconv.ErrorType calls it. "": the error can't be asked.
func (e *foreignError) ErrorType() string {
	err := e.err
	for err != nil {
		inner := error(nil)
		if of := reflect.TypeOf(err); of == fmtWrapper || of == reflect.TypeFor[*store.PermanentError]() {
			inner = errors.Unwrap(err)
		} else if own, ok := err.(*foreignError); ok {
			return own.ErrorType()
		}
		if inner == nil {
			return fmt.Sprintf("%T", err)
		}
		err = inner
	}
	return ""
}

// fmtWrapper is what fmt.Errorf returns for one %w.
var fmtWrapper = reflect.TypeOf(fmt.Errorf("%w", errExited))

// Is and As ask the program's error, and survive a panic in its methods.
func (e *foreignError) Is(target error) bool {
	return e.ask(func(err error) bool { return errors.Is(err, target) })
}

func (e *foreignError) As(target any) bool {
	return e.ask(func(err error) bool { return errors.As(err, target) })
}

func (e *foreignError) ask(f func(error) bool) bool {
	if e.err == nil {
		return false
	}
	yes, err := apart("the error", func() (bool, error) { return f(e.err), nil })
	return yes && err == nil
}

// own turns an error of the program's code into one of the library.
func own(whose string, err error) error {
	switch e := err.(type) {
	case nil:
		return nil
	case *foreignError:
		return e
	}
	e := &foreignError{text: redacted(err), facts: store.FactsOf(err)}
	if isNil(err) {
		e.text = fmt.Sprintf("typed nil %T: %s returned a nil pointer as an error", err, whose)
	}
	if sane(err) {
		e.err = err
	}
	return e
}

// redacted is textOf without connection strings. It returns a text whatever the error's
// methods do.
func redacted(err error) (text string) {
	defer func() {
		if recover() != nil {
			text = unprintable(err)
		}
	}()
	return textOf(redact.Error(err))
}

// unprintable is the text of a value whose method panics.
func unprintable(v any) string { return fmt.Sprintf("%T, whose Error or String method panics", v) }

// panicked turns a recovered value into an error.
func panicked(whose string, v any) error {
	e := &PanicError{Value: v, Stack: debug.Stack()}
	e.text = textOf(v)
	return own(whose, e)
}

// safely calls the program's code, and turns a panic into an error. It does not contain
// runtime.Goexit, which ends the caller's goroutine.
func safely(whose string, f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked(whose, v)
		}
	}()
	return own(whose, f())
}

// apart calls the program's code on a goroutine of its own, which that may end. It is for rare
// calls.
func apart[T any](whose string, f func() (T, error)) (value T, err error) {
	err = exited(whose)
	done := make(chan struct{})
	go func() {
		defer close(done)
		var v T
		e := safely(whose, func() (err error) {
			v, err = f()
			return err
		})
		value, err = v, e
	}()
	<-done
	return value, err
}

// exited is the error of code that has ended its goroutine.
func exited(whose string) error {
	return own(whose, fmt.Errorf("%s ended its goroutine (runtime.Goexit, t.FailNow)", whose))
}

// textMax is how many bytes of an error's text are kept.
const textMax = 8000

// textOf returns the text of an error, or of what a panic had as its value, shortened.
func textOf(v any) (text string) {
	defer func() {
		if recover() != nil {
			text = unprintable(v)
		}
	}()
	switch x := v.(type) {
	case error:
		if isNil(x) {
			return fmt.Sprintf("typed nil %T", x)
		}
		text = x.Error()
	case fmt.Stringer:
		text = x.String()
	default:
		if !shallow(reflect.ValueOf(v), 10) {
			return fmt.Sprintf("a value of type %T", v)
		}
		text = fmt.Sprint(v)
	}
	if len(text) <= textMax {
		return text
	}
	end := textMax
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return strings.Clone(text[:end]) + "…"
}

// shallow reports whether fmt.Sprint can print a value: it is nested at most so many levels
// deep, and not very large. A value that contains itself would be printed without end.
func shallow(v reflect.Value, levels int) bool {
	left := shallowMax
	return within(v, levels, &left)
}

// shallowMax is how many values fmt.Sprint may have to print.
const shallowMax = 10_000

func within(v reflect.Value, levels int, left *int) bool {
	if *left--; levels == 0 || *left < 0 {
		return false
	}
	switch v.Kind() {
	case reflect.Interface, reflect.Pointer:
		return v.IsNil() || within(v.Elem(), levels-1, left)
	case reflect.Slice, reflect.Array:
		if v.Len() > 100 {
			return v.Type().Elem().Kind() == reflect.Uint8
		}
		for i := range v.Len() {
			if !within(v.Index(i), levels-1, left) {
				return false
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !within(v.Field(i), levels-1, left) {
				return false
			}
		}
	case reflect.Map:
		if v.Len() > 100 {
			return false
		}
		for i := v.MapRange(); i.Next(); {
			if !within(i.Key(), levels-1, left) || !within(i.Value(), levels-1, left) {
				return false
			}
		}
	}
	return true
}

// sane reports whether errors.Is and errors.As work on an error: its chain has an end, and no
// method panics.
func sane(err error) (is bool) {
	defer func() {
		if recover() != nil {
			is = false
		}
	}()
	left := 1000
	var walk func(err error) bool
	walk = func(err error) bool {
		if left--; left < 0 || isNil(err) {
			return false
		}
		_ = err.Error()
		if e, ok := err.(interface{ Is(error) bool }); ok {
			e.Is(errProbe)
		}
		if e, ok := err.(interface{ As(any) bool }); ok {
			var probe *foreignError
			e.As(&probe)
		}
		switch u := err.(type) {
		case interface{ Unwrap() error }:
			wrapped := u.Unwrap()
			return wrapped == nil || walk(wrapped)
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				if e != nil && !walk(e) {
					return false
				}
			}
		}
		return true
	}
	return walk(err)
}

// errProbe is equal to no other error.
var errProbe = errors.New("probe")

// A safeLog passes records on to the program's logger.
type safeLog struct {
	to   slog.Handler
	gate *logGate
}

// A logGate is passed by all calls of one logger. A logger that blocks, because its pipe is not
// read, for example, holds up a caller for logPatience at most. Then records are dropped until
// it continues, and their number is logged.
type logGate struct{ stuck, left atomic.Int64 }

// logPatience is how long a logger may hold up a caller.
const logPatience = time.Second

// safeLogger returns a logger that can neither end nor hold up its callers.
func safeLogger(l *slog.Logger) *slog.Logger {
	if l == nil || l.Handler() == slog.DiscardHandler {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(safeLog{l.Handler(), &logGate{}})
}

func (s safeLog) Enabled(ctx context.Context, level slog.Level) bool {
	if s.gate.stuck.Load() > 0 {
		return true // Handle counts it
	}
	on, _ := passLog(s, func() (bool, error) { return s.to.Enabled(ctx, level), nil })
	return on
}

func (s safeLog) Handle(ctx context.Context, r slog.Record) error {
	_, err := passLog(s, func() (struct{}, error) { return struct{}{}, s.to.Handle(ctx, r) })
	return err
}

func (s safeLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return s.with(func() slog.Handler { return s.to.WithAttrs(attrs) })
}

func (s safeLog) WithGroup(name string) slog.Handler {
	return s.with(func() slog.Handler { return s.to.WithGroup(name) })
}

func (s safeLog) with(f func() slog.Handler) slog.Handler {
	to, err := passLog(s, func() (slog.Handler, error) { return f(), nil })
	if err != nil || to == nil {
		return s
	}
	return safeLog{to, s.gate}
}

var errLogStuck = errors.New("the Logger is blocked")

// passLog calls the program's logger, unless that is blocked.
func passLog[T any](s safeLog, f func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if s.gate.stuck.Load() > 0 {
		s.gate.left.Add(1)
		return none, errLogStuck
	}
	done := make(chan result, 1)
	go func() {
		value, err := apart("the Logger", f)
		done <- result{value, err}
	}()
	patience := time.NewTimer(logPatience)
	defer patience.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-patience.C:
	}
	s.gate.stuck.Add(1)
	go func() {
		<-done
		if s.gate.stuck.Add(-1) > 0 {
			return
		}
		if n := s.gate.left.Swap(0); n > 0 {
			log := slog.New(s)
			log.Warn("the Logger was blocked, and records were left out", "records", n)
		}
	}()
	return none, errLogStuck
}

// A namedLog adds the worker's present name, and leaves out the keys that have no value:
// the errors that are nil, the lists that are empty, and the durations of 0.
type namedLog struct {
	slog.Handler
	worker *atomic.Value
}

func (n namedLog) Handle(ctx context.Context, r slog.Record) error {
	named := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	named.AddAttrs(slog.String("worker", n.worker.Load().(string)))
	r.Attrs(func(a slog.Attr) bool {
		if !missing(a.Value) {
			named.AddAttrs(a)
		}
		return true
	})
	return n.Handler.Handle(ctx, named)
}

func (n namedLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return namedLog{n.Handler.WithAttrs(attrs), n.worker}
}

func (n namedLog) WithGroup(name string) slog.Handler {
	return namedLog{n.Handler.WithGroup(name), n.worker}
}

// missing reports whether a key has no value.
func missing(v slog.Value) bool {
	return v.Kind() == slog.KindAny && v.Any() == nil || v.Kind() == slog.KindDuration && v.Duration() == 0
}

// list returns several names or numbers as the value of one key: "w1, w2", which is the same
// in every slog.Handler. nil: there are none.
func list[T any](items []T) any {
	if len(items) == 0 {
		return nil
	}
	texts := make([]string, len(items))
	for i, item := range items {
		texts[i] = fmt.Sprint(item)
	}
	return strings.Join(texts, ", ")
}

// A handout copies events for the handler of one lane. All lanes of the process share an event
// as it was read. The byte slices in its own fields are copied for each call, so that a
// handler may modify a payload: no other handler sees that, nor does the next attempt. What
// pointers, maps and other slices refer to is shared.
type handout[E any] struct {
	offsets []uintptr // of the byte slices within E
	chunk   chunks.Chunk
}

// chunkBytes is how much is allocated at once. A handler that keeps one payload keeps its
// chunk.
const chunkBytes = 16 << 10

func newHandout[E any]() handout[E] {
	return handout[E]{offsets: byteSlices(reflect.TypeFor[E](), 0), chunk: chunks.Chunk{Size: chunkBytes}}
}

// byteSlices returns where the byte slices of a value are: itself, or those in the
// structs and arrays that it consists of.
func byteSlices(t reflect.Type, at uintptr) (offsets []uintptr) {
	switch t.Kind() {
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			offsets = append(offsets, at)
		}
	case reflect.Struct:
		for i := range t.NumField() {
			offsets = append(offsets, byteSlices(t.Field(i).Type, at+t.Field(i).Offset)...)
		}
	case reflect.Array:
		one := byteSlices(t.Elem(), at)
		for i := range t.Len() {
			if one == nil {
				break
			}
			for _, offset := range one {
				offsets = append(offsets, offset+uintptr(i)*t.Elem().Size())
			}
		}
	}
	return offsets
}

// event returns an event for one call of the handler.
func (h *handout[E]) event(e E) E {
	for _, offset := range h.offsets {
		field := (*[]byte)(unsafe.Add(unsafe.Pointer(&e), offset)) // a slice whose elements are bytes, whatever its name
		*field = h.copied(*field)
	}
	return e
}

// all returns several.
func (h *handout[E]) all(events []*Record[E]) []E {
	values := make([]E, len(events))
	for i, e := range events {
		values[i] = h.event(e.Event)
	}
	return values
}

func (h *handout[E]) copied(b []byte) []byte {
	if b == nil {
		return nil
	}
	return h.chunk.Copy(b)
}
