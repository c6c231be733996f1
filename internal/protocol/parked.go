package protocol

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// A FailurePolicy says what a lane does with an event whose handler has failed
// often enough.
type FailurePolicy int

const (
	// RetryForever tries again, however often.
	RetryForever FailurePolicy = iota
	// StopOnFailure ends the worker.
	StopOnFailure
	// HaltLane handles nothing more under this generation.
	HaltLane
	// ParkEvents puts the event aside, and the later ones of its aggregate.
	ParkEvents
)

// A ParkRequest is what a lane is asked to do with a parked event.
type ParkRequest string

const (
	Unasked ParkRequest = ""
	Retry   ParkRequest = "retry"
	Discard ParkRequest = "discard"
)

// A Parked event is one that a lane has gone past and not handled.
type Parked struct {
	Position  int64
	Slot      int
	Aggregate string // as Storable has it
	Attempts  int    // 0: it waits behind another
	Since     time.Time
	Request   ParkRequest
}

// Storable returns an aggregate's id as PostgreSQL takes it in a text. Two that
// differ may become one: then the later events of both wait.
func Storable(id string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(id, "\x00", "\uFFFD"), "\uFFFD")
}

// A Lot is what a lane has parked.
type Lot struct {
	rows  []Parked       // by position
	of    map[string]int // how many of an aggregate
	asked int            // how many with a request
}

// NewLot returns the lot with these rows.
func NewLot(rows []Parked) Lot {
	l := Lot{of: map[string]int{}}
	l.Add(rows...)
	return l
}

// Len returns the number of parked events.
func (l *Lot) Len() int { return len(l.rows) }

// Oldest returns since when the one is parked that is for the longest time, and
// the zero time if there is none.
func (l *Lot) Oldest() (since time.Time) {
	for _, r := range l.rows {
		if since.IsZero() || r.Since.Before(since) {
			since = r.Since
		}
	}
	return since
}

// Has reports whether events of the aggregate are parked.
func (l *Lot) Has(aggregate string) bool {
	return len(l.rows) > 0 && l.of[Storable(aggregate)] > 0
}

// Add adds rows.
func (l *Lot) Add(rows ...Parked) {
	for _, r := range rows {
		l.of[r.Aggregate]++
		if r.Request != Unasked {
			l.asked++
		}
	}
	l.rows = append(l.rows, rows...)
	// Those of slots that were ahead at a hand-over may be beyond the new ones.
	slices.SortFunc(l.rows, func(a, b Parked) int { return cmp.Compare(a.Position, b.Position) })
}

// Remove takes a row away.
func (l *Lot) Remove(position int64) {
	i, found := l.find(position)
	if !found {
		return
	}
	r := l.rows[i]
	l.rows = slices.Delete(l.rows, i, i+1)
	if l.of[r.Aggregate]--; l.of[r.Aggregate] == 0 {
		delete(l.of, r.Aggregate)
	}
	if r.Request != Unasked {
		l.asked--
	}
}

// Noted notes that a row has failed so many times, and is asked for no more.
func (l *Lot) Noted(position int64, attempts int) {
	if i, found := l.find(position); found {
		if r := &l.rows[i]; r.Request != Unasked {
			l.asked--
			r.Attempts, r.Request = attempts, Unasked
		}
	}
}

func (l *Lot) find(position int64) (int, bool) {
	return slices.BinarySearchFunc(l.rows, position, func(r Parked, position int64) int { return cmp.Compare(r.Position, position) })
}

// Due returns the first event for which something is to be done. One that is to
// be retried must be the first of its aggregate.
func (l *Lot) Due() (Parked, bool) {
	if l.asked == 0 {
		return Parked{}, false
	}
	waits := map[string]bool{}
	for _, r := range l.rows {
		if r.Request == Discard || r.Request == Retry && !waits[r.Aggregate] {
			return r, true
		}
		waits[r.Aggregate] = true
	}
	return Parked{}, false
}
